"""A file of a LoRA or its kin, read and checked whole: what isn't a sound one is refused by name.

An `AdapterFile` that `open_adapter` returned has a sound header, numbers that are all finite, and for each layer that
it names the tensors that one kind of adapter consists of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype import strict_json
from tintype.adapters.names import PEFT, split_name
from tintype.bounds import MAX_ADAPTER_BYTES, MAX_ADAPTER_TENSOR_BYTES
from tintype.errors import ExportError, LoraError
from tintype.files import open_plain
from tintype.recent import Recent
from tintype.sources.header import Header, read_header
from tintype.sources.numbers import READABLE, floats_of

# The parts that a layer has to have, and those that it may have, by kind of adapter.
KINDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "lora": (frozenset({"down", "up"}), frozenset({"mid"})),
    "loha": (frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}), frozenset({"t1", "t2"})),
    "lokr": (frozenset(), frozenset({"k1", "k1_a", "k1_b", "k2", "k2_a", "k2_b", "k2_t"})),
    "full": (frozenset({"diff"}), frozenset()),
}
ANYWAY = frozenset({"alpha", "magnitude", "dora"})
_DOWNLOAD = "download the file again, or take another LoRA"
_opened: Recent[tuple[str, int, int, int], AdapterFile] = Recent(16)


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """What a file has for one layer. parts: the names of its tensors by what they are, see `names.PARTS`."""

    name: str  # as the file has it
    kind: str  # of KINDS
    parts: Mapping[str, str]
    alpha: float | None  # None: as large as the rank

    @property
    def is_decomposed(self) -> bool:
        """Whether the file says how large each row of the changed weight is (DoRA: Liu et al. 2024)."""
        return "magnitude" in self.parts or "dora" in self.parts


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFile:
    """sha256: of the whole file. layers: by their name there."""

    path: Path
    sha256: str
    header: Header
    layers: Mapping[str, AdapterLayer]
    identity: tuple[str, int, int, int] = field(repr=False)

    @property
    def name(self) -> str:
        return self.path.stem

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.header.tensors[tensor].shape

    def read(self, *tensors: str) -> Iterator[NDArray[np.float32]]:
        """Tensors as floats. Raises LoraError where the file isn't what it was when it was opened."""
        try:
            with open_plain(self.path, MAX_ADAPTER_BYTES) as file:
                if _identity(self.path, os.fstat(file.fileno())) != self.identity:
                    raise LoraError(f"{self.path} changed while it was used", fix="draw again")
                for tensor in tensors:
                    facts = self.header.tensors[tensor]
                    file.seek(8 + self.header.header_bytes + facts.start)
                    yield floats_of(file.read(facts.bytes), facts.dtype).reshape(facts.shape)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from None


def open_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read and check a file; one that was read before and is as it was isn't read again. Raises LoraError."""
    path = Path(path)
    try:
        identity = _identity(path, path.stat())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return _opened.get(identity) or _opened.put(identity, _open(path, identity))


def _open(path: Path, identity: tuple[str, int, int, int]) -> AdapterFile:
    try:
        header = read_header(path)
    except ExportError as error:
        raise LoraError(error.message, fix=error.fix.replace("the checkpoint", "the LoRA")) from None
    odd = [name for name, facts in header.tensors.items() if facts.dtype not in READABLE and split_name(name)]
    if odd:
        raise LoraError(
            f"{odd[0]} of {path} is of the type {header.tensors[odd[0]].dtype}", fix="save it as F16 or F32"
        )
    large = [name for name, facts in header.tensors.items() if facts.bytes > MAX_ADAPTER_TENSOR_BYTES]
    if large:
        raise LoraError(
            f"{large[0]} of {path} has {header.tensors[large[0]].bytes:,} bytes, which no LoRA has", fix=_DOWNLOAD
        )
    digest, alphas = _check_numbers(path, header)
    return AdapterFile(path, digest, header, _layers(path, header, alphas), identity)


def _check_numbers(path: Path, header: Header) -> tuple[str, dict[str, float]]:
    """The sha256 of a file, and the alphas in it. Raises LoraError for what isn't finite."""
    digest, alphas = hashlib.sha256(), dict[str, float]()
    try:
        with open_plain(path, MAX_ADAPTER_BYTES) as file:
            digest.update(file.read(8 + header.header_bytes))
            for name, facts in sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].bytes)):
                data = file.read(facts.bytes)
                digest.update(data)
                if facts.dtype not in READABLE:
                    continue
                numbers = floats_of(data, facts.dtype)
                if not np.isfinite(numbers).all():
                    raise LoraError(f"{name} of {path} holds NaN or infinity: the LoRA is broken", fix=_DOWNLOAD)
                if name.endswith(".alpha") and numbers.size == 1:
                    alphas[name] = float(numbers.reshape(-1)[0])
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest(), alphas


def _layers(path: Path, header: Header, alphas: Mapping[str, float]) -> dict[str, AdapterLayer]:
    parts: dict[str, dict[str, str]] = {}
    unknown = []
    for tensor in header.tensors:
        split = split_name(tensor)
        if split is None:
            unknown.append(tensor)
        else:
            parts.setdefault(split[0], {})[split[1]] = tensor
    if not parts:
        raise LoraError(
            f"{path} is no LoRA: nothing in it is called as parts of one are, such as {_first(unknown)}",
            fix="give a LoRA, LoCon, LoHa, LoKr or DoRA of Stable Diffusion 1.x, 2.x or XL as .safetensors",
        )
    if unknown:
        raise LoraError(
            f"{path} holds what isn't known here: {_first(unknown)}",
            fix="give a LoRA, LoCon, LoHa, LoKr or DoRA; merge others into the checkpoint before it is exported",
        )
    told = _told_alphas(path, header, parts)
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


def _told_alphas(path: Path, header: Header, layers: Mapping[str, Any]) -> dict[str, float]:
    """By layer the alpha that a file's metadata tells, as diffusers writes it since 0.34, which has none in tensors."""
    text = header.metadata.get("lora_adapter_metadata")
    if text is None:
        if any(name.startswith(PEFT) for name in layers):
            raise LoraError(
                f"{path} is in PEFT's own form, whose alphas lie in adapter_config.json",
                fix="save it by diffusers: pipeline.save_lora_weights(...)",
            )
        return {}
    try:
        told = strict_json.parse(text)
    except strict_json.Misfit as misfit:
        raise LoraError(f"in the metadata of {path}, {misfit}", fix=_DOWNLOAD) from None
    found = {}
    for name in layers:
        start, _, rest = name.partition(".")
        alpha = _number(told, f"{start}.lora_alpha")
        patterns = told.get(f"{start}.alpha_pattern") if isinstance(told, dict) else None
        for ending in patterns if isinstance(patterns, dict) else ():
            if rest == ending or rest.endswith(f".{ending}"):
                alpha = _number(patterns, ending)
        if isinstance(told, dict) and told.get(f"{start}.use_rslora") is True and alpha is not None:
            raise LoraError(f"{path} was trained with rsLoRA, which isn't done here", fix="save it with alphas")
        if alpha is not None:
            found[name] = alpha
    return found


def _number(told: Any, key: str) -> float | None:
    value = told.get(key) if isinstance(told, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(json.dumps(name[:100]) for name in names[:3]) + more if names else "nothing"


def _identity(path: Path, facts: os.stat_result) -> tuple[str, int, int, int]:
    return str(path.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ino


def _unreadable(path: Path, error: OSError | ValueError) -> LoraError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return LoraError(f"the LoRA {path} cannot be read: {reason}", fix="check its name, and that it may be read")
