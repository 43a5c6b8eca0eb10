"""Distillation: what the student is to predict ends where the teacher's segment ends, and what is trained is saved."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tintype.models.postcard import denoiser, distill, progress, recipe, text
from tintype.sampling.euler import euler_step
from tintype.sampling.parametrization import V_PREDICTION

SMOKE = recipe.RECIPES["smoke"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose UNet has random weights; copy it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "RUNS", tmp_path_factory.mktemp("made"))
        torch.manual_seed(0)
        unet = denoiser.make_unet(SMOKE)
        progress.Stage(SMOKE.folder, "unet", 0).save({"model": unet, "ema": progress.Ema(unet, 0.9)})
        text.train_text_encoder(dataclasses.replace(SMOKE, text_samples=0), CPU)
        return SMOKE.folder


@pytest.fixture
def teacher(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    shutil.copytree(made, SMOKE.folder)
    return denoiser.load_ema(SMOKE, "unet", denoiser.make_unet(SMOKE))


def test_the_teachers_way_passes_where_the_students_steps_begin() -> None:
    from tintype.sampling import make_schedule

    ways = distill.teacher_schedule(SMOKE)
    student = make_schedule(ways.config, "euler", SMOKE.fast_steps, "trailing")
    assert list(ways.timesteps[:: distill.TEACHER_STEPS]) == list(student.timesteps)
    np.testing.assert_allclose(ways.sigmas[:: distill.TEACHER_STEPS], student.sigmas, rtol=1e-6)


@pytest.mark.slow
def test_a_straight_jump_by_what_the_student_is_to_predict_ends_where_the_segment_does(
    teacher: torch.nn.Module,
) -> None:
    distill.draw_ways(SMOKE, CPU)
    jumps, schedule = distill.Jumps(SMOKE), distill.teacher_schedule(SMOKE)
    assert jumps.ways.shape == (SMOKE.fast_ways, SMOKE.fast_steps * distill.TEACHER_STEPS + 1, 4, 8, 8)
    way = jumps.ways[1].astype(np.float32)
    latents = [seen * np.float32(np.hypot(1.0, sigma)) for seen, sigma in zip(way, schedule.sigmas, strict=True)]
    for step, end in ((0, 2), (1, 2), (2, 4), (5, 6), (6, 8), (7, 8)):
        sigma = float(schedule.sigmas[step])
        denoised = V_PREDICTION.denoised(jumps.velocity(jumps.ways[1], step), latents[step], sigma)
        landing = euler_step(latents[step], denoised, sigma, float(schedule.sigmas[end]))
        np.testing.assert_allclose(landing, latents[end], atol=2e-3 * sigma)


@pytest.mark.slow
def test_the_teachers_first_step_is_its_guided_prediction(teacher: torch.nn.Module) -> None:
    """Two steps a segment: the way's own first point is one step of dpmpp_2m, which is Euler's in log sigma."""
    from tintype.models.postcard.pack import GUIDANCE_SCALE
    from tintype.sampling import noise_source

    distill.draw_ways(SMOKE, CPU)
    jumps, schedule = distill.Jumps(SMOKE), distill.teacher_schedule(SMOKE)
    words = text.embed(text.train_text_encoder(SMOKE, CPU), text.load_tokenizer(SMOKE), ["", str(jumps.captions[2])])
    seen = torch.from_numpy(jumps.ways[2, 0].astype(np.float32))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, worded = teacher(seen.repeat(2, 1, 1, 1), schedule.timesteps[0], words).sample.float().numpy()
    sigma, sigma_next = map(float, schedule.sigmas[:2])
    latents = noise_source("philox", [2]).draw((1, 4, 8, 8))[0] * schedule.initial_scale
    denoised = V_PREDICTION.denoised(plain + GUIDANCE_SCALE * (worded - plain), latents, sigma)
    expected = euler_step(latents, denoised, sigma, sigma_next)
    found = jumps.ways[2, 1].astype(np.float32) * np.hypot(1.0, sigma_next)
    np.testing.assert_allclose(found, expected, atol=0.05 * sigma_next)


@pytest.mark.slow
def test_what_was_drawn_is_not_drawn_again_and_what_is_missing_is_the_same(teacher: torch.nn.Module) -> None:
    distill.draw_ways(SMOKE, CPU)
    path = distill.ways_path(SMOKE, 0)
    first, written = distill.Jumps(SMOKE), path.stat().st_mtime_ns
    distill.draw_ways(SMOKE, CPU)
    assert path.stat().st_mtime_ns == written
    path.unlink()
    distill.draw_ways(SMOKE, CPU)
    again = distill.Jumps(SMOKE)
    assert list(again.captions) == list(first.captions)
    np.testing.assert_array_equal(again.ways, first.ways)


@pytest.mark.slow
def test_training_begins_as_the_teacher_resumes_and_is_saved_beside_its_other_parts(
    teacher: torch.nn.Module, tmp_path: Path
) -> None:
    from diffusers import UNet2DConditionModel

    distill.draw_ways(SMOKE, CPU)
    untrained = dataclasses.replace(SMOKE, fast_samples=0)
    first = distill.train_fast(untrained, CPU)
    assert torch.equal(first.conv_out.weight, teacher.conv_out.weight)
    trained = distill.train_fast(SMOKE, CPU)
    assert not torch.equal(trained.conv_out.weight, teacher.conv_out.weight)
    longer = dataclasses.replace(SMOKE, fast_samples=SMOKE.fast_samples + SMOKE.fast_batch)
    distill.train_fast(longer, CPU)
    state = torch.load(SMOKE.folder / "fast.pt", weights_only=True)
    assert state["samples"] == longer.fast_samples
    assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {longer.fast_samples // longer.fast_batch}

    checkpoint = tmp_path / "teacher"
    (checkpoint / "vae").mkdir(parents=True)
    (checkpoint / "vae" / "config.json").write_text("{}")
    teacher.save_pretrained(checkpoint / "unet")
    distill.save_fast(SMOKE, checkpoint, SMOKE.fast_folder)
    saved = UNet2DConditionModel.from_pretrained(SMOKE.fast_folder / "unet", dtype=torch.float32)
    assert torch.equal(saved.conv_out.weight, state["ema"]["shadow"]["conv_out.weight"].half().float())
    assert (SMOKE.fast_folder / "vae" / "config.json").read_text() == "{}"
