"""Four bits a weight: scales that lose least, and what a merge makes of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tintype.kernels.graph.blocks import packed
from tintype.kernels.graph.four_bits import BLOCK, BlockScales, block_scales, fits_blocks, from_integers, to_integers
from tintype.kernels.graph.low_rank import adaptable_layers
from tintype.kernels.graph.merge import Change, merge_layer, put_weights

RANDOM = np.random.default_rng(3)


def errors(weight: np.ndarray, scales: BlockScales) -> np.ndarray:
    """Squared, of each block."""
    difference = from_integers(to_integers(weight, scales), scales).astype(np.float64) - weight
    return np.square(difference).reshape(-1, BLOCK, weight.shape[1]).sum(axis=1)


def by_range(weight: np.ndarray) -> BlockScales:
    """From the lowest weight of each block to its highest, which is what anyone would do first."""
    cubes = weight.reshape(-1, BLOCK, weight.shape[1])
    low, high = np.minimum(cubes.min(axis=1), 0), np.maximum(cubes.max(axis=1), 0)
    scale = ((high - low) / 15).astype(np.float16)
    return BlockScales(scale, np.clip(np.rint(-low / scale.astype(np.float32)), 0, 15).astype(np.uint8))


@pytest.mark.parametrize("tails", [False, True])
def test_no_block_loses_more_than_by_its_range_and_most_lose_less(tails: bool) -> None:
    weight = RANDOM.standard_t(4, (256, 48)) if tails else RANDOM.standard_normal((256, 48))
    weight = (weight * 0.02).astype(np.float32)
    found, plain = errors(weight, block_scales(weight)), errors(weight, by_range(weight))
    assert (found <= plain * (1 + 1e-6)).all()
    assert (found < plain * 0.999).mean() > 0.6
    signal_db = 10 * np.log10(np.square(weight, dtype=np.float64).sum() / found.sum())
    assert signal_db > (20.0 if tails else 21.5)


def test_what_four_bits_can_say_is_said_exactly() -> None:
    zero = RANDOM.integers(0, 16, (2, 8)).astype(np.uint8)
    scale = RANDOM.choice([0.25, 0.5, 2.0], (2, 8)).astype(np.float16)
    integers = RANDOM.integers(0, 16, (64, 8)).astype(np.uint8)
    integers[::BLOCK], integers[1::BLOCK] = 0, 15  # the whole range is used
    weight = from_integers(integers, BlockScales(scale, zero))
    np.testing.assert_array_equal(
        from_integers(to_integers(weight, block_scales(weight)), block_scales(weight)), weight
    )


@pytest.mark.parametrize("block", [0.0, 3.0, -0.7, 1e-9, 6e4, -1e6])
def test_blocks_of_one_number_are_read_back_as_near_as_float16_is(block: float) -> None:
    weight = np.full((BLOCK, 2), block, np.float32)
    scales = block_scales(weight)
    made = from_integers(to_integers(weight, scales), scales)
    assert np.isfinite(made).all()
    nearest = np.clip(np.float32(block), -15 * 65504.0, 15 * 65504.0)
    np.testing.assert_allclose(made, nearest, rtol=2**-10, atol=2**-24)


def test_zero_is_zero() -> None:
    weight = RANDOM.standard_normal((96, 5)).astype(np.float32)
    weight[::3] = 0
    scales = block_scales(weight)
    assert (from_integers(to_integers(weight, scales), scales)[::3] == 0).all()


def test_blocks_are_whole() -> None:
    assert [inputs for inputs in (0, 16, 32, 40, 64, 320) if fits_blocks(inputs)] == [32, 64, 320]


def stored_layer(weight: np.ndarray) -> ir.Model:
    """A linear layer of four bits, as the export writes it."""
    scales = block_scales(weight)
    arrays = {
        "w": to_integers(weight, scales).astype(ml_dtypes.uint4),
        "scale": scales.scale,
        "zero": scales.zero_point.astype(ml_dtypes.uint4),
    }
    values = {name: ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()}
    for name, value in values.items():
        assert value.const_value is not None
        value.shape, value.dtype = ir.Shape(arrays[name].shape), value.const_value.dtype
    x = ir.Value(name="x", shape=ir.Shape([3, len(weight)]), type=ir.TensorType(ir.DataType.FLOAT))
    cast = ir.node("Cast", [values["scale"]], {"to": int(ir.DataType.FLOAT)})
    whole = ir.node(
        "DequantizeLinear", [values["w"], cast.outputs[0], values["zero"]], {"axis": 0, "block_size": BLOCK}
    )
    whole.outputs[0].shape, whole.outputs[0].dtype = ir.Shape(weight.shape), ir.DataType.FLOAT
    product = ir.node("MatMul", [x, whole.outputs[0]], name="mid_block.attn.to_q/MatMul")
    y = product.outputs[0]
    y.name, y.shape, y.dtype = "y", ir.Shape([3, weight.shape[1]]), ir.DataType.FLOAT
    nodes, known = [cast, whole, product], list(values.values())
    return ir.Model(
        ir.Graph([x], [y], nodes=nodes, initializers=known, opset_imports={"": 23}, name="g"), ir_version=10
    )


def test_a_merge_chooses_four_bits_anew_and_the_graph_takes_them() -> None:
    weight = (RANDOM.standard_normal((64, 24)) * 0.05).astype(np.float32)
    model = stored_layer(weight)
    scales = block_scales(weight)
    before = from_integers(to_integers(weight, scales), scales)
    down, up = (RANDOM.standard_normal(shape).astype(np.float32) * 0.1 for shape in ((4, 64), (24, 4)))
    (layer,) = adaptable_layers(model.graph).values()
    merged = merge_layer(layer, [Change(0.8, (up, down))])
    wanted = before + np.float32(0.8) * (up @ down).T
    put_weights(model.graph, {name: ir.tensor(array, name=name) for name, array in merged.initializers.items()})
    stored = {name: model.graph.initializers[name].const_value for name in ("w", "scale", "zero")}
    w, scale, zero = (tensor.numpy() for tensor in stored.values() if tensor is not None)
    made = from_integers(w.astype(np.uint8), BlockScales(scale, zero.astype(np.uint8)))
    error = np.square(made.astype(np.float64) - wanted).sum()
    assert merged.error_squares == pytest.approx(error, rel=1e-4)
    assert 10 * np.log10(np.square(wanted).sum() / error) > 19
    assert 10 * np.log10(np.square(before).sum() / np.square(before - wanted).sum()) < 10  # it is another weight


def test_a_merge_of_nothing_keeps_what_the_weight_says() -> None:
    weight = (RANDOM.standard_normal((64, 24)) * 0.05).astype(np.float32)
    model = stored_layer(weight)
    (layer,) = adaptable_layers(model.graph).values()
    nothing = Change(1.0, (np.zeros((24, 1), np.float32), np.zeros((1, 64), np.float32)))
    merged = merge_layer(layer, [nothing])
    assert merged.error_squares <= merged.squares * 1e-4


def test_four_bits_of_another_length_are_refused() -> None:
    model = stored_layer((RANDOM.standard_normal((64, 24))).astype(np.float32))
    short = ir.tensor(np.zeros(64 * 24 // 2 - 1, np.uint8), name="w")
    with pytest.raises(ValueError, match="those of its shape"):
        put_weights(model.graph, {"w": short})


@pytest.mark.parametrize("change", ["block", "axis", "type"])
def test_blocks_of_another_kind_are_not_merged_with(change: str) -> None:
    model = stored_layer((RANDOM.standard_normal((64, 64))).astype(np.float32))
    node = next(node for node in model.graph if node.op_type == "DequantizeLinear")
    if change == "type":
        scale = model.graph.initializers["scale"]
        assert scale.const_value is not None
        scale.const_value = ir.tensor(scale.const_value.numpy().astype(np.float32), name="scale")
    else:
        name, number = ("block_size", 16) if change == "block" else ("axis", 1)
        node.attributes[name] = ir.AttrInt64(name, number)
    (layer,) = adaptable_layers(model.graph).values()
    with pytest.raises(ValueError, match="in a way that isn't known"):
        merge_layer(layer, [Change(1.0, (np.zeros((64, 1), np.float32), np.zeros((1, 64), np.float32)))])


def test_packed_numbers_lie_as_graphs_have_them() -> None:
    integers = RANDOM.integers(0, 16, (3, 5)).astype(np.uint8)
    tensor = ir.tensor(integers.astype(ml_dtypes.uint4))
    assert packed(integers.reshape(-1), 4).tobytes() == tensor.tobytes()
