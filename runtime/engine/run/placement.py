"""Which node runs where. A heavy node off its target is an error, never a silent change of device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tintype.errors import ProviderError

# Operators that carry a model's work, or that only ever see its tensors, so that one of them on the host means copies
# there and back. Shape arithmetic may run on the host whatever the target is.
HEAVY_OPERATORS = frozenset(
    {
        "Attention",
        "BatchNormalization",
        "BiasAdd",
        "BiasGelu",
        "BiasSplitGelu",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DepthToSpace",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "Erf",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gelu",
        "Gemm",
        "GroupNorm",
        "GroupNormalization",
        "GroupQueryAttention",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "NhwcConv",
        "PackedMultiHeadAttention",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
        "QuickGelu",
        "RMSNormalization",
        "ReduceMean",
        "Resize",
        "RotaryEmbedding",
        "Sigmoid",
        "SimplifiedLayerNormalization",
        "SkipGroupNorm",
        "SkipLayerNormalization",
        "Softmax",
        "Split",
        "Swish",
        "Tanh",
        "Transpose",
        "Upsample",
    }
)


@dataclass(frozen=True, slots=True)
class Placement:
    """Operators by execution provider, each with how many nodes of it run there."""

    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def from_assignments(cls, assignments: Iterable[tuple[str, str]]) -> Placement:
        """From (provider, operator) pairs, one a node."""
        counters: dict[str, Counter[str]] = {}
        for provider, operator in assignments:
            counters.setdefault(provider, Counter())[operator] += 1
        return cls({provider: dict(sorted(counter.items())) for provider, counter in sorted(counters.items())})

    @classmethod
    def of(cls, *sessions: Any) -> Placement:
        """Of open sessions of ONNX Runtime, all together."""
        return cls.from_assignments(
            (subgraph.ep_name, node.op_type)
            for session in sessions
            for subgraph in session.get_provider_graph_assignment_info()
            for node in subgraph.get_nodes()
        )

    def __add__(self, other: Placement) -> Placement:
        return Placement.from_assignments(
            (provider, operator)
            for placement in (self, other)
            for provider, operators in placement.nodes.items()
            for operator, count in operators.items()
            for _ in range(count)
        )

    def count(self, operator: str, provider: str | None = None) -> int:
        """How many nodes of `operator` run, on one provider or anywhere."""
        chosen = self.nodes.values() if provider is None else [self.nodes.get(provider, {})]
        return sum(operators.get(operator, 0) for operators in chosen)

    def heavy_off(self, provider: str) -> dict[str, Mapping[str, int]]:
        """Heavy operators that run elsewhere than on `provider`."""
        strays: dict[str, Mapping[str, int]] = {}
        for other, operators in self.nodes.items():
            heavy = {name: count for name, count in operators.items() if name in HEAVY_OPERATORS}
            if other != provider and heavy:
                strays[other] = heavy
        return strays

    def demand(self, provider: str, graph_name: str) -> None:
        """Raise ProviderError when a heavy node of the graph isn't on `provider`."""
        strays = self.heavy_off(provider)
        if not strays:
            return
        told = "; ".join(
            f"{', '.join(f'{count} {name}' for name, count in operators.items())} on {other}"
            for other, operators in strays.items()
        )
        raise ProviderError(
            f"{graph_name} does not run on {provider} as a whole: {told}",
            fix="choose provider cpu, or allow nodes off the device if a slower picture will do",
        )
