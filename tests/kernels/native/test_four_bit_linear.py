"""A layer of 4-bit weights by block as one node of our own: what it means, by floats and by integers, and what it takes
along."""

from __future__ import annotations

import platform

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx_ir.passes.common import IdentityEliminationPass, NameFixPass
from own_nodes import give, model_of_node, rewritten

from tintype.arrays import psnr_db
from tintype.engine import has_ability, resolve_provider
from tintype.kernels.base import OWN
from tintype.kernels.cpu.geglu import GegluAsTwoLinears
from tintype.kernels.graph import choice
from tintype.kernels.graph.blocks import BlockedWeight
from tintype.kernels.graph.four_bits import BLOCK, block_scales, to_integers
from tintype.kernels.native.four_bit_linear import (
    NativeFourBitGeglu,
    NativeFourBitIntegerGeglu,
    NativeFourBitIntegerLinear,
    NativeFourBitLinear,
    fits_half,
    packed_four_bits,
)
from tintype.kernels.native.layers import GEGLU, GELU, PLAIN, SILU
from tintype.kernels.native.library import FOUR_BITS
from tintype.kernels.native.linear import NativeLinear
from tintype.kernels.portable.plain_float import FloatWeights
from tintype.kernels.registry import measured_kernels

LINEAR, GATED = NativeFourBitLinear(), NativeFourBitGeglu()
ROUNDED, ROUNDED_GATED = NativeFourBitIntegerLinear(), NativeFourBitIntegerGeglu()
KERNELS = {"floats": (LINEAR, GATED), "integers": (ROUNDED, ROUNDED_GATED)}
# rows, inputs, outputs. Panels are of 32 columns, or 16 and 16; rows go through by 8, 4 and 1, and 192 a task.
SIZES = [(1, 32, 1), (2, 64, 7), (7, 32, 33), (8, 96, 32), (13, 160, 17), (77, 320, 65), (100, 64, 48), (205, 1312, 20)]

PLAINEST = int(platform.machine().lower() in ("x86_64", "amd64"))  # that has products of integers


@pytest.fixture
def by_each(instructions):
    """A model by each set of instructions that has what it needs: all but the plainest have products of integers."""

    def models(model, rounded):
        able = has_ability(resolve_provider("cpu"), FOUR_BITS)
        return [each for each in instructions(model) if able or not rounded][PLAINEST if rounded else 0 :]

    return models


def _arrays(random, sizes, activation=PLAIN):
    """x, integers, scale, zero point and bias, of two halves with GEGLU and else of one."""
    rows, inputs, outputs = sizes
    halves = 2 if activation == GEGLU else 1
    x = random.standard_normal((rows, inputs), np.float32)
    integers = random.integers(0, 16, (halves, inputs, outputs)).astype(np.uint8)
    scale = random.uniform(0.02, 0.2, (halves, inputs // BLOCK, outputs)) / np.sqrt(inputs)
    scale[..., ::5] = 2.0**-20  # below float16's least normal number
    zero = random.integers(0, 16, scale.shape).astype(np.uint8)
    return x, integers, scale.astype(np.float16), zero, random.standard_normal((halves, outputs), np.float32)


def _node(arrays, activation, rounded, **more):
    """The node as a model, and what it is run with; more: `added`, `down` and `up`."""
    x, integers, scale, zero, bias = arrays
    halves = zip(integers, scale.astype(np.float32), zero, strict=True)
    packed = packed_four_bits(*(BlockedWeight("weight", 4, BLOCK, *half) for half in halves))
    feed = dict(zip(("x", "weights", "bias", "scales", "zeros"), (x, packed[0], bias, *packed[1:]), strict=True)) | more
    names = [*feed] if "added" in more or "down" not in more else [*list(feed)[:5], "", "down", "up"]
    node = helper.make_node("FourBitLinear", names, ["y"], domain=OWN, activation=activation, rounded=int(rounded))
    return model_of_node(node, feed), feed


def _expected(arrays, activation, rounded, low=0.0):
    """low: what is added by low rank, (halves, rows, outputs)."""
    x, *weights = arrays
    sums = np.stack([(ROUNDED if rounded else LINEAR).reference(x, *each) for each in zip(*weights, strict=True)]) + low
    ones, none = np.eye(sums.shape[-1]), np.zeros(sums.shape[-1])
    if activation == GEGLU:
        return sums[0] * NativeLinear.reference(sums[1], ones, none, GELU)
    return NativeLinear.reference(sums[0], ones, none, activation)


@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("activation", [PLAIN, GELU, SILU, GEGLU])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_layer_by_every_set_of_instructions(by_each, run, random, sizes, activation, rounded):
    arrays = _arrays(random, sizes, activation)
    model, feed = _node(arrays, activation, rounded)
    expected = _expected(arrays, activation, rounded)
    for each in by_each(model, rounded):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("activation", [PLAIN, GEGLU])
def test_its_reference_is_that_of_what_the_weights_stand_for(random, activation, rounded):
    arrays = _arrays(random, (5, 64, 9), activation)
    given = arrays if activation == GEGLU else (arrays[0], *(each[0] for each in arrays[1:]))
    made = (ROUNDED if rounded else LINEAR).reference(*given, activation)
    np.testing.assert_allclose(made, _expected(arrays, activation, rounded), rtol=1e-12)


@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("activation", [PLAIN, SILU, GEGLU])
@pytest.mark.parametrize("sizes", [(3, 32, 7, 2), (31, 320, 65, 16), (205, 64, 48, 17)], ids=str)
def test_it_adds_what_is_of_low_rank_and_a_residual(by_each, run, random, sizes, activation, rounded):
    *layer, rank = sizes
    arrays = _arrays(random, layer, activation)
    halves, width = arrays[4].shape
    down = (random.standard_normal((layer[1], rank)) / np.sqrt(layer[1])).astype(np.float32)
    up = (random.standard_normal((rank, halves * width)) / np.sqrt(rank)).astype(np.float32)
    added = random.standard_normal((layer[0], width), np.float32)
    low = np.stack(np.split(arrays[0].astype(np.float64) @ down @ up, halves, axis=1))
    for residual in (None, added):
        more = {"down": down, "up": up} if residual is None else {"added": residual, "down": down, "up": up}
        model, feed = _node(arrays, activation, rounded, **more)
        expected = _expected(arrays, activation, rounded, low) + (0.0 if residual is None else residual)
        for each in by_each(model, rounded):
            np.testing.assert_allclose(run(each, feed)["y"], expected, rtol=5e-5, atol=5e-5)


def test_more_rows_than_a_strip_has_are_right(by_each, run, random):
    """8 MiB of rows are laid out or rounded at a time."""
    arrays = _arrays(random, (2100, 1088, 3))
    added = random.standard_normal((2100, 3), np.float32)
    for rounded in (False, True):
        model, feed = _node(arrays, PLAIN, rounded, added=added)
        *_, best = [None, *by_each(model, rounded)]
        if best is not None:
            expected = _expected(arrays, PLAIN, rounded) + added
            np.testing.assert_allclose(run(best, feed)["y"], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("level", [0.0, 1e-38, -1e-38, 5.0, -5.0])
def test_the_largest_sums_are_exact_and_rows_of_one_number_right(by_each, run, random, level):
    x, _, scale, zero, bias = _arrays(random, (9, 1024, 33))
    x[:] = level
    for whole, moved in ((15, 0), (0, 15), (15, 15)):
        arrays = x, np.full((1, 1024, 33), whole, np.uint8), scale, np.full_like(zero, moved), bias
        exact = _expected(arrays, PLAIN, rounded=False)
        for rounded in (False, True):
            model, feed = _node(arrays, PLAIN, rounded)
            for each in by_each(model, rounded):
                np.testing.assert_allclose(run(each, feed)["y"], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_number_that_is_not_finite_is_not_finite_and_no_other_row(by_each, run, random, odd, rounded):
    arrays = _arrays(random, (10, 64, 33))
    arrays[1][arrays[1] == arrays[3].repeat(BLOCK, axis=1)] += 1  # no weight is 0, which takes part in no sum
    arrays[1][:] %= 16
    arrays[0][4, 17] = odd
    model, feed = _node(arrays, PLAIN, rounded)
    for each in by_each(model, rounded):
        finite = np.isfinite(run(each, feed)["y"])
        assert not finite[4].all()
        assert finite[np.arange(10) != 4].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (np.uint8, (1, 2, 4, 32, 4))}, "such a layer"),
        ({"weights": (np.uint8, (2, 1, 4, 32, 4))}, "such a layer"),
        ({"scales": (np.float16, (2, 1, 32))}, "such a layer"),
        ({"zeros": (np.uint8, (2, 2, 32))}, "such a layer"),
        ({"x": (np.float32, (3, 65))}, "such a layer"),
        ({"bias": (np.float32, (2, 40))}, "such a layer"),
        ({"added": (np.float32, (3, 39))}, "another shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)) + str(next(iter(value.values()))[1]),
)
@pytest.mark.usefixtures("library")
def test_what_does_not_go_together_is_an_error(run, random, change, message):
    model, feed = _node(_arrays(random, (3, 64, 40)), PLAIN, False, added=np.zeros((3, 40), np.float32))
    ((name, (dtype, shape)),) = change.items()
    give(model, feed, name, np.zeros(shape, dtype))
    with pytest.raises(Exception, match=message):
        run(model, feed)


@pytest.mark.skipif(PLAINEST == 0, reason="NEON has products of integers")
def test_a_set_without_products_of_integers_refuses_to_round(instructions, run, random):
    model, feed = _node(_arrays(random, (3, 64, 40)), PLAIN, True)
    with pytest.raises(Exception, match="hasn't these instructions"):
        run(instructions(model)[0], feed)


def _model(random, *, gated=False, low_rank=False, block=BLOCK, rows=12):
    """A layer as a canonical graph has it once its scales are floats, with what stands behind it."""
    width = 80 if gated else 40
    weight = (random.standard_normal((96, width)) / 8).astype(np.float32)
    scales = block_scales(weight)
    constants = {
        "integers": to_integers(weight, scales).astype(ml_dtypes.uint4),
        "scale": scales.scale.astype(np.float32),
        "zero": scales.zero_point.astype(ml_dtypes.uint4),
        "bias": random.standard_normal(width, np.float32),
    }
    if block != BLOCK:
        constants["scale"], constants["zero"] = (
            constants[name].repeat(BLOCK // block, axis=0) for name in ("scale", "zero")
        )
    lower = "inner = MatMul (x, down) " if low_rank else ""
    if gated:
        tail = "v, g = Split <axis = -1, num_outputs = 2> (layer) "
        if low_rank:
            tail += f"{lower} uv, ug = Split <axis = 1, num_outputs = 2> (up) "
            tail += "ov = MatMul (inner, uv) og = MatMul (inner, ug) value = Add (v, ov) gate = Add (g, og) "
        else:
            tail += "value = Identity (v) gate = Identity (g) "
        tail += "opened = Gelu (gate) y = Mul (value, opened)"
    else:
        adapted = (
            "outer = MatMul (inner, up) adapted = Add (layer, outer)" if low_rank else "adapted = Identity (layer)"
        )
        tail = f"{lower}{adapted} y = Add (adapted, residual)"
    pair = f", float[96, 8] down, float[8, {width}] up" if low_rank else ""
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        graph (float[{rows}, 96] x, float[{rows}, 40] residual{pair}) => (float[{rows}, 40] y) {{
            weight = DequantizeLinear <axis = 0, block_size = {block}> (integers, scale, zero)
            product = MatMul (x, weight)
            layer = Add (product, bias)
            {tail}
        }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    feed = {"x": random.standard_normal((rows, 96), np.float32)}
    feed |= {
        "down": random.standard_normal((96, 8), np.float32) / 9,
        "up": random.standard_normal((8, width), np.float32),
    }
    feed["residual"] = random.standard_normal((rows, 40), np.float32)
    loaded = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    IdentityEliminationPass()(loaded)
    NameFixPass()(loaded)
    for value in [value for value in loaded.graph.inputs if not value.uses()]:
        loaded.graph.inputs.remove(value)
    return loaded, {str(value.name): feed[str(value.name)] for value in loaded.graph.inputs}


@pytest.mark.parametrize("low_rank", [False, True], ids=["alone", "low rank"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", KERNELS)
def test_a_layer_becomes_one_node(library, run, random, kind, gated, low_rank):
    if kind == "integers" and not has_ability(resolve_provider("cpu"), FOUR_BITS):
        pytest.skip("this processor has no such products")
    model, feed = _model(random, gated=gated, low_rank=low_rank)
    floats = rewritten(ir.from_proto(ir.to_proto(model)), FloatWeights())
    whole = run(ir.to_proto(floats), feed)["y"]
    kernel = KERNELS[kind][gated]
    model = rewritten(model, *([GegluAsTwoLinears()] if gated else []))
    (layer,) = choice.layers(model.graph, [kernel])
    assert layer.kind == ("Geglu int4 weight" if gated else "MatMul int4 weight")
    assert {str(value.name) for value in layer.inputs} == set(feed)  # it is timed with all that it replaces
    model = rewritten(model, kernel)
    assert [node.op_type for node in model.graph] == ["FourBitLinear"]
    near = psnr_db(run(ir.to_proto(model), feed)["y"], whole)
    assert near > (120 if kind == "floats" else 50)


def test_its_weights_are_smaller_than_as_they_are(random):
    model, _ = _model(random)
    (layer,) = choice.layers(model.graph, [LINEAR])
    sizes = {way: choice.weight_bytes(choice.model_of(layer, way, model.opset_imports)) for way in layer.ways}
    columns = 64  # of 40: whole panels
    assert sizes[LINEAR.name] == 96 * columns // 2 + 3 * columns * 2 + 3 * columns // 2 + 40 * 4
    model, _ = _model(random, gated=True)
    model = rewritten(model, GegluAsTwoLinears())
    (layer,) = choice.layers(model.graph, [GATED])
    sizes = {way: choice.weight_bytes(choice.model_of(layer, way, model.opset_imports)) for way in layer.ways}
    assert sizes[GATED.name] < 1.1 * sizes["as_is"]


@pytest.mark.parametrize("what", ["blocks of 16", "few rows", "scales that float16 has not", "scales below 0"])
def test_what_it_cannot_do_is_left_alone(random, what):
    model, _ = _model(random, block=16 if what == "blocks of 16" else BLOCK, rows=7 if what == "few rows" else 12)
    if what.startswith("scales"):
        scale = model.graph.initializers["scale"]
        scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(-1 if "below" in what else 1.0001))
    assert list(choice.layers(model.graph, [LINEAR, ROUNDED])) == []
    whole, _ = _model(random)
    assert len(list(choice.layers(whole.graph, [LINEAR, ROUNDED]))) == 1


def test_which_scales_float16_has():
    assert fits_half(np.array([0.0, 2.0**-24, 0.5, 65504.0], np.float32))
    for other in (-0.0, 0.1, 2.0**-25, 65536.0, np.inf, np.nan, -1.0):
        assert not fits_half(np.array([0.5, other], np.float32))


def test_an_exact_build_rounds_nothing():
    able = {"native", FOUR_BITS}
    for exactness in ("exact", "balanced"):
        names = {kernel.name for kernel in measured_kernels("cpu", able, exactness=exactness)}
        assert {LINEAR.name, GATED.name} <= names
        assert ({ROUNDED.name, ROUNDED_GATED.name} & names == set()) is (exactness == "exact")
