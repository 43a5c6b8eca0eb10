"""int8 graphs in plain sessions of ONNX Runtime, whose sums saturate on x86 without VNNI."""

from __future__ import annotations

import onnx_ir as ir

from tintype.engine import has_ability
from tintype.engine.device.providers import TARGETS
from tintype.kernels.cpu.unsigned_weights import UnsignedWeights
from tintype.kernels.registry import lower


def hold_sums(model: ir.Model) -> bool:
    """Where uint8 times int8 saturates: the same numbers as uint8 weights, in place. Whether anything was changed."""
    if has_ability(TARGETS["cpu"], "mixed_products"):
        return False
    return bool(lower(model, "cpu", kernels=[UnsignedWeights()]).as_dict())
