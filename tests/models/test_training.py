"""Training, from one end to the other in a recipe of seconds: what it saves loads, and it resumes where it stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tintype.models.postcard import autoencoder, dataset, denoiser, evaluate, progress, recipe, text
from tintype.models.postcard.scene import is_held_out

SMOKE = recipe.RECIPES["smoke"]
CPU = torch.device("cpu")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.slow
@pytest.mark.long
def test_the_stages_make_a_checkpoint_that_diffusers_loads_and_draws_with(runs: Path) -> None:
    from diffusers import StableDiffusionPipeline

    dataset.render_all(SMOKE, workers=1)
    vae = autoencoder.train_autoencoder(SMOKE, CPU)
    autoencoder.cache_latents(SMOKE, vae, CPU)
    scale = denoiser.LatentData(SMOKE).scaling_factor
    denoiser.train_denoiser(SMOKE, CPU)
    denoiser.save_checkpoint(SMOKE, runs / "checkpoint")

    pipeline = StableDiffusionPipeline.from_pretrained(runs / "checkpoint", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a red sailboat", num_inference_steps=2, height=32, width=32, output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)
    assert np.isfinite(drawn).all()
    assert pipeline.vae.config.scaling_factor == pytest.approx(scale, rel=1e-3)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"

    later = dataclasses.replace(SMOKE, name="later")
    denoiser.adopt_checkpoint(later, runs / "checkpoint")
    adopted = denoiser.load_ema(later, "unet", denoiser.make_unet(later))
    assert torch.equal(adopted.conv_in.weight, pipeline.unet.conv_in.weight), "training goes on from what was saved"
    with pytest.raises(FileExistsError, match="vae, text, unet"):
        denoiser.adopt_checkpoint(later, runs / "checkpoint")


@pytest.mark.slow
def test_training_resumes_where_its_state_file_stopped(runs: Path) -> None:
    dataset.render_all(SMOKE, workers=1)
    autoencoder.train_autoencoder(SMOKE, CPU)
    state = torch.load(SMOKE.folder / "vae.pt", weights_only=True)
    assert state["samples"] == SMOKE.vae_samples
    longer = dataclasses.replace(SMOKE, vae_samples=SMOKE.vae_samples + SMOKE.vae_batch)
    autoencoder.train_autoencoder(longer, CPU)
    resumed = torch.load(SMOKE.folder / "vae.pt", weights_only=True)
    assert resumed["samples"] == longer.vae_samples
    steps = {int(s["step"]) for s in resumed["optimizer"]["state"].values()}
    assert steps == {longer.vae_samples // longer.vae_batch}, "the optimizer's own count went on"


def test_no_picture_that_training_sees_has_a_held_out_combination(runs: Path) -> None:
    dataset.render_all(SMOKE, workers=1)
    shard = dataset.load_shard(SMOKE, 0)
    assert len(shard.scenes) == SMOKE.pictures
    assert not any(is_held_out(dataset.scene_from(row)) for row in shard.scenes)


def test_a_shard_is_the_same_whoever_draws_it(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.render_shard(SMOKE, 0)
    first = dataset.load_shard(SMOKE, 0)
    monkeypatch.setattr(recipe, "RUNS", tmp_path / "again")
    dataset.render_shard(SMOKE, 0)
    again = dataset.load_shard(SMOKE, 0)
    assert np.array_equal(first.pictures, again.pictures)
    assert np.array_equal(first.masks, again.masks)


def test_fixed_prompts_are_fixed_and_held_out() -> None:
    prompts = evaluate.fixed_prompts(40)
    assert prompts == evaluate.fixed_prompts(40)
    assert all(is_held_out(scene) for _, scene in prompts)
    assert len({prompt for prompt, _ in prompts}) == 40


def test_captions_fit_the_text_encoder(runs: Path) -> None:
    tokenizer = text.load_tokenizer(SMOKE)
    rng = np.random.default_rng(0)
    captions = [text.write_caption(evaluate.random_scene(rng), rng)[0] for _ in range(200)]
    lengths = [len(ids) for ids in tokenizer(captions).input_ids]
    assert max(lengths) <= recipe.MAX_TOKENS
    unknown = tokenizer("château 城堡 🎈").input_ids
    assert len(unknown) > 4, "every byte has a token"


@pytest.mark.parametrize("recipe_name", ["cpu", "gpu"])
def test_a_recipe_has_about_eight_million_parameters(recipe_name: str, runs: Path) -> None:
    chosen = recipe.RECIPES[recipe_name]
    with torch.device("meta"):
        unet = denoiser.make_unet(chosen)
        vae = autoencoder.make_autoencoder(chosen)
    text_parameters = 12 * chosen.text_width**2 * chosen.text_layers
    total = sum(p.numel() for m in (unet, vae) for p in m.parameters()) + text_parameters
    assert 6e6 < total < 10e6


@pytest.mark.parametrize(
    ("samples", "factor"), [(0, 0.01), (50, 0.51), (100, 1.0), (700, 1.0), (900, 0.5), (1000, 0.0)]
)
def test_the_learning_rate_rises_stays_and_falls_to_zero(samples: int, factor: float) -> None:
    assert progress.warmup_then_cooldown(samples, 1000, warmup=100, cooldown=0.2) == pytest.approx(factor, abs=0.01)


def test_the_average_of_constant_weights_is_the_weights() -> None:
    module = torch.nn.Linear(3, 3)
    ema = progress.Ema(module, 0.99)
    for _ in range(5):
        ema.update(module)
    other = torch.nn.Linear(3, 3)
    other.load_state_dict(dict(module.state_dict()))
    ema.copy_to(other)
    assert torch.allclose(other.weight, module.weight)


def test_the_logs_plot(runs: Path) -> None:
    stage = progress.Stage(runs, "unet", total=100)
    for stage.samples in (10, 20):
        stage.log(loss=1.0 / stage.samples)
    assert [line["loss"] for line in progress.read_log(runs / "unet.jsonl")] == [0.1, 0.05]
    progress.plot([runs / "unet.jsonl"], runs / "plot.png")
    assert (runs / "plot.png").read_bytes().startswith(b"\x89PNG")
