"""A bundle of one graph, which is no model but stands beside one: a ControlNet, a T2I-Adapter, an image encoder.

What one that was opened holds was checked as every bundle is, before any of it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tintype import strict_json
from tintype.bounds import MAX_MANIFEST_BYTES
from tintype.bundle.bundle import BESIDE
from tintype.bundle.manifest import FULL, MANIFEST_NAME, Graph
from tintype.files import read_plain
from tintype.uses import GraphRef


class OneGraphManifest(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def family(self) -> str: ...  # which is its graph's role too
    @property
    def graph(self) -> Graph: ...


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
