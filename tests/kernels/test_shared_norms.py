"""Norms that share statistics: the same graph with none given, and tiles that are normalized as the whole image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import tintype
from tintype.engine import graph_session
from tintype.image.tiles import Tiling, alike, run_tiled
from tintype.kernels.group_norm import GroupNormAsLayerNorm
from tintype.kernels.shared_norms import GIVEN, SEEN, SHARE, reference, share_statistics


def norm_graph(path: Path, *, groups: tuple[int, ...] = (4,), rank: int = 4) -> list[np.ndarray]:
    """GroupNormalization after GroupNormalization on 8 channels; returns scale and bias."""
    random = np.random.default_rng(0)
    weights = [random.standard_normal(8).astype(np.float32) for _ in range(2)]
    names = ["x", *(f"h{index}" for index in range(len(groups) - 1)), "y"]
    nodes = [
        helper.make_node("GroupNormalization", [source, "s", "b"], [target], num_groups=count, epsilon=1e-4)
        for source, target, count in zip(names[:-1], names[1:], groups, strict=True)
    ]
    shape = ["n", 8, *(f"d{axis}" for axis in range(rank - 2))]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    middle = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names[1:-1]]
    initializers = [numpy_helper.from_array(weight, name) for weight, name in zip(weights, "sb", strict=True)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], initializers, value_info=middle)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return weights


def shared(source: Path, folder: Path) -> Path:
    model = ir.load(source)
    assert share_statistics(model) > 0
    ir.save(model, folder / "shared.onnx", external_data="shared.onnx_data")
    return folder / "shared.onnx"


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_without_a_share_nothing_changes_and_with_it_the_given_statistics_count(tmp_path, rank, mean):
    scale, bias = norm_graph(tmp_path / "x.onnx", rank=rank)
    shape = (1, 8, 6) if rank == 3 else (1, 8, 6, 5)
    x = (np.random.default_rng(1).standard_normal(shape) + mean).astype(np.float32)
    given = np.random.default_rng(2).uniform(0.5, 2.0, (1, 2, 4)).astype(np.float32)
    with graph_session(shared(tmp_path / "x.onnx", tmp_path)) as session:
        own = session.run({"x": x, SHARE: np.zeros(1, np.float32), GIVEN: given})
        other = session.run({"x": x, SHARE: np.ones(1, np.float32), GIVEN: given})
    grouped = x.reshape(4, -1).astype(np.float64)
    np.testing.assert_allclose(own["y"], GroupNormAsLayerNorm.reference(x, scale, bias, 4, 1e-4), atol=2e-4)
    np.testing.assert_allclose(own[SEEN][0], [grouped.mean(1), grouped.var(1)], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(other["y"], reference(x, scale, bias, given[0], 1e-4), rtol=1e-4, atol=2e-4)


def test_several_norms_keep_their_order(tmp_path):
    norm_graph(tmp_path / "x.onnx", groups=(4, 4, 4))
    x = np.random.default_rng(1).standard_normal((1, 8, 4, 4)).astype(np.float32) * 3
    with graph_session(shared(tmp_path / "x.onnx", tmp_path)) as session:
        feed = {"x": x, SHARE: np.zeros(1, np.float32), GIVEN: np.zeros((3, 2, 4), np.float32)}
        seen = session.run(feed)[SEEN]
        again = session.run({**feed, SHARE: np.ones(1, np.float32), GIVEN: seen})
        np.testing.assert_allclose(again["y"], session.run(feed)["y"], atol=1e-5)
    np.testing.assert_allclose(seen[0, 1], x.reshape(4, -1).var(1), rtol=1e-4)


def test_norms_of_different_groups_are_left_alone(tmp_path):
    norm_graph(tmp_path / "x.onnx", groups=(4, 2))
    model = ir.load(tmp_path / "x.onnx")
    assert share_statistics(model) == 0
    assert [node.op_type for node in model.graph] == ["GroupNormalization"] * 2
    assert len(model.graph.inputs) == 1


def psnr_db(one, other):
    return 20 * np.log10(255 / np.sqrt(np.mean((one.clip(-1, 1) - other.clip(-1, 1)) ** 2)) / 127.5)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "tile", "overlap"), [(256, 32, 8), (512, 32, 8), (512, 48, 12), (512, 64, 16)])
def test_postcards_tiles_are_near_the_whole_at_any_size(tmp_path, side, tile, overlap):
    with tintype.load("postcard", provider="cpu") as pipeline:
        words = "a red sailboat on a calm sea at sunset"
        latents = pipeline.generate(words, seed=7, width=side, height=side, num_inference_steps=6).latents
        latents = latents / np.float32(pipeline.bundle.manifest.scaling_factor)
        canonical = pipeline.bundle.graph_path("vae_decoder")
        path = shared(canonical, tmp_path)
        with graph_session(canonical) as decoder:
            whole = decoder.run({"latent_sample": latents})["sample"]
            plain = run_tiled(lambda z: decoder.run({"latent_sample": z})["sample"], latents, Tiling(tile, overlap))
    with graph_session(path) as session:
        none = np.zeros(session.input_shapes[GIVEN], np.float32)

        def decode(z, statistics):
            share = np.array([statistics is not None], np.float32)
            told = session.run({"latent_sample": z, SHARE: share, GIVEN: none if statistics is None else statistics})
            return told["sample"], told[SEEN]

        tiling = Tiling(tile, overlap)
        tiled = run_tiled(alike(decode, latents, tiling), latents, tiling)
    print(f"{side}/{tile}/{overlap}: plain {psnr_db(whole, plain):.1f} dB, shared {psnr_db(whole, tiled):.1f} dB")
    assert psnr_db(whole, tiled) >= 40.0
