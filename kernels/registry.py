"""Which kernels a target has, in the order they are tried. What no kernel matches stays as it is, and stays right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from tintype.kernels.base import DOMAINS, GraphPass, Kernel, Shapes
from tintype.kernels.cpu.channel_affine import ChannelAffineAsBatchNorm
from tintype.kernels.cpu.dynamic_linear import DynamicLinear
from tintype.kernels.cpu.embedding import EmbeddingRows
from tintype.kernels.cpu.float_linear import FloatLinear
from tintype.kernels.cpu.geglu import GegluAsTwoLinears
from tintype.kernels.cpu.group_norm import GroupNormAsLayerNorm
from tintype.kernels.cpu.idle_rounding import IdleRounding
from tintype.kernels.cpu.nbits_linear import NBitsLinear
from tintype.kernels.cpu.unsigned_weights import UnsignedWeights
from tintype.kernels.cpu.upsample_conv import UpsampleConvAsInt8Phases, UpsampleConvAsPhases, UpsampleConvAsProducts
from tintype.kernels.cpu.winograd import WinogradConv
from tintype.kernels.cuda.bias_add import BiasAdd
from tintype.kernels.cuda.bias_split_gelu import BiasSplitGelu
from tintype.kernels.cuda.channels_last import KeepChannelsLast
from tintype.kernels.cuda.float_integers import FloatIntegers
from tintype.kernels.cuda.group_norm_nhwc import GroupNormChannelsLast
from tintype.kernels.cuda.matmul_nbits import LinearNBits
from tintype.kernels.cuda.nhwc_conv import ConvChannelsLast
from tintype.kernels.cuda.skip_group_norm import SkipGroupNorm
from tintype.kernels.graph.half import complete_types, to_half
from tintype.kernels.graph.opset import to_opset
from tintype.kernels.graph.unused import remove_unused
from tintype.kernels.native.attention import NativeAttention, NativeAttentionBfloat16
from tintype.kernels.native.four_bit_linear import (
    NativeFourBitGeglu,
    NativeFourBitIntegerGeglu,
    NativeFourBitIntegerLinear,
    NativeFourBitLinear,
)
from tintype.kernels.native.group_norm import NativeGroupNorm
from tintype.kernels.native.integer_conv import NativeIntegerConv, NativeIntegerUpsample
from tintype.kernels.native.integer_linear import NativeIntegerGeglu, NativeIntegerLinear
from tintype.kernels.native.joined_convs import JoinedIntegerConvs
from tintype.kernels.native.linear import NativeGeglu, NativeLinear
from tintype.kernels.native.pointwise import NativePointwise
from tintype.kernels.native.winograd import NativeWinograd, NativeWinogradFew, NativeWinogradLean
from tintype.kernels.portable.attention import AttentionAsMultiHead
from tintype.kernels.portable.attention_products import AttentionAsProducts
from tintype.kernels.portable.gelu import GeluAsMicrosofts
from tintype.kernels.portable.group_norm_instance import GroupNormAsInstanceNorm
from tintype.kernels.portable.plain_float import FloatActivations, FloatRows, FloatScales, FloatWeights

Rewrite = Kernel | GraphPass

_ALL: tuple[Rewrite, ...] = (
    FloatScales(),  # before whoever reads what they are scales of
    FloatActivations(),
    UnsignedWeights(),  # before the others look at weights
    LinearNBits(),  # before the others take what is stored as integers
    FloatWeights(),
    FloatIntegers(),
    FloatRows(),
    AttentionAsMultiHead(),
    AttentionAsProducts(),  # what a device cannot run as one node
    GroupNormAsLayerNorm(),
    GroupNormChannelsLast(),
    GroupNormAsInstanceNorm(),  # on CUDA what is no picture, and in `exact` builds everything
    ConvChannelsLast(),
    KeepChannelsLast(),
    SkipGroupNorm(),  # finds sums with channels last
    BiasSplitGelu(),
    BiasAdd(),
    GeluAsMicrosofts(),
    GegluAsTwoLinears(),  # before DynamicLinear, which then finds the two halves
    DynamicLinear(),
    NBitsLinear(),
    EmbeddingRows(),
    WinogradConv(2),
    WinogradConv(4),
    WinogradConv(6),
    NativeWinograd(),
    NativeWinogradFew(),
    NativeWinogradLean(),
    NativePointwise(),
    UpsampleConvAsProducts(),
    UpsampleConvAsPhases(),
    UpsampleConvAsInt8Phases(),
    FloatLinear(),
    NativeLinear(),
    NativeGeglu(),
    NativeIntegerConv(),
    NativeIntegerUpsample(),
    NativeIntegerLinear(),
    NativeIntegerGeglu(),
    NativeFourBitLinear(),
    NativeFourBitGeglu(),
    NativeFourBitIntegerLinear(),
    NativeFourBitIntegerGeglu(),
    NativeAttention(),
    NativeAttentionBfloat16(),
    NativeGroupNorm(),
    ChannelAffineAsBatchNorm(),  # where that one didn't win
)
TIDYING: tuple[GraphPass, ...] = (IdleRounding(), JoinedIntegerConvs())  # once kernels are chosen, see `tidy`
PLAIN_TARGETS = ("openvino", "coreml", "qnn", "tensorrt-rtx")  # operators that every provider knows
TARGETS = ("cpu", "cuda", "directml", "webgpu", *PLAIN_TARGETS)
PINNED_TARGETS = ("directml",)  # whose graphs have to have a number for every dim
# Where a `balanced` build computes in float16, if the device has shown that it can.
HALF_TARGETS = ("cuda", "webgpu", "directml")
# The newest operator set that a provider has kernels for, where that is older than the canonical graphs'.
NEWEST_OPSET: Mapping[str, int] = {"directml": 20}
KERNELS_BY_TARGET: dict[str, tuple[Rewrite, ...]] = {
    target: tuple(kernel for kernel in _ALL if target in kernel.targets) for target in TARGETS
}


def kernels_for(
    target: str, abilities: Collection[str] = (), *, exactness: str = "balanced", choosing: bool = False
) -> tuple[Rewrite, ...]:
    """A target's kernels that need not be measured, without those that need more than the device has shown.

    exactness: `exact` leaves out kernels that round to fewer bits than the graph does, or whose last bits vary.
    choosing: the others are chosen between later (`measured_kernels`), also those that are put in by default.
    """
    return tuple(
        kernel
        for kernel in _allowed(target, exactness)
        if isinstance(kernel, GraphPass)
        or ((not kernel.measured or (kernel.by_default and not choosing)) and _can(kernel, target, abilities))
    )


@dataclass(slots=True)
class LoweringReport:
    """How often each kernel was put in."""

    target: str
    rewrites: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, int]:
        return {name: count for name, count in self.rewrites.items() if count}


def measured_kernels(
    target: str, abilities: Collection[str] = (), *, exactness: str = "balanced"
) -> tuple[Kernel, ...]:
    """The kernels that a build chooses between by timing them, without those that need what the device hasn't shown."""
    return tuple(
        kernel
        for kernel in _allowed(target, exactness)
        if isinstance(kernel, Kernel) and kernel.measured and _can(kernel, target, abilities)
    )


def lower(
    model: ir.Model,
    target: str,
    *,
    kernels: Iterable[Rewrite] | None = None,
    dims: Mapping[str, int] | None = None,
) -> LoweringReport:
    """Rewrite a canonical graph in place for a target.

    kernels: what to try in place of all that the target has and that any device can do (`kernels_for`).
    dims: named dims that are fixed in this build.
    """
    report, shapes = LoweringReport(target), Shapes(dims)
    for kernel in kernels_for(target) if kernels is None else kernels:
        if isinstance(kernel, GraphPass):
            report.rewrites[kernel.name] += kernel.apply(model)
            remove_unused(model)
            continue
        found = [node for node in model.graph if kernel.matches(node, shapes)]
        for node in found:
            kernel.rewrite(node, model.graph)
            report.rewrites[kernel.name] += 1
        if found:  # what no one reads any more would be matched by the next kernel, and counted
            remove_unused(model)
    if report.rewrites:
        model.opset_imports.update(DOMAINS)
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
    if target in NEWEST_OPSET:
        to_opset(model, NEWEST_OPSET[target])
    return half


def tidy(model: ir.Model, target: str) -> dict[str, int]:
    """Leave out what kernels have left without use, and join what they have put side by side, once they are chosen, in
    place; returns how often each pass did."""
    report: dict[str, int] = {}
    for each in TIDYING:
        count = each.apply(model) if target in each.targets else 0
        if count:
            remove_unused(model)
            report[each.name] = count
    return report


def _can(kernel: Kernel, target: str, abilities: Collection[str]) -> bool:
    """Whether a device that has shown these abilities can run a kernel, and has need of it."""
    needed, needless = kernel.needs.get(target), kernel.unless.get(target)
    return (needed is None or needed in abilities) and (needless is None or needless not in abilities)


def _allowed(target: str, exactness: str) -> tuple[Rewrite, ...]:
    def allowed(kernel: Rewrite) -> bool:
        if exactness == "exact":
            return not (kernel.balanced_only or (isinstance(kernel, Kernel) and kernel.lossy))
        return isinstance(kernel, GraphPass) or target not in kernel.exact_only

    return tuple(kernel for kernel in KERNELS_BY_TARGET[target] if allowed(kernel))
