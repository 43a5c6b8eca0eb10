"""Which way to do a layer is likely the fastest: told by the nearest one that was timed on such a processor."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.engine import graph_session, has_ability
from tintype.engine.build.measure import AS_IS, fastest, layer_costs, likely_ways, refusals
from tintype.engine.device.providers import TARGETS
from tintype.kernels.graph import choice, priors
from tintype.kernels.graph.priors import LIKEST, Priors, Row, Timed, all_priors, priors_for
from tintype.kernels.native.library import FOUR_BITS
from tintype.kernels.registry import measured_kernels


def _convolution(model_of, random, inputs=32, outputs=48, side=16):
    weight = random.standard_normal((outputs, inputs, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "weight"], ["y"], name="layer", pads=[1, 1, 1, 1])]
    return model_of(nodes, {"x": (TensorProto.FLOAT, [1, inputs, side, side])}, ["y"], {"weight": weight})


def _layer(model_of, random, **sizes):
    loaded = ir.from_proto(_convolution(model_of, random, **sizes))
    (layer,) = choice.layers(loaded.graph, measured_kernels("cpu"))
    return layer


def _table(*rows):
    return Priors("avx2", 1, tuple(Row("Conv 3x3", size, ways) for size, ways in rows))


FAST = {AS_IS: Timed(1.0, 4.0, 200.0), "winograd4": Timed(0.5, 16.0, 130.0)}
SLOW = {AS_IS: Timed(1.0, 4.0, 200.0), "winograd4": Timed(2.0, 16.0, 130.0)}


def test_a_layer_does_as_the_nearest_timed_ones_of_its_kind(model_of, random):
    table = _table(((256, 32, 32), FAST), ((256, 1024, 1024), SLOW))
    near, far = (_layer(model_of, random, inputs=n, outputs=n) for n in (32, 1000))
    assert near.kind == "Conv 3x3"
    assert near.size == (256, 32, 32)
    seconds = [likely_ways(layer, table)["winograd4"].seconds for layer in (near, far)]
    assert seconds == pytest.approx([0.5, 2.0], rel=0.05)


def test_one_disturbed_row_does_not_decide(model_of, random):
    rows = [((256, inputs, 32), FAST) for inputs in (26, 29, 36, 40)]
    ways = likely_ways(_layer(model_of, random, outputs=32), _table(((256, 32, 32), SLOW), *rows))
    assert ways["winograd4"].seconds < 1


def test_weights_are_told_for_the_layer_at_hand(model_of, random):
    layer = _layer(model_of, random)
    ways = likely_ways(layer, _table(((256, 32, 32), FAST)))
    assert ways[AS_IS].weight_bytes == 48 * 32 * 9 * 4
    assert ways["winograd4"].weight_bytes == 48 * 32 * 9 * 16


def test_a_kind_that_nobody_timed_stays_as_it_is(model_of, random):
    assert set(likely_ways(_layer(model_of, random), Priors("avx2", 1, ()))) == {AS_IS}


def test_of_a_kind_that_nobody_timed_a_kernel_may_say_what_it_takes(model_of, random):
    weight = {
        "weight": random.integers(0, 16, (64, 32)).astype(ml_dtypes.uint4),
        "scale": np.full((2, 32), 0.5, np.float32),
        "zero": np.full((2, 32), 7, np.uint8).astype(ml_dtypes.uint4),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["float"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "float"], ["y"], name="layer"),
    ]
    loaded = ir.from_proto(model_of(nodes, {"x": (TensorProto.FLOAT, [16, 64])}, ["y"], weight))
    for able, best in (((), "nbits_linear"), (("native", FOUR_BITS), "native_four_bit_integer_linear")):
        (layer,) = choice.layers(loaded.graph, measured_kernels("cpu", able))
        ways = likely_ways(layer, Priors("avx2", 1, ()))
        assert fastest(ways, refusals(ways, {})) == best
        assert all(way.weight_bytes == layer.stored_bytes for way in ways.values())
        timed = {AS_IS: Timed(1.0, 0.64, 200.0), "nbits_linear": Timed(2.0, 0.64, 60.0)}
        ways = likely_ways(layer, Priors("avx2", 1, (Row(layer.kind, layer.size, timed),)))
        assert fastest(ways, refusals(ways, {})) == AS_IS  # what was timed counts alone


def test_what_timing_tells_is_what_a_table_holds(model_of, random):
    ((kind, size, ways),) = layer_costs(_convolution(model_of, random), TARGETS["cpu"], threads=1)
    assert (kind, size) == ("Conv 3x3", [256, 32, 48])
    ours = {"native_winograd_few"} if has_ability(TARGETS["cpu"], "native") else set()
    assert set(ways) == {AS_IS, "winograd2", "winograd4", "winograd6"} | ours
    assert all(seconds > 0 and psnr > 90 for seconds, _, psnr in ways.values())
    assert ways["winograd4"][1] == pytest.approx(16, rel=0.1)
    assert ways[AS_IS][1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    "processor", ["sse2", "sse4.2", "avx2", "avx512", "avx512-vnni", "neon", "neon-dotprod", "riscv"]
)
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_every_processor_has_a_table(processor, threads):
    table = priors_for(processor, threads)
    assert table.rows
    timed = {each.processor for each in all_priors()}
    assert table.processor == processor if processor in timed else table.processor == LIKEST.get(processor, "avx2")


@pytest.mark.parametrize("processor", ["avx2", "avx512", "avx512-vnni", "neon", "neon-dotprod"])
def test_operators_of_our_own_were_timed_where_first_pictures_choose_by_it(processor):
    known = {name for row in priors_for(processor, 2).rows for name in row.ways}
    floats = {"native_attention", "native_geglu", "native_group_norm", "native_linear", "native_winograd"}
    assert floats <= known
    assert ("native_integer_conv" in known) == (processor in ("avx512-vnni", "neon-dotprod"))


def test_avx2_whose_mixed_products_are_exact_has_vnni():
    assert priors_for("avx2", 1, {"mixed_products"}).processor == "avx512-vnni"
    assert priors_for("avx2", 1).processor == "avx2"


def test_builds_for_any_shape_multiply_integers_by_default(model_of, random, tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["float"], axis=1),
        helper.make_node("MatMul", ["x", "float"], ["y"]),
    ]
    constants = {
        "weight": random.integers(-127, 128, (64, 32)).astype(np.int8),
        "scale": np.full(32, 0.01, np.float32),
    }
    onnx.save(model_of(nodes, {"x": (TensorProto.FLOAT, ["batch", 64])}, ["y"], constants), tmp_path / "model.onnx")
    with graph_session(tmp_path / "model.onnx", threads=1) as session:
        assert session.placement.count("DynamicQuantizeMatMul") == 1


def test_the_names_of_what_stays_are_one():
    assert choice.AS_IS == AS_IS == priors.AS_IS
