"""Layers that hurt stay float, the others don't."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tintype.export.calls import Call
from tintype.export.fallback import Choice, Trial, Unit, choose
from tintype.export.parity import Gate
from tintype.export.progress import Silent
from tintype.export.quantization import Layer, Scales, weight_scales
from tintype.export.simulation import quantized


def chain(bad: int) -> torch.nn.Sequential:
    """Linear layers, one of which has a column that ruins the range for its input's other columns."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(32, 32, bias=False) for _ in range(6)]
    module = torch.nn.Sequential(*layers).eval().requires_grad_(False)
    for layer in layers:
        torch.nn.init.orthogonal_(layer.weight)
    if bad >= 0:  # the layer before sends one huge value, which the bad layer takes away again
        layers[bad - 1].weight.data[0] *= 500.0
        layers[bad].weight.data[:, 0] /= 500.0
    return module


def trial(module: torch.nn.Sequential, gate: Gate) -> tuple[Trial, list[Layer]]:
    layers = [Layer("linear", str(index), f"{index}.weight_T", 1024) for index in range(len(module))]
    scales = {layer.module: Scales(weight_scales(module.get_submodule(layer.module).weight)) for layer in layers}
    feeds = [np.random.default_rng(seed).standard_normal((2, 64, 32)).astype(np.float32) for seed in (1, 2)]

    def run(chosen: Sequence[Layer], calls: Sequence[Call]) -> list[np.ndarray]:
        with torch.inference_mode(), quantized(module, chosen, scales):
            return [module(torch.from_numpy(call.feed["x"])).numpy() for call in calls]

    calls = [Call({"x": feed}, module(torch.from_numpy(feed)).numpy()) for feed in feeds]
    return Trial(run, calls, gate), layers


def test_everything_is_int8_where_the_gate_allows_it() -> None:
    tried, layers = trial(chain(-1), Gate("denoiser", 30.0))
    assert choose(tried, layers, 60.0, "", Silent()).finer_names == ()


def test_the_layer_that_hurts_stays_float_and_the_rest_is_int8() -> None:
    tried, layers = trial(chain(3), Gate("denoiser", 32.0))
    choice = choose(tried, layers, 60.0, "", Silent())
    assert choice.finer_names[0] == "3"
    assert len(choice.quantized) >= 4
    assert tried.damage(choice.quantized).worst <= 1.0


def test_guidance_counts_too() -> None:
    near, layers = trial(chain(-1), Gate("denoiser", 30.0, guidance_error=1e-6))
    assert choose(near, layers, 60.0, "", Silent()).quantized == []


def test_without_time_for_each_layer_blocks_are_decided_on() -> None:
    tried, layers = trial(chain(3), Gate("denoiser", 32.0))
    renamed = [Layer("linear", layer.module, layer.weight, layer.parameters) for layer in layers]
    choice = choose(tried, renamed, 0.0, "", Silent())
    assert tried.damage(choice.quantized).worst <= 1.0


def test_a_retreat_always_moves_and_ends() -> None:
    units = tuple(Unit(str(index), (Layer("linear", str(index), "", 1),)) for index in range(5))
    choice = Choice(units, 0)
    for expected in (1, 2, 3, 4, 5, 5):
        choice.retreat(0.01)
        assert choice.finer == expected
    assert choice.quantized == []


def test_no_layers_no_choice() -> None:
    tried, _ = trial(chain(-1), Gate("denoiser", 30.0))
    assert choose(tried, [], 60.0, "", Silent()).quantized == []
