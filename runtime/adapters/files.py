"""A file of a LoRA or its kin, read and checked whole: what isn't a sound one is refused by name.

An `AdapterFile` that `open_adapter` returned has a sound header, numbers that are all finite, and for each layer that
it names the tensors that one kind of adapter consists of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tintype.adapters.alphas import CONFIG, layer_of, read_config, told_alphas
from tintype.adapters.names import PEFT, split_name
from tintype.adapters.tensor_file import Identity, TensorFile, check_numbers, identity_of, no_such, sound_header
from tintype.errors import LoraError, RequestError
from tintype.recent import Recent
from tintype.sources.header import Header

# The parts that a layer has to have, and those that it may have, by kind of adapter.
KINDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "lora": (frozenset({"down", "up"}), frozenset({"mid"})),
    "loha": (frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}), frozenset({"t1", "t2"})),
    "lokr": (frozenset(), frozenset({"k1", "k1_a", "k1_b", "k2", "k2_a", "k2_b", "k2_t"})),
    "full": (frozenset({"diff"}), frozenset()),
}
ANYWAY = frozenset({"alpha", "magnitude", "dora"})
_DOWNLOAD = "download the file again, or take another LoRA"
_opened: Recent[Identity, AdapterFile] = Recent(16)


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """What a file has for one layer. parts: the names of its tensors by what they are, see `names.PARTS`."""

    name: str  # as the file has it
    kind: str  # of KINDS
    parts: Mapping[str, str]
    alpha: float | None  # None: as large as the rank


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFile(TensorFile):
    """layers: by their name there. config: PEFT's, beside a file of its own, whose bytes then count in sha256 too."""

    what: ClassVar[str] = "LoRA"
    error: ClassVar[type[RequestError]] = LoraError

    layers: Mapping[str, AdapterLayer]
    config: Identity | None = None


def open_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read and check a file; one that was read before and is as it was isn't read again. Raises LoraError."""
    path = Path(path)
    identity = identity_of(AdapterFile, path)
    if path.is_dir():
        raise LoraError(f"{path} is a folder, and no LoRA", fix=f"give a file: {_file_in(path)}")
    known = _opened.get(identity)
    if known is None or (known.config is not None and known.config != _config_of(path)):
        known = _opened.put(identity, _open(path, identity))
    return known


def _file_in(folder: Path) -> Path | str:
    try:
        return min(each for each in folder.iterdir() if each.suffix == ".safetensors")
    except (OSError, ValueError):  # there is none
        return "one that is a .safetensors"


def _config_of(path: Path) -> Identity | None:
    try:
        return identity_of(AdapterFile, path.with_name(CONFIG))
    except LoraError:
        return None


def _open(path: Path, identity: Identity) -> AdapterFile:
    header, alphas = sound_header(AdapterFile, path, split_name), dict[str, float]()
    is_pefts = any(name.startswith(PEFT) for name in header.tensors)
    beside, config = (_config_of(path), read_config(path)) if is_pefts else (None, None)

    def look(name: str, numbers: NDArray[np.float32]) -> None:
        if name.endswith(".alpha") and numbers.size == 1:
            alphas[name] = float(numbers.reshape(-1)[0])

    digest = check_numbers(AdapterFile, path, header, look)
    if config is not None:
        digest = hashlib.sha256(bytes.fromhex(digest) + config).hexdigest()
    return AdapterFile(path, digest, header, identity, _layers(path, header, alphas, config), beside)


def _layers(path: Path, header: Header, alphas: Mapping[str, float], config: bytes | None) -> dict[str, AdapterLayer]:
    parts: dict[str, dict[str, str]] = {}
    unknown = []
    for tensor in header.tensors:
        split = split_name(tensor)
        if split is None:
            unknown.append(tensor)
        else:
            parts.setdefault(layer_of(path, split[0]), {})[split[1]] = tensor
    if not parts:
        raise no_such(
            AdapterFile,
            path,
            header,
            f"nothing in it is called as parts of one are, and it has {_first(unknown)}",
            fix="give a LoRA, LoCon, LoHa, LoKr or DoRA of Stable Diffusion 1.x, 2.x or XL as .safetensors",
        )
    if unknown:
        raise LoraError(
            f"{path} holds what isn't known here: {_first(unknown)}",
            fix="give a LoRA, LoCon, LoHa, LoKr or DoRA; merge others into the checkpoint before it is exported",
        )
    told = told_alphas(path, header, parts, config)
    return {name: _layer(path, header, name, each, alphas, told) for name, each in parts.items()}


def _layer(
    path: Path,
    header: Header,
    name: str,
    parts: Mapping[str, str],
    alphas: Mapping[str, float],
    told: Mapping[str, float],
) -> AdapterLayer:
    given = parts.keys() - ANYWAY
    kind = next((kind for kind, (needs, may) in KINDS.items() if given and needs <= given <= needs | may), None)
    if kind == "lokr" and not all(given & {f"k{n}", f"k{n}_a"} for n in "12"):
        kind = None
    if kind is None:
        raise LoraError(f"{name} of {path} is incomplete: it has {', '.join(sorted(parts))} alone", fix=_DOWNLOAD)
    for tensor in parts.values():
        if 0 in header.tensors[tensor].shape:
            raise LoraError(f"{tensor} of {path} is empty: it has the rank 0", fix=_DOWNLOAD)
    alpha = alphas.get(parts["alpha"]) if "alpha" in parts else told.get(name)
    if "alpha" in parts and alpha is None:
        raise LoraError(f"{parts['alpha']} of {path} is no number", fix=_DOWNLOAD)
    return AdapterLayer(name, kind, parts, alpha)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(json.dumps(name[:100]) for name in names[:3]) + more if names else "nothing"
