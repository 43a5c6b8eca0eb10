"""An overlay: a bundle seen through LoRAs that are merged into its weights. It holds what changed, and nothing else.

A folder with overlay.json, which names the bundle by its hash and its place, and for each graph that changed a
.safetensors file of weights, by the names of the graph's own. What is opened is the bundle with another name and
another hash, so that its builds are its own. Where the bundle is gone, so is what an overlay of it can draw.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tintype import strict_json
from tintype.adapters.facts import LoraFacts
from tintype.adapters.files import AdapterLayer
from tintype.adapters.forms import pair_of, whole_delta
from tintype.adapters.given import GivenLora, open_loras
from tintype.adapters.joined import fitting
from tintype.adapters.names import DENOISER
from tintype.bounds import MAX_LORAS, MAX_MANIFEST_BYTES
from tintype.bundle.bundle import Bundle, open_bundle
from tintype.bundle.controlnet import ControlManifest, read_any_manifest
from tintype.bundle.library import OVERLAY_NAME
from tintype.bundle.listing import check_relative_path
from tintype.bundle.manifest import COPY_AGAIN, MANIFEST_NAME, FileFacts, Manifest
from tintype.bundle.verify import check_hashes
from tintype.errors import BundleError, LoraError, OutputError
from tintype.files import output_error, read_plain, sha256_of, write_text
from tintype.strict_json import Misfit, require
from tintype.uses import GraphRef

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


def is_overlay(folder: Path) -> bool:
    """Whether a folder has an overlay's facts, whatever they say."""
    try:
        return (folder / OVERLAY_NAME).is_file() and not (folder / MANIFEST_NAME).exists()
    except (OSError, ValueError):
        return False


def open_overlay(folder: Path) -> Bundle:
    """The bundle that an overlay is of, with its weights. Raises BundleError where either isn't what it was."""
    path = folder / OVERLAY_NAME
    try:
        text = read_plain(path, MAX_MANIFEST_BYTES)
        facts = strict_json.read(OverlayFacts, strict_json.parse(text))
    except (OSError, Misfit) as error:
        raise BundleError(f"{path} cannot be read: {error}", fix="merge again: tintype merge") from None
    try:
        base = open_bundle(facts.base)
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


def facts_of(folder: Path) -> tuple[Manifest | ControlManifest, str, int, tuple[str, ...]]:
    """What a bundle of either kind, or an overlay, says of itself: the manifest, the hash, and its own bytes and files,
    of which the last one tells that it is there. The files are not looked at, but for those of an overlay. Raises
    BundleError."""
    if not is_overlay(folder):
        manifest, digest = read_any_manifest(folder)
        total = sum(file.bytes for file in manifest.files.values())
        return manifest, digest, total, (*manifest.files, MANIFEST_NAME)
    opened = open_overlay(folder)
    files = tuple(path.relative_to(folder).as_posix() for path in opened.changed.values())
    total = sum((folder / name).stat().st_size for name in files)
    return opened.manifest, opened.hash, total, (*files, OVERLAY_NAME)


def merge(bundle: Bundle, loras: Any, folder: Path) -> OverlayFacts:
    """Write an overlay of a bundle with LoRAs merged into its weights, of every kind that is known here.

    loras: as a request has them, without a schedule. folder: where there is none yet. Raises LoraError, OutputError and
    BuildError.
    """
    given = open_loras(loras)
    _demand_mergeable(bundle, given, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            made = Path(scratch) / "overlay"
            made.mkdir()
            facts = _write(bundle, given, made, folder.name)
            shutil.move(made, folder)
    except OSError as error:
        raise output_error(folder, error) from None
    return facts


def _demand_mergeable(bundle: Bundle, given: tuple[GivenLora, ...], folder: Path) -> None:
    if not given:
        raise LoraError("there is no LoRA to merge", fix="give one: --lora FILE, or --lora FILE=0.8")
    for lora in given:
        if (lora.facts.start, lora.facts.stop) != (0.0, 1.0):
            raise LoraError(
                f"{lora.file.path} counts at some steps alone, and weights are the same at all", fix="leave @ out"
            )
    if bundle.changed:
        raise LoraError(f"{bundle.name} is an overlay itself", fix="merge all LoRAs into the bundle at once")
    if folder.exists():
        raise OutputError(f"{folder} is there already", fix="name a folder that isn't")


def _write(bundle: Bundle, given: tuple[GivenLora, ...], made: Path, name: str) -> OverlayFacts:
    from tintype.engine.build.merge import merge_weights

    changed, files = {}, {}
    for role, by_layer in _changes(bundle, given).items():
        path, changes = made / f"{role}.safetensors", made / "changes.safetensors"
        _save_changes(changes, by_layer)
        merged = merge_weights(bundle.graph_path(role), changes, path)
        changes.unlink()
        snr_db = None if np.isinf(merged.snr_db) else round(merged.snr_db, 2)
        changed[role] = Changed(file=path.name, layers=merged.layers, snr_db=snr_db)
        files[path.name] = FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
    facts = OverlayFacts(
        name=name,
        base=str(bundle.folder),
        base_hash=bundle.hash,
        loras=tuple(lora.facts for lora in given),
        changed=changed,
        files=files,
    )
    write_text(made / OVERLAY_NAME, strict_json.dump(strict_json.plain(facts)) + "\n")
    return facts


ByLayer = dict[tuple[str, tuple[int, ...]], list[tuple[GivenLora, AdapterLayer, float]]]


def _changes(bundle: Bundle, given: Iterable[GivenLora]) -> dict[str, ByLayer]:
    from tintype.engine import adaptable_shapes

    roles = [role for role in bundle.manifest.graph_names if role == DENOISER or role in bundle.manifest.text_encoders]
    found: dict[str, ByLayer] = {}
    for lora in given:
        for role, name, layer in fitting(
            lora, roles, lambda role: adaptable_shapes(bundle, GraphRef(role)), bundle.name
        ):
            weight = lora.facts.weight * lora.facts.factor(role, name)
            if weight:
                shape = adaptable_shapes(bundle, GraphRef(role)).shapes[name]
                found.setdefault(role, {}).setdefault((name, shape), []).append((lora, layer, weight))
    return found


def _save_changes(path: Path, by_layer: ByLayer) -> None:
    """As `engine.build.merge` reads them."""
    from safetensors.numpy import save_file

    tensors = {}
    for (name, shape), changes in by_layer.items():
        for number, (lora, layer, weight) in enumerate(changes):
            start = f"{name}|{number}|"
            tensors[f"{start}weight"] = np.array([weight], np.float32)
            if layer.kind == "lora":
                pair = pair_of(lora.file, layer, shape)
                tensors[f"{start}down"], tensors[f"{start}up"] = pair.down.reshape(len(pair.down), -1), pair.up
            else:
                tensors[f"{start}delta"] = whole_delta(lora.file, layer, shape).reshape(shape[0], -1)
            magnitudes = _magnitudes(lora, layer, shape)
            if magnitudes is not None:
                tensors[f"{start}magnitudes"] = magnitudes
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)


def _magnitudes(lora: GivenLora, layer: AdapterLayer, shape: tuple[int, ...]) -> Any:
    """(outputs, 1), or (1, inputs) where a kohya file has them by input. Raises LoraError for any other shape."""
    part = next((part for part in ("magnitude", "dora") if part in layer.parts), None)
    if part is None:
        return None
    (numbers,) = lora.file.read(layer.parts[part])
    by_input = part == "dora" and numbers.ndim > 1 and numbers.shape[0] == 1 and numbers.shape[1] > 1
    wanted = shape[1] if by_input else shape[0]
    if numbers.size != wanted:
        raise LoraError(
            f"{layer.parts[part]} of {lora.file.path} has {numbers.size:,} numbers, not {wanted:,}",
            fix="download the file again, or take another LoRA",
        )
    return numbers.reshape((1, -1) if by_input else (-1, 1))
