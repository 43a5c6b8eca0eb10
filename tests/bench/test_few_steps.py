"""Pictures of few steps, which count from the start of loading: shapes, tiny decoders and peers, on tiny models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tintype.bench.job import Job
from tintype.bench.make_sdxl import make_parts, write_checkpoint
from tintype.bench.measurement import BARS, Bar, judge
from tintype.bench.options import Size
from tintype.bench.peers import float_bundle, load, picture_rows
from tintype.bench.runner import Schedule
from tintype.bench.sd15 import BALANCED, COMPILED, EXACT, WITHIN, picture_comparison, picture_contestants
from tintype.bench.shapes import SHAPES
from tintype.bundle import open_bundle
from tintype.bundle.manifest import TINY_DECODER
from tintype.errors import RequestError
from tintype.export.checkpoint import hollow_module, open_checkpoint

pytestmark = pytest.mark.slow
ONE_STEP: dict[str, Any] = {"size": Size(64, 64), "num_inference_steps": 1, "guidance_scale": 1.0, "threads": 1}
STAGES = ("encode", "denoise", "decode", "save")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make` leaves for SD 1.5's shape with few channels; both bundles are the fp32 one."""
    folder = tmp_path_factory.mktemp("tiny")
    assert set(make_parts(folder, ("checkpoint", "fp32", "sdcpp"), 1.0, "tiny")) == {"checkpoint", "fp32", "sdcpp"}
    (folder / "int8").symlink_to("fp32", target_is_directory=True)
    return folder


@pytest.mark.bench
def test_first_and_later_pictures_have_their_stages_told_and_are_held_against_the_best_peer(
    tiny: Path, tmp_path: Path
) -> None:
    peers = picture_contestants(tiny, decoder="tiny", peers=("diffusers",), budget="2GiB", **ONE_STEP)
    assert "--decoder" in peers[EXACT].build
    assert peers[WITHIN].build[0] == "plan"
    part = picture_comparison(peers).run(Schedule(rounds=1), tmp_path)
    for name, figures in part["peers"].items():
        assert figures["seconds"]["runs"] == 3
        assert figures["first_seconds"]["median"] > figures["load_seconds"]["median"]
        told = STAGES if name != "diffusers" else ("denoise", "save")
        stages = [figures[f"first_{stage}_seconds"]["median"] for stage in told]
        assert min(stages) > 0
        assert sum(stages) < figures["first_seconds"]["median"]
    assert {bar["what"] for bar in part["bars"]} == {
        f"{name} over the best peer, {figure}"
        for name in (EXACT, BALANCED, WITHIN)
        for figure in ("first_seconds", "seconds", "peak_rss_bytes")
    }


@pytest.mark.reference
@pytest.mark.bench
def test_every_peer_draws_by_the_tiny_decoder(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler of C++")
    make_parts(tiny, ("openvino-f32", "openvino-int8"), 1.0, "tiny")
    assert (tiny / "openvino-int8" / f"{TINY_DECODER}.xml").is_file()
    names = ("openvino-f32", "openvino-int8", COMPILED)
    peers = picture_contestants(tiny, decoder="tiny", peers=names, exactness=("exact",), **ONE_STEP)
    part = picture_comparison(peers).run(Schedule(rounds=1), tmp_path)
    assert set(part["peers"]) == {*names, EXACT}
    assert all(figures["cold_seconds"] > 0 for figures in part["peers"].values())
    assert [path for path in (tiny / "cache" / "openvino").iterdir() if path.suffix == ".blob"]
    assert any((tiny / "cache" / "inductor").iterdir())


def test_bare_graphs_of_xl_are_told_words_and_sizes(xl_bundle: Path) -> None:
    job = Job(model=str(xl_bundle), width=64, height=128, num_inference_steps=2, guidance_scale=5.0, threads=1)
    rows = {"text_encoder": 2, "text_encoder_2": 2, "denoiser": 2, "vae_decoder": 1}
    assert picture_rows(job) == rows
    picture = load(job, "onnxruntime")(0, job)["picture"]
    assert picture.size == (64, 128)
    assert np.std(np.asarray(picture)) > 1


@pytest.mark.reference
@pytest.mark.bench
def test_weights_of_16_bits_are_the_same_for_every_runtime(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from safetensors.numpy import load_file

    made = make_parts(tmp_path, ("checkpoint", "fp32", "openvino-f32"), 1.0, "tiny-xl")
    assert list(made) == ["checkpoint", "fp16", "openvino-f32"]
    assert float_bundle(tmp_path) == tmp_path / "fp16"
    unet = load_file(tmp_path / "checkpoint/unet/diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in unet.values()} == {np.dtype(np.float16)}
    assert open_bundle(tmp_path / "fp16").graph("denoiser").precision == "fp16"
    size = sum(weight.nbytes for weight in unet.values())
    assert (tmp_path / "openvino-f32/unet.bin").stat().st_size < 1.2 * size
    job = Job(model=str(tmp_path / "fp16"), role="denoiser", width=64, height=64, threads=1)
    theirs = load(replace(job, checkpoint=str(tmp_path / "openvino-f32")), "openvino")(0, job)["output"]
    ours = load(job, "onnxruntime")(0, job)["output"]
    np.testing.assert_allclose(theirs, ours, atol=5e-3 * np.abs(ours).max())


def test_the_shape_of_sdxs_is_the_published_one(tmp_path: Path) -> None:
    """0.33 billion parameters (Song et al. 2024, table 1), no middle block, decoded by TAESD."""
    write_checkpoint(tmp_path, SHAPES["sdxs"])
    checkpoint = open_checkpoint(tmp_path)
    unet: Any = hollow_module(checkpoint, "unet")
    assert round(sum(weight.numel() for weight in unet.parameters()) / 1e9, 2) == 0.33
    assert unet.mid_block is None
    first, second = (block.attentions[0].transformer_blocks[0] for block in unet.down_blocks[:2])
    assert first.attn1.to_k.in_features == 1024  # of the words: the finest level looks at nothing else
    assert second.attn1.to_k.in_features == 640
    assert type(hollow_module(checkpoint, "vae")).__name__ == "AutoencoderTiny"
    assert checkpoint.scaling_factor == 1.0


def test_a_budget_that_is_no_size_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="12parsecs"):
        picture_contestants(tmp_path, **ONE_STEP, budget="12parsecs")


def test_the_best_peer_is_the_least_of_those_that_were_measured() -> None:
    table = {name: {"seconds": {"median": each}} for name, each in (("ours", 7.0), ("a", 10.0), ("b", 9.0))}
    judged = {"what": "ours over the best peer, seconds", "at_most": 0.8}
    assert judge([Bar("ours", over=["a", "b", "c"], at_most=0.8)], table) == [{**judged, "value": 0.7778, "met": True}]
    assert judge([Bar("ours", over=["a"], at_most=0.8)], table) == [{**judged, "value": 0.7, "met": True}]
    assert judge([Bar("ours", over=["c"], at_most=0.8)], table) == []
    exact, balanced = (
        {name for bar in BARS["sd15 few steps"] if bar.who == who for name in bar.over or ()}
        for who in (EXACT, BALANCED)
    )
    assert balanced - exact == {"openvino-int8"}
