"""What int8 or int4 does to a module, tried in torch: layers answer as integers would, the rest in fp32.

Inside `quantized` the chosen layers use rounded weights; a convolution rounds its input and output to its fixed
ranges, a linear layer of 8 bits rounds its input to the range it finds, as DynamicQuantizeMatMul does. The input of one
of four bits is left alone: rounded by 32 it loses a twentieth of what the weight does. Outside, the module is as it
was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from tintype.export.quantization import (
    KEPT_SAMPLES,
    SEARCHED_SAMPLES,
    Layer,
    Range,
    Scales,
    best_range,
    block_integers,
    float_blocks,
    float_weight,
    integer_weight,
    linear_scales,
    weight_scales,
)


class ActivationStatistics:
    """Random samples and the extremes of the input and output of every convolution, while `watching`."""

    def __init__(self, module: torch.nn.Module, layers: Iterable[Layer], calls: int) -> None:
        self._module = module
        self._layers = [layer for layer in layers if layer.kind == "conv"]
        self._per_call = max(256, KEPT_SAMPLES // max(1, calls))
        self._samples: dict[tuple[str, str], _Samples] = {}
        self._extremes: dict[tuple[str, str], tuple[float, float]] = {}
        self._generator = torch.Generator().manual_seed(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every call of the module inside is looked at."""
        with ExitStack() as stack:
            for layer in self._layers:
                hook = self._module.get_submodule(layer.module).register_forward_hook(self._hook(layer.module))
                stack.callback(hook.remove)
            yield

    def ranges(self, module: str) -> tuple[Range, Range]:
        """The ranges of a convolution's input and output that lose least. KeyError before any call."""
        found = []
        for side in ("input", "output"):
            samples = self._samples[module, side].taken
            if samples.numel() > SEARCHED_SAMPLES:
                samples = samples[torch.randperm(samples.numel(), generator=self._generator)[:SEARCHED_SAMPLES]]
            found.append(best_range(samples.numpy(), *self._extremes[module, side]))
        return found[0], found[1]

    def forget(self, layers: Iterable[Layer]) -> None:
        """Let the samples of layers go whose ranges are known."""
        for layer in layers:
            for side in ("input", "output"):
                self._samples.pop((layer.module, side), None)

    def _hook(self, name: str) -> Callable[[torch.nn.Module, Any, torch.Tensor], None]:
        def look(_module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._take((name, "input"), inputs[0])
            self._take((name, "output"), output)

        return look

    def _take(self, key: tuple[str, str], tensor: torch.Tensor) -> None:
        flat = tensor.detach().reshape(-1)
        low, high = self._extremes.get(key, (0.0, 0.0))
        self._extremes[key] = (min(low, float(flat.min())), max(high, float(flat.max())))
        chosen = torch.randint(flat.numel(), (min(self._per_call, flat.numel()),), generator=self._generator)
        self._samples.setdefault(key, _Samples()).take(flat[chosen])


class _Samples:
    """Numbers that come in small parts, kept in one piece.

    Each part by itself would lie between what a call takes and gives back, and keep that from the system: a gigabyte at
    the size of Stable Diffusion 1.5.
    """

    def __init__(self) -> None:
        self._values, self._count = torch.empty(KEPT_SAMPLES), 0

    def take(self, values: torch.Tensor) -> None:
        end = self._count + values.numel()
        if end > len(self._values):
            self._values = torch.cat([self._values, torch.empty(max(end, len(self._values)))])
        self._values[self._count : end] = values
        self._count = end

    @property
    def taken(self) -> torch.Tensor:
        return self._values[: self._count]


def layer_scales(
    module: torch.nn.Module,
    layers: Iterable[Layer],
    statistics: ActivationStatistics | None,
    advance: Callable[[int], None],
) -> dict[str, Scales]:
    """How each layer would be quantized, by module. statistics: None where of convolutions the weights alone are."""
    found = {}
    for layer in layers:
        weight = module.get_submodule(layer.module).weight
        assert isinstance(weight, torch.Tensor)
        spans: tuple[Range | None, Range | None] = (None, None)
        if layer.kind == "conv" and statistics is not None:
            spans = statistics.ranges(layer.module)
        blocks = linear_scales(weight.detach().float().numpy(), layer)
        found[layer.module] = Scales(weight_scales(weight), *spans, blocks)
        advance(1)
    return found


@contextmanager
def quantized(module: torch.nn.Module, layers: Iterable[Layer], scales: Mapping[str, Scales]) -> Iterator[None]:
    """`layers` of the module answer as if they were integers of their bits."""
    with ExitStack() as stack:
        for layer in layers:
            part, how = module.get_submodule(layer.module), scales[layer.module]
            for hook in _round_weight(part, layer, how):
                stack.callback(hook.remove)
            if layer.bits == 4:
                continue
            if layer.kind == "linear":
                stack.callback(part.register_forward_pre_hook(_round_as_found).remove)
            else:
                assert how.input is not None
                assert how.output is not None
                stack.callback(part.register_forward_pre_hook(_round_input(how.input)).remove)
                stack.callback(part.register_forward_hook(_round_output(how.output)).remove)
        yield


def _round_weight(part: torch.nn.Module, layer: Layer, how: Scales) -> tuple[RemovableHandle, RemovableHandle]:
    """A layer has its rounded weight while it is called, made of integers: copies in float would double the module."""
    weight = part.weight
    assert isinstance(weight, torch.nn.Parameter)
    exact, rounded = weight.data, _rounded(weight.data, layer, how)

    def before(_module: torch.nn.Module, _inputs: Any) -> None:
        weight.data = rounded()

    def after(_module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        weight.data = exact

    # Also after a call that failed: outside, the module is as it was.
    return part.register_forward_pre_hook(before), part.register_forward_hook(after, always_call=True)


def _rounded(weight: torch.Tensor, layer: Layer, how: Scales) -> Callable[[], torch.Tensor]:
    """Makes the weight as its integers give it back, which alone are kept."""
    if layer.bits == 4:
        assert how.blocks is not None
        blocks, small = how.blocks, block_integers(weight, how.blocks)
        return lambda: float_blocks(small, blocks)
    integers = integer_weight(weight, how.weight)
    return lambda: float_weight(integers, how.weight)


def round_to(tensor: torch.Tensor, span: Range) -> torch.Tensor:
    """A tensor as uint8 with this range gives it back."""
    scale, zero = span.scale, span.zero_point
    return tensor.div(scale).round_().add_(zero).clamp_(0, 255).sub_(zero).mul_(scale)


def _round_as_found(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    found = inputs[0]
    span = Range(min(0.0, float(found.min())), max(0.0, float(found.max())))
    return (round_to(found, span), *inputs[1:])


def _round_input(span: Range) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    return lambda _module, inputs: (round_to(inputs[0], span), *inputs[1:])


def _round_output(span: Range) -> Callable[[torch.nn.Module, Any, torch.Tensor], torch.Tensor]:
    return lambda _module, _inputs, output: round_to(output, span)
