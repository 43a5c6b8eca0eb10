"""A DoRA's magnitudes: what they are of, by their names and shapes, and what they make of a pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tintype.adapters.files import AdapterFile, open_adapter
from tintype.adapters.forms import Shape, pair_of
from tintype.adapters.magnitudes import factors_of, magnitudes_of, scaled_along, scaled_pair
from tintype.errors import LoraError
from tintype.uses import BY_INPUT, BY_OUTPUT

LINEAR, CONV, SQUARE = (12, 8), (12, 8, 3, 3), (8, 8)


def opened(folder: Path, weight: Shape, name: str | None, shape: Shape) -> AdapterFile:
    random = np.random.default_rng(1)
    outputs, inputs, *kernel = weight
    tensors = {"lora_down.weight": (4, inputs, *kernel), "lora_up.weight": (outputs, 4, *(1,) * len(kernel))}
    if name is not None:
        tensors[name] = shape
    made = {f"lora_unet_x.{part}": random.uniform(0.5, 2, size).astype(np.float32) for part, size in tensors.items()}
    save_file(made, folder / "a.safetensors")
    return open_adapter(folder / "a.safetensors")


CASES: dict[str, tuple[Shape, str | None, Shape, str]] = {
    "peft's": (LINEAR, "lora_magnitude_vector", (12,), BY_OUTPUT),
    "peft's of a convolution": (CONV, "lora_magnitude_vector.weight", (1, 12, 1, 1), BY_OUTPUT),
    "kohya's": (LINEAR, "dora_scale", (12, 1), BY_OUTPUT),
    "kohya's, flat": (LINEAR, "dora_scale", (12,), BY_OUTPUT),
    "kohya's of a convolution": (CONV, "dora_scale", (12, 1, 1, 1), BY_OUTPUT),
    "of inputs": (LINEAR, "dora_scale", (1, 8), BY_INPUT),
    "of inputs of a convolution": (CONV, "dora_scale", (1, 8, 1, 1), BY_INPUT),
    "of inputs, as many as outputs": (SQUARE, "dora_scale", (1, 8), BY_INPUT),
    "none": (LINEAR, None, (), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_they_scale_outputs_or_inputs(tmp_path, case):
    weight, name, shape, along = CASES[case]
    file = opened(tmp_path, weight, name, shape)
    (layer,) = file.layers.values()
    assert scaled_along(file, layer, weight) == along
    magnitudes = magnitudes_of(file, layer, weight)
    if magnitudes is None:
        assert name is None
        return
    assert magnitudes.shape == ((weight[0], 1) if along == BY_OUTPUT else (1, weight[1]))
    pair, lengths = pair_of(file, layer, weight), np.linspace(0.5, 2, magnitudes.size).astype(np.float32)
    factors = factors_of(magnitudes, lengths)
    np.testing.assert_allclose(factors, magnitudes.reshape(-1) / lengths, rtol=1e-6)
    made, flat = scaled_pair(pair, along, factors), pair.down.reshape(4, -1)
    delta = (pair.up @ flat).reshape(weight)
    spread = factors.reshape([-1 if axis == int(along == BY_INPUT) else 1 for axis in range(len(weight))])
    np.testing.assert_allclose((made.up @ made.down.reshape(4, -1)).reshape(weight), delta * spread, rtol=1e-5)


def test_a_row_of_nothing_is_divided_by_no_zero():
    assert np.isfinite(factors_of(np.ones((2, 1), np.float32), np.array([0, 1], np.float32))).all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lora_magnitude_vector", (8,)), ("lora_magnitude_vector", (1,)), ("dora_scale", (12, 2)), ("dora_scale", (1, 9))],
)
def test_as_many_as_the_weight_has_neither_of_are_refused(tmp_path, name, shape):
    file = opened(tmp_path, LINEAR, name, shape)
    (layer,) = file.layers.values()
    with pytest.raises(LoraError, match=rf"lora_unet_x.{name} of .*a.safetensors has {np.prod(shape)} numbers, not"):
        scaled_along(file, layer, LINEAR)
