"""LoRAs merged into a bundle's weights: an overlay (`bundle.overlay`), each graph of it by a child process."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tintype import strict_json
from tintype.adapters.files import AdapterLayer
from tintype.adapters.forms import pair_of, whole_delta
from tintype.adapters.given import GivenLora, open_loras
from tintype.adapters.joined import fitting
from tintype.adapters.magnitudes import magnitudes_of
from tintype.adapters.names import DENOISER
from tintype.bundle.bundle import Bundle
from tintype.bundle.library import OVERLAY_NAME
from tintype.bundle.manifest import FileFacts
from tintype.bundle.overlay import Changed, OverlayFacts
from tintype.errors import LoraError, OutputError
from tintype.files import output_error, sha256_of, write_text
from tintype.uses import GraphRef


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
    layers_of = functools.cache(lambda role: adaptable_shapes(bundle, GraphRef(role)))  # a file of the cache each
    found: dict[str, ByLayer] = {}
    for lora in given:
        for role, name, layer in fitting(lora, roles, layers_of, bundle.name):
            weight = lora.facts.weight * lora.facts.factor(role, name)
            if weight:
                shape = layers_of(role).shapes[name]
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
            magnitudes = magnitudes_of(lora.file, layer, shape)
            if magnitudes is not None:
                tensors[f"{start}magnitudes"] = magnitudes
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
