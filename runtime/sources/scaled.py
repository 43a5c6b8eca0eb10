"""Weights of 8 bits with a scale beside each, as ComfyUI stores them: a weight is what is stored times its scale.

`x.weight` in fp8 has one number beside it, `x.weight_scale` or, in older files, `x.scale_weight`. Other formats have
the same names: more scales than one, weights that are integers, two in a byte. Those are told by types and shapes, and
by what the header says of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tintype import strict_json
from tintype.sources.header import FLOATS, Header, TensorFacts, broken
from tintype.strict_json import Misfit

# By a format's name the type of its weights: what is multiplied by one scale.
SCALED = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
SCALES = (".weight_scale", ".scale_weight")
METADATA = "_quantization_metadata"  # {"layers": {name: facts}}, in the header
OTHER_FORMAT = (
    "export the same checkpoint in fp16, bf16 or scaled fp8 (float8_e4m3fn); --precision int8 makes the bundle as small"
)
_HARMLESS = ("format", "full_precision_matrix_mult")  # the latter is of how ComfyUI multiplies


def scales_of(header: Header) -> dict[str, str]:
    """By the name of a weight that of its scale. Raises ExportError for scales without a weight, and two of one."""
    found: dict[str, str] = {}
    for name in header.tensors:
        end = next((end for end in SCALES if name.endswith(end)), None)
        if end is None:
            continue
        weight = f"{name.removesuffix(end)}.weight"
        if weight not in header.tensors:
            raise broken(header.path, f"{name} scales {weight}, which isn't there")
        if weight in found:
            raise broken(header.path, f"{weight} has two scales, {found[weight]} and {name}")
        found[weight] = name
    return found


def other_format(header: Header) -> str | None:
    """The first format of a file's weights that isn't fp8 with one scale a weight; None where there is none."""
    for weight, scale in scales_of(header).items():
        name = _format_of(header.tensors[weight], header.tensors[scale], f"{scale}_2" in header.tensors)
        if name is not None:
            return name
    try:
        told = strict_json.parse(header.metadata.get(METADATA, "{}"))
        layers = told.get("layers", {}) if isinstance(told, dict) else None
        if not isinstance(layers, dict):
            raise Misfit("it has no layers by name")
        return next(filter(None, map(format_told, layers.values())), None)
    except Misfit as misfit:
        raise broken(header.path, f"in its {METADATA}, {misfit}") from None


def format_told(facts: Any) -> str | None:
    """The format that a layer is said to have, where it is none of `SCALED`. Raises Misfit for what says none."""
    if not isinstance(facts, Mapping) or not isinstance(facts.get("format"), str):
        raise Misfit("a layer has no format")
    more = [str(key) for key, value in facts.items() if key not in _HARMLESS and value not in (None, False)]
    if facts["format"] in SCALED and not more:
        return None
    return " with ".join([facts["format"], *sorted(more)[:1]])


def _format_of(weight: TensorFacts, scale: TensorFacts, is_scaled_twice: bool) -> str | None:
    """By types and shapes alone."""
    if weight.dtype not in FLOATS:
        return "nvfp4" if is_scaled_twice else {"I8": "int8"}.get(weight.dtype, f"integers ({weight.dtype})")
    if scale.dtype not in FLOATS:
        return "mxfp8" if scale.dtype in ("F8_E8M0", "U8") else f"{FLOATS[weight.dtype]} scaled by {scale.dtype}"
    return None if scale.size == 1 else f"{FLOATS[weight.dtype]} with {scale.size:,} scales a weight"
