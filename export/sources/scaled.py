"""One file's weights without the scales beside them, and which scale is whose; see `tintype.sources.scaled`.

`x.input_scale` (`x.scale_input`) is for hardware that multiplies in fp8, `scaled_fp8` says that the file is of this
kind, `x.comfy_quant` what one layer is: JSON as bytes. None of them changes a weight of fp8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tintype import strict_json
from tintype.errors import ExportError
from tintype.export.sources.entries import Entries
from tintype.sources.header import Header, broken
from tintype.sources.scaled import OTHER_FORMAT, SCALED, SCALES, format_told, other_format, scales_of
from tintype.strict_json import Misfit

MARK, LAYER_MARK, INPUT_SCALES = "scaled_fp8", ".comfy_quant", (".input_scale", ".scale_input")
MAX_MARK_BYTES = 4096


def without_scales(header: Header) -> tuple[Header, dict[str, str]]:
    """The header of the weights alone, and the name of each one's scale by its own.

    Raises ExportError for a file that isn't sound, and for every other format, by name.
    """
    scales = scales_of(header)
    found = other_format(header) or _marked_format(header, scales)
    if found is not None:
        raise ExportError(f"{header.path} has weights in {found}, which isn't read here", fix=OTHER_FORMAT)
    kept = {
        name: facts
        for name, facts in header.tensors.items()
        if not name.endswith((*SCALES, *INPUT_SCALES, LAYER_MARK)) and name.rpartition(".")[2] != MARK
    }
    return replace(header, tensors=kept), scales


def with_scales(entries: Mapping[str, Entries], scales: Mapping[str, str]) -> dict[str, Entries]:
    """The entries of each component, each with its scale."""
    return {
        component: {name: replace(entry, scale=scales.get(entry.name)) for name, entry in each.items()}
        for component, each in entries.items()
    }


def _marked_format(header: Header, scales: Mapping[str, str]) -> str | None:
    """What a layer's mark says of another format than scaled fp8; ExportError where its tensors are others."""
    from safetensors import SafetensorError, safe_open

    names = [name for name in header.tensors if name.endswith(LAYER_MARK)]
    if not names:
        return None
    try:
        with safe_open(header.path, framework="np") as file:
            for name in names:
                told = _mark(header, name, file)
                other = format_told(told)
                if other is not None:
                    return other
                weight = f"{name.removesuffix(LAYER_MARK)}.weight"
                if weight not in scales or header.tensors[weight].dtype != SCALED[told["format"]]:
                    raise Misfit(f"{weight} isn't in {told['format']} with a scale")
    except Misfit as misfit:
        raise broken(header.path, f"by {name}, {misfit}") from None
    except (SafetensorError, OSError) as error:
        raise broken(header.path, str(error)) from None
    return None


def _mark(header: Header, name: str, file: Any) -> Any:
    """What one layer's mark says. file: of safetensors', open."""
    facts = header.tensors[name]
    if facts.dtype != "U8" or facts.bytes > MAX_MARK_BYTES:
        raise Misfit(f"{facts.dtype} of shape {facts.shape} is no text")
    return strict_json.parse(file.get_tensor(name).tobytes())
