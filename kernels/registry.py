"""Which kernels a target has, in the order they are tried. What no kernel matches stays as it is, and stays right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.kernels.attention import AttentionAsMultiHead
from tintype.kernels.base import MICROSOFT, Kernel, Shapes
from tintype.kernels.dynamic_linear import DynamicLinear
from tintype.kernels.embedding import EmbeddingRows, ExplicitZeroPoint
from tintype.kernels.fused_qkv import FusedQkv
from tintype.kernels.geglu import GegluAsTwoLinears
from tintype.kernels.group_norm import GroupNormAsLayerNorm
from tintype.kernels.upsample_conv import UpsampleConvAsInt8Phases, UpsampleConvAsPhases, UpsampleConvAsProducts
from tintype.kernels.winograd import WinogradConv

_ALL: tuple[Kernel, ...] = (
    AttentionAsMultiHead(),
    GroupNormAsLayerNorm(),
    GegluAsTwoLinears(),  # before DynamicLinear, which then finds the two halves
    DynamicLinear(),
    EmbeddingRows(),
    ExplicitZeroPoint(),
    WinogradConv(2),
    WinogradConv(4),
    WinogradConv(6),
    UpsampleConvAsProducts(),
    UpsampleConvAsPhases(),
    UpsampleConvAsInt8Phases(),
    FusedQkv(),
)
TARGETS = ("cpu", "cuda", "directml", "webgpu")
KERNELS_BY_TARGET: dict[str, tuple[Kernel, ...]] = {
    target: tuple(kernel for kernel in _ALL if target in kernel.targets) for target in TARGETS
}


@dataclass(slots=True)
class LoweringReport:
    """How often each kernel was put in."""

    target: str
    rewrites: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, int]:
        return dict(self.rewrites)


def measured_kernels(target: str, *, exactness: str = "balanced") -> tuple[Kernel, ...]:
    """The kernels that a build chooses between by timing them."""
    return tuple(kernel for kernel in _allowed(target, exactness) if kernel.measured)


def lower(
    model: ir.Model,
    target: str,
    *,
    kernels: Iterable[Kernel] | None = None,
    dims: Mapping[str, int] | None = None,
    exactness: str = "balanced",
) -> LoweringReport:
    """Rewrite a canonical graph in place for a target, with every kernel that need not be measured.

    kernels: what to try in place of all that the target has. dims: named dims that are fixed in this build.
    exactness: `exact` leaves out kernels that round to fewer bits than the graph does.
    """
    report, shapes = LoweringReport(target), Shapes(dims)
    unmeasured = [kernel for kernel in _allowed(target, exactness) if not kernel.measured]
    for kernel in unmeasured if kernels is None else kernels:
        found = [node for node in model.graph if kernel.matches(node, shapes)]
        for node in found:
            kernel.rewrite(node, model.graph)
            report.rewrites[kernel.name] += 1
        if found:  # what no one reads any more would be matched by the next kernel, and counted
            RemoveUnusedNodesPass()(model)
    if report.rewrites:
        model.opset_imports.setdefault(MICROSOFT, 1)
    return report


def _allowed(target: str, exactness: str) -> tuple[Kernel, ...]:
    return tuple(kernel for kernel in KERNELS_BY_TARGET[target] if exactness != "exact" or not kernel.lossy)
