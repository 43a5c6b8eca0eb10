"""Bundles of four bits draw: exact and balanced, within a budget, with LoRAs at run time and merged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from loras import ATTENTION, TRANSFORMER, pairs, save_kohya
from lowered_graphs import run_lowered
from pictures import PROMPT, psnr_db

import tintype
from tintype import arrays
from tintype.bundle import open_bundle
from tintype.bundle.merging import merge
from tintype.engine import BuildOptions, has_ability, open_role, read_report, resolve_provider, run_graph
from tintype.engine.build.analyse import analysis_of
from tintype.engine.build.builds import find_build
from tintype.kernels.native.four_bit_linear import NativeFourBitGeglu, NativeFourBitLinear
from tintype.kernels.registry import kernels_for, lower
from tintype.memory.mode import PACKED
from tintype.memory.reckoning import reckon
from tintype.uses import GraphRef

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {
    "seed": 7, "num_inference_steps": 3, "width": 64, "height": 48, "sampler": "euler", "watermark": False,
}  # fmt: skip
DIMS = {"batch": 2, "height": 16, "width": 16, "sequence": 77}


@pytest.fixture(scope="module")
def lora(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet = pairs(tiny_checkpoint, "unet", (*ATTENTION, *TRANSFORMER), 4, seed=1, size=0.5)
    return save_kohya(tmp_path_factory.mktemp("lora") / "lora.safetensors", {"unet": unet}, alpha=2.0)


def drawn(bundle: Path, exactness: str = "exact", **more: Any) -> np.ndarray:
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        return np.asarray(pipeline.generate(PROMPT, exactness=exactness, **{**ASKED, **more}).pixels) * 255


def test_the_picture_is_near_that_of_floats(four_bit_bundle: Path, tiny_bundle: Path) -> None:
    whole, small, balanced = drawn(tiny_bundle), drawn(four_bit_bundle), drawn(four_bit_bundle, "balanced")
    near, rounded = psnr_db(small, whole), psnr_db(balanced, small)
    print(f"{near:.1f} dB, balanced {rounded:.1f}")
    assert near > 22
    assert rounded > 24  # most of it by convolutions, as in an int8 bundle


def test_products_read_four_bits_and_the_plan_counts_them(four_bit_bundle: Path) -> None:
    bundle, options = (
        open_bundle(four_bit_bundle),
        BuildOptions.for_shape(DIMS, exactness="exact", threads=1, mapped=True),
    )
    facts = analysis_of(bundle, GraphRef("denoiser"), options)
    assert 0 < facts.saved_bytes < facts.float_bytes
    host, device = (
        reckon(facts, PACKED, floats=True, rate=1e9, on_device=on_device).peak_bytes for on_device in (False, True)
    )
    assert host < device + 1.2 * facts.float_bytes  # packed on the processor: twice, but what is saved
    with open_role(bundle, "denoiser", resolve_provider("cpu"), options=options, threads=1):
        folder = find_build(bundle, "denoiser", resolve_provider("cpu"), options=options)
    assert folder is not None
    chosen = read_report(folder)["choices"]
    assert [choice for choice in chosen if "MatMul" in choice["layer"]]
    nodes = [node for path in folder.glob("*.onnx") for node in ir.load(path).graph]
    products = [node for node in nodes if node.op_type in ("MatMulNBits", "FourBitLinear")]
    assert products  # mapped builds make nothing larger
    assert all(node.attributes.get_int("bits", 4) in (4, 8) for node in products)
    assert [node for node in products if node.attributes.get_int("bits", 4) == 4]


def test_our_own_nodes_give_what_onnx_runtimes_do(four_bit_bundle: Path, tmp_path: Path) -> None:
    """A whole denoiser with every layer of four bits that one of ours can do, and the same as ONNX Runtime does it."""
    if not has_ability(resolve_provider("cpu"), "native"):
        pytest.skip("no native kernels")
    found, counts = {}, {}
    for way in ("theirs", "linear", "geglu"):
        own = {"linear": [NativeFourBitLinear()], "geglu": [NativeFourBitGeglu(), NativeFourBitLinear()]}.get(way, [])
        model, found[way] = run_lowered(four_bit_bundle, DIMS, own, tmp_path / f"{way}.onnx")
        counts[way] = Counter(node.op_type for node in model.graph)["FourBitLinear"]
    assert counts["linear"] > counts["geglu"] > 4 > counts["theirs"] == 0  # two layers of a GEGLU are one node
    assert min(arrays.psnr_db(found["theirs"], found[way]) for way in ("linear", "geglu")) > 100


def test_a_lora_draws_at_run_time_and_merged(four_bit_bundle: Path, lora: Path, tmp_path: Path) -> None:
    facts = merge(open_bundle(four_bit_bundle), [(lora, 0.8)], tmp_path / "merged")
    near = facts.changed["denoiser"].snr_db
    assert near is not None
    assert 15 < near < 60
    plain, there = drawn(four_bit_bundle), drawn(four_bit_bundle, loras=[(lora, 0.8)])
    merged = drawn(tmp_path / "merged")
    print(f"{near:.1f} dB of weights; {psnr_db(merged, there):.1f} dB, {psnr_db(plain, there):.1f} without")
    assert psnr_db(merged, there) > psnr_db(plain, there) + 5
    np.testing.assert_array_equal(drawn(four_bit_bundle, loras=[(lora, 0.0)]), plain)


def test_a_lora_does_to_four_bits_what_it_does_to_floats(four_bit_bundle: Path, tiny_bundle: Path, lora: Path) -> None:
    added = [(lora, 0.8)]
    near = psnr_db(drawn(four_bit_bundle, loras=added), drawn(tiny_bundle, loras=added))
    without = psnr_db(drawn(four_bit_bundle), drawn(tiny_bundle, loras=added))
    print(f"{near:.1f} dB, {without:.1f} without")
    assert near > without + 3


@pytest.mark.parametrize("target", ["openvino", "webgpu", "directml", "cuda"])
def test_devices_get_floats_or_products_that_read_four_bits(four_bit_bundle: Path, tmp_path: Path, target: str) -> None:
    """What each device is given means the same; the processor, which knows all its operators, says so."""
    path = open_bundle(four_bit_bundle).graph_path("text_encoder")
    feed = {"input_ids": np.tile(np.arange(77, dtype=np.int64), (2, 1))}
    expected = run_graph(path, feed, lowered=False)
    model = ir.load(path)
    lower(model, target, kernels=kernels_for(target, exactness="exact"))
    stored = {value.dtype for value in model.graph.initializers.values()}
    assert not stored & {ir.DataType.UINT4, ir.DataType.INT8}
    operators = {node.op_type for node in model.graph}
    assert "DequantizeLinear" not in operators
    assert ("MatMulNBits" in operators) == (target == "cuda")
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    found = run_graph(tmp_path / "model.onnx", feed, lowered=False)
    assert min(arrays.psnr_db(expected[name], found[name]) for name in expected) > 100
