"""Bundles of one graph, which stand beside a model: a ControlNet, an image encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tintype import strict_json
from tintype.bounds import MAX_MANIFEST_BYTES
from tintype.bundle.manifest import FULL, MANIFEST_NAME, Graph
from tintype.files import read_plain
from tintype.uses import GraphRef


class OneGraphManifest(Protocol):
    """What all of them say of themselves."""

    @property
    def name(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def graph(self) -> Graph: ...


@dataclass(frozen=True, slots=True)
class OneGraphBundle:
    """One on disk, checked. It is the source of its graph under any variant: see `ref`."""

    folder: Path
    manifest: OneGraphManifest
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


def family_in(folder: Path) -> str | None:
    """The family that a bundle's folder says it is of, be it sound or not; None where it says nothing."""
    try:
        value = strict_json.parse(read_plain(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES))
    except (OSError, ValueError):
        return None
    family = value.get("family") if isinstance(value, dict) else None
    return family if isinstance(family, str) else None
