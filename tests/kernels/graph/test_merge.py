"""Merged weights are the same however many outputs are merged at a time, of each kind of change and of storage."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tintype.bundle import open_bundle
from tintype.kernels.cpu.product_conv import float_constant
from tintype.kernels.graph import merge
from tintype.kernels.graph.low_rank import AdaptableLayer, adaptable_layers
from tintype.kernels.graph.merge import Change, merge_layer

START = "down_blocks.1.attentions.0.transformer_blocks.0"
# Postcard's int8 products and convolutions lie turned and straight, beside halves.
LAYERS = (f"{START}.attn1.to_q", f"{START}.ff.net.0.proj", "down_blocks.0.resnets.0.conv1", "conv_in", "conv_out")
KINDS = ("pair", "delta", "by-output", "by-input")


@pytest.fixture(scope="module")
def layers() -> dict[str, AdaptableLayer]:
    return adaptable_layers(ir.load(open_bundle("postcard").graph_path("denoiser")).graph)


def change(shape: tuple[int, ...], kind: str) -> Change:
    random = np.random.default_rng(3)
    outputs, numbers = shape[0], int(np.prod(shape[1:]))

    def drawn(*sizes: int) -> np.ndarray:
        return (random.standard_normal(sizes) * 0.1).astype(np.float32)

    factors = (drawn(outputs, numbers),) if kind == "delta" else (drawn(outputs, 4), drawn(4, numbers))
    lengths = {"by-output": (outputs, 1), "by-input": (1, shape[1])}.get(kind)
    return Change(0.7, factors, None if lengths is None else 1 + np.abs(drawn(*lengths)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_some_outputs_at_a_time_are_all_at_once(layers, monkeypatch, name, kind):
    layer, found = layers[name], []
    for numbers, least in ((2**40, 1), (1, 3)):
        monkeypatch.setattr(merge, "PART_NUMBERS", numbers)
        monkeypatch.setattr(merge, "LEAST_OUTPUTS", least)
        found.append(merge_layer(layer, [change(layer.shape, kind), change(layer.shape, "pair")]))
    whole, parts = found
    assert set(whole.initializers) == set(parts.initializers)
    for each, array in whole.initializers.items():
        near = parts.initializers[each]
        assert (near.dtype, near.shape) == (array.dtype, array.shape)
        steps = {"f": 1e-3 * float(np.abs(array).max()), "i": 1.0}[array.dtype.kind]  # a sum in another order, rounded
        assert np.abs(near.astype(np.float64) - array).max() <= steps
        assert (near != array).mean() < 0.05 or array.dtype.kind == "f"
    assert parts.squares == pytest.approx(whole.squares, rel=1e-4)
    assert parts.error_squares == pytest.approx(whole.error_squares, rel=1e-2)


def test_a_weight_beyond_all_numbers_is_refused_by_name(layers):
    layer = layers[LAYERS[0]]
    outputs, inputs = layer.shape
    endless = Change(1.0, (np.full((outputs, 1), 3e38, np.float32), np.full((1, inputs), 10.0, np.float32)))
    with pytest.raises(ValueError, match="to_q grows beyond all numbers"), np.errstate(over="ignore"):
        merge_layer(layer, [endless])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("by_input", [False, True], ids=["outputs", "inputs"])
def test_lengths_are_those_of_the_whole_weight(layers, monkeypatch, name, by_input):
    """Of the weight as floats, with the product added; however many outputs are read at a time."""
    layer = layers[name]
    pair = change(layer.shape, "pair")
    whole = float_constant(layer.node.inputs[1])
    if layer.node.op_type == "MatMul":
        whole = whole.T
    whole = whole.reshape(layer.shape).astype(np.float64) + pair.delta(1.0, turned=False).reshape(layer.shape)
    axes = tuple(axis for axis in range(whole.ndim) if axis != int(by_input))
    for numbers, least in ((2**40, 1), (1, 3)):
        monkeypatch.setattr(merge, "PART_NUMBERS", numbers)
        monkeypatch.setattr(merge, "LEAST_OUTPUTS", least)
        squares = merge.squared_lengths(layer, pair.factors, by_input=by_input)
        np.testing.assert_allclose(squares, np.square(whole).sum(axis=axes), rtol=1e-5)
