"""The whole way on the tiny bundle: steps, results, records, and what breaks off."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tintype
from tintype.bundle import manifest_digest
from tintype.errors import BundleError, NumericError, RecordError, RequestError
from tintype.graphs.resident import ALL_RESIDENT
from tintype.request import make_request, resolve
from tintype.stages.denoise import Denoiser


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_step_is_told_once_and_then_the_result_is_there(pipeline, steps):
    run = pipeline.steps("a house", seed=1, num_inference_steps=steps, sampler="euler")
    told = list(run)
    assert [step.index for step in told] == list(range(steps))
    assert {step.total for step in told} == {steps}
    assert run.result.image.size == (64, 64)
    np.testing.assert_array_equal(run.result.latents, told[-1].latents)


def test_steps_of_several_batches_count_on(pipeline):
    run = pipeline.steps("a house", seed=1, num_inference_steps=2, sampler="euler", count=3, batch_size=2)
    told = [(step.index, step.total, list(step.pictures)) for step in run]
    assert told == [(0, 4, [0, 1]), (1, 4, [0, 1]), (2, 4, [2]), (3, 4, [2])]
    assert [record.seed for record in run.result.records] == [1, 2, 3]


def test_a_preview_is_a_picture_and_the_last_one_is_the_result(pipeline):
    run = pipeline.steps("a house", seed=1, num_inference_steps=3, sampler="euler")
    previews = [step.preview(full=True) for step in run]
    assert [len(images) for images in previews] == [1, 1, 1]
    np.testing.assert_allclose(np.asarray(previews[-1][0], int), np.asarray(run.result.image, int), atol=1)


def test_the_same_request_makes_the_same_bytes(pipeline):
    first = pipeline.generate("a house", seed=5, num_inference_steps=2, sampler="euler_a")
    again = pipeline.generate("a house", seed=5, num_inference_steps=2, sampler="euler_a")
    assert first.image.tobytes() == again.image.tobytes()
    assert first.record == again.record


def test_a_picture_does_not_depend_on_its_neighbours(pipeline):
    three = pipeline.generate("a house", seed=5, num_inference_steps=2, count=3)
    alone = pipeline.generate("a house", seed=6, num_inference_steps=2)
    assert three.images[1].tobytes() == alone.image.tobytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 6},
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"negative_prompt": "snow"},
        {"sampler": "heun"},
        {"sigmas": "karras"},
        {"noise": "numpy"},
        {"num_inference_steps": 3},
    ],
    ids=str,
)
def test_every_field_reaches_the_picture(pipeline, changed):
    usual = {"seed": 5, "num_inference_steps": 2, "sampler": "euler"}
    plain = pipeline.generate("a house", **usual)
    other = pipeline.generate("a house", **{**usual, **changed})
    assert plain.latents.tobytes() != other.latents.tobytes()


def test_eta_reaches_the_picture(pipeline):
    usual = {"seed": 5, "num_inference_steps": 3, "sampler": "ddim"}
    plain = pipeline.generate("a house", **usual)
    assert plain.latents.tobytes() != pipeline.generate("a house", eta=1.0, **usual).latents.tobytes()


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (72, 40)])
def test_any_size_the_model_allows(pipeline, size):
    width, height = size
    result = pipeline.generate("a house", seed=1, num_inference_steps=1, width=width, height=height)
    assert result.image.size == size
    assert result.latents.shape == (1, 4, height // 4, width // 4)


@pytest.mark.parametrize("prompt", ["", "🏠 ein Haus, 一座房子, дом", "a house, " * 60, "a (very:0) [red] BREAK house"])
def test_any_text_is_a_prompt(pipeline, prompt):
    result = pipeline.generate(prompt, seed=1, num_inference_steps=1)
    assert result.record.request.prompt == prompt


def test_ten_thousand_words_are_refused_before_the_work(pipeline):
    with pytest.raises(RequestError, match="chunks"):
        pipeline.generate("house " * 10_000)


def test_a_field_that_is_none_of_a_request_is_named(pipeline):
    with pytest.raises(RequestError, match="num_inference_steps"):
        pipeline.generate("a house", num_inference_stepz=3)


def test_eta_with_a_sampler_that_has_none_is_refused(pipeline):
    with pytest.raises(RequestError, match="eta"):
        pipeline.generate("a house", sampler="euler", eta=0.5)


def test_stopping_early_leaves_no_result_and_a_usable_pipeline(pipeline):
    run = pipeline.steps("a house", seed=1, num_inference_steps=5)
    next(run)
    run.close()
    assert list(run) == []
    with pytest.raises(RuntimeError, match="no result"):
        _ = run.result
    assert pipeline.generate("a house", seed=1, num_inference_steps=1).image.size == (64, 64)


def test_an_interruption_within_a_step_leaves_a_usable_pipeline(pipeline, monkeypatch):
    def interrupt(self, latents, sigma, timestep):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "__call__", interrupt)
        run = pipeline.steps("a house", seed=1, num_inference_steps=2)
        with pytest.raises(KeyboardInterrupt):
            next(run)
    assert list(run) == []
    assert pipeline.generate("a house", seed=1, num_inference_steps=1).image.size == (64, 64)


@pytest.mark.parametrize("config", ["", "[]", "null", "{", "[" * 100_000, '{"beta_start": "x"}', '{"beta_start": NaN}'])
def test_a_scheduler_config_that_is_none_is_refused_before_anything_is_built(tiny_bundle, tmp_path, remake, config):
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    (copy / "scheduler/scheduler_config.json").write_text(config)
    remake(copy)
    with pytest.raises(BundleError, match="scheduler"):
        tintype.load(copy)


def test_a_tokenizer_that_is_none_is_refused(tiny_bundle, tmp_path, remake):
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    (copy / "tokenizer/tokenizer.json").write_text("{}")
    remake(copy)
    with pytest.raises(BundleError, match="tokenizer"):
        tintype.load(copy)


def test_a_closed_pipeline_opens_again(tiny_bundle):
    opened = tintype.load(tiny_bundle, threads=1)
    first = opened.generate("a house", seed=1, num_inference_steps=1)
    opened.close()
    assert opened.generate("a house", seed=1, num_inference_steps=1).image.tobytes() == first.image.tobytes()
    opened.close()


def test_times_and_memory_are_told(pipeline):
    timings = pipeline.generate("a house", seed=1, num_inference_steps=2).timings
    stages = (timings.encode_seconds, timings.denoise_seconds, timings.decode_seconds)
    assert min(stages) > 0
    assert sum(stages) + timings.load_seconds <= timings.total_seconds
    assert 2**24 < timings.peak_rss_bytes < 2**36


@pytest.mark.parametrize("steps", [1, 3])
def test_of_denoising_the_time_inside_the_graph_is_told_apart(pipeline, monkeypatch, steps):
    pipeline.generate("a house", seed=1, num_inference_steps=1)
    request = resolve(make_request("a house", {"num_inference_steps": steps}), pipeline.bundle.manifest)
    use = pipeline.context(request).use("denoiser")
    session = pipeline.graphs.session(use, pipeline.graphs.options(use, request.exactness), ALL_RESIDENT)
    hold, held_at = session.hold, []

    def noting_hold(inputs):
        held = hold(inputs)
        held_at.append(session.run_seconds)
        return held

    monkeypatch.setattr(session, "hold", noting_hold)
    timings = pipeline.generate("a house", seed=2, num_inference_steps=steps).timings
    assert timings.denoise_graph_seconds == pytest.approx(session.run_seconds - held_at[0], abs=1e-9)
    assert 0 < timings.denoise_graph_seconds < timings.denoise_seconds


def test_a_record_makes_the_same_file(pipeline, tmp_path):
    result = pipeline.generate('a house, 2:1 "old"\nred', seed=1, num_inference_steps=2, count=3, batch_size=2)
    written = result.save(tmp_path / "x.png")
    assert [path.name for path in written] == ["x-1.png", "x-2.png", "x-3.png"]
    for path in written:
        again = pipeline.reproduce(tintype.read_record(path))
        assert len(again.images) == 1
        again.save(tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_a_record_from_elsewhere_is_refused_by_reason_and_tried_on_request(pipeline, tiny_bundle, tmp_path, remake):
    record = pipeline.generate("a house", seed=1, num_inference_steps=1).record
    with tintype.load(tiny_bundle, threads=2) as other:
        with pytest.raises(RecordError, match="threads was 1, here it is 2"):
            other.reproduce(record)
        assert other.reproduce(record, anyway=True).image.size == (64, 64)
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    remake(copy, name="renamed")
    with tintype.load(copy, threads=1) as other, pytest.raises(RecordError, match="another bundle"):
        other.reproduce(record)


def test_a_model_whose_output_is_nan_is_an_error_that_names_the_step(tiny_bundle, tmp_path, remake):
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    weights = copy / "unet/model.onnx_data"
    weights.write_bytes(np.full(weights.stat().st_size // 4, np.nan, np.float32).tobytes())
    remake(copy)
    with tintype.load(copy, threads=1) as broken:
        with pytest.raises(NumericError, match="step 1 of 2"):
            broken.generate("a house", num_inference_steps=2)
        with pytest.raises(NumericError):
            broken.generate("a house", num_inference_steps=2, guidance_scale=1.0)


def test_a_decoder_that_gives_nan_is_an_error_and_the_latents_are_kept(tiny_bundle, tmp_path, remake):
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    for data in (copy / "vae_decoder").glob("*_data"):
        data.write_bytes(np.full(data.stat().st_size // 4, np.nan, np.float32).tobytes())
    remake(copy)
    with tintype.load(copy, threads=1) as broken:
        run = broken.steps("a house", num_inference_steps=1)
        with pytest.raises(NumericError, match="decoder"):
            list(run)
        assert run.latents is not None
        assert run.latents.shape == (1, 4, 16, 16)


def test_a_bundle_without_a_denoiser_is_refused(tiny_bundle, tmp_path):
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    value = json.loads((copy / "tintype.json").read_text())
    del value["graphs"]["denoiser"]
    value["digest"] = manifest_digest(value)
    (copy / "tintype.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match="has no denoiser"):
        tintype.load(copy)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_impossible_threads_are_refused(tiny_bundle, threads):
    with pytest.raises(RequestError, match="threads"):
        tintype.load(tiny_bundle, threads=threads)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel's own figure is used")
def test_the_peak_is_this_processs_own_and_not_its_parents() -> None:
    code = "from tintype.engine import peak_rss_bytes; print(peak_rss_bytes())"
    ballast = np.ones(2**25)  # 256 MiB here, which a child's ru_maxrss would start from
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ballast[-1] == 1.0
    assert 2**23 < int(child.stdout) < 2**27
