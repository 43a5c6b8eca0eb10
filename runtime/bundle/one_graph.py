"""A bundle of one graph, which is no model but stands beside one: a ControlNet, a T2I-Adapter, an image encoder.

What one that was opened holds was checked as every bundle is, before any of it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from tintype import strict_json
from tintype.bounds import MAX_MANIFEST_BYTES
from tintype.bundle.bundle import BESIDE
from tintype.bundle.listing import check_listed, check_shown
from tintype.bundle.manifest import FORMAT_VERSION, FULL, MANIFEST_NAME, FileFacts, Graph, Source
from tintype.bundle.parity import Parity
from tintype.files import read_plain
from tintype.strict_json import require
from tintype.uses import GraphRef


@dataclass(frozen=True, slots=True, kw_only=True)
class OneGraphManifest:
    """What all of them have in their tintype.json; models/FORMAT.md is the full definition."""

    format_version: int = FORMAT_VERSION
    name: str
    licence: str
    source: Source
    family: str  # which is its graph's role too; a kind has it as its default
    graphs: Mapping[str, Mapping[str, Graph]]  # the family: "full"
    files: Mapping[str, FileFacts]
    parity: tuple[Parity, ...] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        family = next(each.default for each in fields(self) if each.name == "family")
        check_shown(self.name, self.licence, self.family)
        require(self.family == family, f"the family {self.family!r} is not {family}")
        one = set(self.graphs) == {family} and set(self.graphs[self.family]) == {FULL}
        require(one, f"{BESIDE[self.family].what} has one graph, {family}, in one variant, full")
        check_listed(self.files, [self.graph.file], self.graphs, self.parity)
        self._check()

    @property
    def graph(self) -> Graph:
        return self.graphs[self.family][FULL]

    def _check(self) -> None:
        """What a kind demands of its own fields and of its graph's ports. Raises Misfit."""


Manifested = TypeVar("Manifested", bound=OneGraphManifest)


@dataclass(frozen=True, slots=True)
class OneGraphBundle(Generic[Manifested]):
    """It is the source of its graph under any variant: see `ref`."""

    folder: Path
    manifest: Manifested
    hash: str  # sha256 of its tintype.json

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def ref(self) -> GraphRef:
        """Of its graph, among those of others of its kind."""
        return GraphRef(self.manifest.family, f"{self.name}@{self.hash[:12]}")

    def graph(self, role: str, variant: str = FULL) -> Graph:
        return self.manifest.graph

    def graph_path(self, role: str, variant: str = FULL) -> Path:
        return self.folder / self.graph(role, variant).file

    def largest(self, role: str, variant: str = FULL) -> Mapping[str, float] | None:
        return self.graph(role, variant).largest

    def changed_weights(self, role: str, variant: str = FULL) -> Path | None:
        """None: nothing is merged into it."""
        return None


def family_beside(folder: Path) -> str | None:
    """The family that a bundle's folder says, be it sound or not, of those that are no models; None of a model."""
    try:
        value = strict_json.parse(read_plain(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES))
    except (OSError, ValueError):
        return None
    family = value.get("family") if isinstance(value, dict) else None
    return family if isinstance(family, str) and family in BESIDE else None
