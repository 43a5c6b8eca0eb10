"""Which kernels a target has, in the order they are tried. What no kernel matches stays as it is, and stays right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.kernels.attention import AttentionAsMultiHead
from tintype.kernels.attention_products import AttentionAsProducts
from tintype.kernels.base import MICROSOFT, Kernel, Shapes
from tintype.kernels.channel_affine import ChannelAffineAsBatchNorm
from tintype.kernels.dynamic_linear import DynamicLinear
from tintype.kernels.embedding import EmbeddingRows, ExplicitZeroPoint
from tintype.kernels.fused_qkv import FusedQkv
from tintype.kernels.geglu import GegluAsTwoLinears
from tintype.kernels.gelu import GeluAsMicrosofts
from tintype.kernels.group_norm import GroupNormAsLayerNorm
from tintype.kernels.group_norm_instance import GroupNormAsInstanceNorm
from tintype.kernels.group_norm_nhwc import GroupNormChannelsLast
from tintype.kernels.half import to_half
from tintype.kernels.opset import to_opset
from tintype.kernels.plain_float import FloatActivations, FloatRows, FloatWeights
from tintype.kernels.upsample_conv import UpsampleConvAsInt8Phases, UpsampleConvAsPhases, UpsampleConvAsProducts
from tintype.kernels.winograd import WinogradConv

_ALL: tuple[Kernel, ...] = (
    FloatActivations(),
    FloatWeights(),
    FloatRows(),
    AttentionAsMultiHead(),
    AttentionAsProducts(),  # what a device cannot run as one node
    GroupNormAsLayerNorm(),
    GroupNormChannelsLast(),
    GroupNormAsInstanceNorm(),  # on CUDA what is no picture
    GeluAsMicrosofts(),
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
    ChannelAffineAsBatchNorm(),
)
PLAIN_TARGETS = ("openvino", "coreml", "qnn", "tensorrt-rtx")  # operators that every provider knows
TARGETS = ("cpu", "cuda", "directml", "webgpu", *PLAIN_TARGETS)
PINNED_TARGETS = ("directml",)  # whose graphs have to have a number for every dim
# Where a `balanced` build computes in float16, if the device has shown that it can.
HALF_TARGETS = ("webgpu", "directml")
# The newest operator set that a provider has kernels for, where that is older than the canonical graphs'.
NEWEST_OPSET: Mapping[str, int] = {"directml": 20}
KERNELS_BY_TARGET: dict[str, tuple[Kernel, ...]] = {
    target: tuple(kernel for kernel in _ALL if target in kernel.targets) for target in TARGETS
}


def kernels_for(target: str, abilities: Collection[str] = (), *, exactness: str = "balanced") -> tuple[Kernel, ...]:
    """A target's kernels that need not be measured, without those that need more than the device has shown.

    exactness: `exact` leaves out kernels that round to fewer bits than the graph does.
    """
    return tuple(
        kernel
        for kernel in _allowed(target, exactness)
        if not kernel.measured and (target not in kernel.needs or kernel.needs[target] in abilities)
    )


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
) -> LoweringReport:
    """Rewrite a canonical graph in place for a target.

    kernels: what to try in place of all that the target has and that any device can do (`kernels_for`).
    dims: named dims that are fixed in this build.
    """
    report, shapes = LoweringReport(target), Shapes(dims)
    for kernel in kernels_for(target) if kernels is None else kernels:
        found = [node for node in model.graph if kernel.matches(node, shapes)]
        for node in found:
            kernel.rewrite(node, model.graph)
            report.rewrites[kernel.name] += 1
        if found:  # what no one reads any more would be matched by the next kernel, and counted
            RemoveUnusedNodesPass()(model)
    if report.rewrites:
        model.opset_imports.setdefault(MICROSOFT, 1)
    return report


def finish(model: ir.Model, target: str, abilities: Collection[str] = (), *, exactness: str = "balanced") -> int:
    """What is done to a whole graph once its kernels are in: float16 and operator set; in place.

    Returns how many nodes compute in float16. Raises ValueError when an operator is newer than the target's.
    """
    half = 0
    if target in HALF_TARGETS:
        complete_types(model)
    if target in HALF_TARGETS and "float16" in abilities and exactness != "exact":
        half = to_half(model)
        RemoveUnusedNodesPass()(model)  # the weights as they were
    if target in NEWEST_OPSET:
        to_opset(model, NEWEST_OPSET[target])
    return half


def complete_types(model: ir.Model) -> None:
    """Give an element type to what kernels put in without one: but for shapes, such nodes give what they take."""
    for node in model.graph:
        for output in node.outputs:
            given = _type_given(node) if output.dtype is None else None
            if given is not None:
                output.dtype = given


def _type_given(node: ir.Node) -> ir.DataType | None:
    if node.op_type in ("Shape", "Size"):
        return ir.DataType.INT64
    if node.op_type == "Cast":
        return ir.DataType(node.attributes.get_int("to", 0))
    if node.op_type == "ConstantOfShape":
        return node.attributes["value"].as_tensor().dtype if "value" in node.attributes else ir.DataType.FLOAT
    if node.op_type in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not"):
        return ir.DataType.BOOL
    wanted = node.inputs[1:] if node.op_type == "Where" else node.inputs
    return next((value.dtype for value in wanted if value is not None), None)


def _allowed(target: str, exactness: str) -> tuple[Kernel, ...]:
    return tuple(
        kernel
        for kernel in KERNELS_BY_TARGET[target]
        if not (kernel.lossy if exactness == "exact" else target in kernel.exact_only)
    )
