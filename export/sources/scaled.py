"""Weights of 8 bits with a scale beside each, as ComfyUI stores them: a weight is what is stored times its scale.

`x.weight` in fp8 has `x.scale_weight`, one number. `x.scale_input` is for hardware that multiplies in fp8, and
`scaled_fp8` says that the file is of this kind; neither changes a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tintype.export.sources.entries import Entries
from tintype.sources.header import FLOATS, Header, broken

MARK, SCALE, INPUT_SCALE = "scaled_fp8", ".scale_weight", ".scale_input"


def without_scales(header: Header) -> tuple[Header, dict[str, str]]:
    """The header of the weights alone, and the name of each one's scale by its own. Raises ExportError."""
    scales = {f"{name.removesuffix(SCALE)}.weight": name for name in header.tensors if name.endswith(SCALE)}
    for weight, name in scales.items():
        facts = header.tensors[name]
        if weight not in header.tensors:
            raise broken(header.path, f"{name} scales {weight}, which isn't there")
        if facts.size != 1 or facts.dtype not in FLOATS:
            raise broken(header.path, f"{name} is no single float but {facts.dtype} of shape {facts.shape}")
    kept = {
        name: facts
        for name, facts in header.tensors.items()
        if not name.endswith((SCALE, INPUT_SCALE)) and name.rpartition(".")[2] != MARK
    }
    return replace(header, tensors=kept), scales


def with_scales(entries: Mapping[str, Entries], scales: Mapping[str, str]) -> dict[str, Entries]:
    """The entries of each component, each with its scale."""
    return {
        component: {name: replace(entry, scale=scales.get(entry.name)) for name, entry in each.items()}
        for component, each in entries.items()
    }
