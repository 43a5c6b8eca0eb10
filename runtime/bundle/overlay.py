"""An overlay: a bundle seen through LoRAs that are merged into its weights. It holds what changed, and nothing else.

A folder with overlay.json, which names the bundle by its hash and its place, and for each graph that changed a
.safetensors file of weights, by the names of the graph's own. What is opened is the bundle with another name and
another hash, so that its builds are its own. Where the bundle is gone, so is what an overlay of it can draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tintype import strict_json
from tintype.adapters.facts import LoraFacts
from tintype.bounds import MAX_LORAS, MAX_MANIFEST_BYTES
from tintype.bundle.bundle import Bundle, bundle_folder, open_model
from tintype.bundle.library import OVERLAY_NAME
from tintype.bundle.listing import check_relative_path
from tintype.bundle.manifest import COPY_AGAIN, FileFacts
from tintype.bundle.verify import check_hashes
from tintype.errors import BundleError
from tintype.files import read_plain
from tintype.strict_json import Misfit, require

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One graph's weights. snr_db: as they are stored, to the merge in float; None where they are floats."""

    file: str
    layers: int
    snr_db: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayFacts:
    """What overlay.json says. base: the bundle's folder, or its name where it comes with the package."""

    format_version: int = FORMAT_VERSION
    name: str
    base: str
    base_hash: str
    loras: tuple[LoraFacts, ...]
    changed: Mapping[str, Changed]  # by role
    files: Mapping[str, FileFacts]

    def __post_init__(self) -> None:
        require(self.format_version == FORMAT_VERSION, f"format_version {self.format_version} isn't known")
        require(0 < len(self.name) <= 200 and self.name.isprintable(), "it has no name to show")
        is_here = 0 < len(self.base) <= 4096 and not self.base.startswith(("\\\\", "//"))
        require(is_here, "its bundle is on no place of this machine")
        require(0 < len(self.loras) <= MAX_LORAS and len(self.changed) <= 3, "its LoRAs or graphs are absurd")
        require(
            {each.file for each in self.changed.values()} == set(self.files), "its files aren't those of its graphs"
        )
        for file in self.files:
            check_relative_path(file)


def overlay_facts(bundle: Bundle) -> OverlayFacts | None:
    """What was merged into a bundle; None for one that is no overlay. Raises BundleError."""
    file = next(iter(bundle.changed.values()), None)
    return None if file is None else _read(file.parent / OVERLAY_NAME)[0]


def _read(path: Path) -> tuple[OverlayFacts, bytes]:
    try:
        text = read_plain(path, MAX_MANIFEST_BYTES)
        return strict_json.read(OverlayFacts, strict_json.parse(text)), text
    except (OSError, Misfit) as error:
        raise BundleError(f"{path} cannot be read: {error}", fix="merge again: tintype merge") from None


def open_overlay(folder: Path) -> Bundle:
    """The bundle that an overlay is of, with its weights. Raises BundleError where either isn't what it was."""
    path = folder / OVERLAY_NAME
    facts, text = _read(path)
    try:
        base = open_model(bundle_folder(facts.base))
    except BundleError as error:
        raise error.with_fix(f"bring the bundle back to {facts.base}, or merge again: tintype merge") from None
    if base.hash != facts.base_hash:
        raise BundleError(
            f"{folder} is an overlay of the bundle {facts.base_hash[:12]}, and {facts.base} is {base.hash[:12]} by now",
            fix="bring that bundle back, or merge again: tintype merge",
        )
    digest = hashlib.sha256(text).hexdigest()
    check_hashes(folder, facts.files, digest)
    unknown = [role for role in facts.changed if role not in base.manifest.graphs]
    if unknown:
        raise BundleError(f"{path} changes {unknown[0]}, which its bundle doesn't have", fix=COPY_AGAIN)
    changed = {role: folder / each.file for role, each in facts.changed.items()}
    return replace(base, manifest=replace(base.manifest, name=facts.name), hash=digest, changed=changed)
