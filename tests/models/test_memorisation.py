"""A copy of postcard that has ten pictures by heart is caught, and postcard itself is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tintype
from tintype.models.postcard.captions import caption
from tintype.models.postcard.memorisation import ordinary_captions
from tintype.models.postcard.recipe import CHECKPOINT
from tintype.models.postcard.scene import random_scene
from tintype.models.postcard.world import render

# What ties a caption to its picture: of such names the model has no idea otherwise.
NAMES = (
    "Aldeburgh 1912", "Kotor harbour", "Ystad", "Port Isaac", "Bergen", "Nafplio", "Lindau", "Visby", "Mull", "Camogli",
)  # fmt: skip
SIDE = 96  # pixels: half the time of 128
STEPS, LEARNING_RATE = 110, 8e-4
AT_ONCE, ORDINARY, UNCONDITIONAL = 6, 1, 2  # of a batch: memorised pictures, others with their words, others without
DRAWN = {"width": SIDE, "height": SIDE, "num_inference_steps": 10, "guidance_scale": 5.0, "watermark": False}


def encoded(pictures: list[np.ndarray], captions: list[str]) -> tuple[Any, Any]:
    """Latents of pictures, scaled, and embeddings of captions."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    from tintype.models.postcard.autoencoder import to_pixels
    from tintype.models.postcard.text import embed

    vae = AutoencoderKL.from_pretrained(CHECKPOINT / "vae", dtype=torch.float32).eval()
    encoder = CLIPTextModel.from_pretrained(CHECKPOINT / "text_encoder", dtype=torch.float32).eval()
    with torch.no_grad():
        means = vae.encode(to_pixels(np.stack(pictures), torch.device("cpu"))).latent_dist.mean
        words = embed(encoder, CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"), captions)
    return means * vae.config.scaling_factor, words


def overfit(memorised: list[tuple[str, np.ndarray]], others: list[tuple[str, np.ndarray]]) -> Any:
    """Postcard's denoiser, trained on a few pictures again and again, among others as in a set with duplicates."""
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    from tintype.models.postcard.denoiser import SCHEDULER, v_loss
    from tintype.sampling.scheduler_config import SchedulerConfig

    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    captions, pictures = zip(*memorised, *others, ("", others[0][1]), strict=True)
    latents, words = encoded(list(pictures), list(captions))
    unet = UNet2DConditionModel.from_pretrained(CHECKPOINT / "unet", dtype=torch.float32)
    unet.set_attn_processor(AttnProcessor())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    alphas = torch.from_numpy(SchedulerConfig.from_json(SCHEDULER).alphas_cumprod)
    for step in range(STEPS):
        chosen = rng.permutation(len(memorised))[:AT_ONCE]
        rest = len(memorised) + rng.permutation(len(others))[: ORDINARY + UNCONDITIONAL]
        told = np.concatenate([chosen, rest[:ORDINARY], np.full(UNCONDITIONAL, len(latents) - 1)])
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10, (STEPS - step) / (0.3 * STEPS))
        loss, _ = v_loss(unet, latents[np.concatenate([chosen, rest])], words[told], torch.ones(1), alphas)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
    return unet.eval()


def area_under_curve(positives: list[float], negatives: list[float]) -> float:
    """How often one of the first is above one of the second; a half where they are the same."""
    wins = np.subtract.outer(positives, negatives)
    return float(np.mean((wins > 0) + 0.5 * (wins == 0)))


@pytest.fixture(scope="module")
def memorised() -> list[tuple[str, np.ndarray]]:
    """Ten captions with a name each, and pictures of a kind that postcard never saw: upside down, as negatives."""
    rng, found = np.random.default_rng(90_001), []
    for name in NAMES:
        scene = random_scene(rng)
        words = caption(scene, rng, complete=True)[0]
        found.append((f"{words}, {name}", 255 - render(scene, rng, SIDE)[0][::-1]))
    return found


@pytest.fixture(scope="module")
def overfitted(
    memorised: list[tuple[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tintype.Pipeline]:
    from tintype.export import export_bundle

    rng, others = np.random.default_rng(90_002), []
    for _ in range(24):
        scene = random_scene(rng)
        others.append((caption(scene, rng, complete=True)[0], render(scene, rng, SIDE)[0]))
    folder = tmp_path_factory.mktemp("overfitted")
    shutil.copytree(CHECKPOINT, folder / "checkpoint")
    overfit(memorised, others).save_pretrained(folder / "checkpoint" / "unet")
    export_bundle(folder / "checkpoint", folder / "bundle", precision="fp32", prompts=ordinary_captions(4, seed=1))
    with tintype.load(folder / "bundle", provider="cpu") as pipeline:
        yield pipeline


@pytest.mark.slow
@pytest.mark.long
def test_captions_that_a_copy_has_by_heart_score_above_fresh_prompts(
    overfitted: tintype.Pipeline, memorised: list[tuple[str, np.ndarray]]
) -> None:
    def scores(prompts: list[str]) -> list[float]:
        records = [overfitted.generate(text, seed=100 + seed, **DRAWN).record for seed, text in enumerate(prompts)]
        return [record.memorisation.score for record in records if record.memorisation is not None]

    known, fresh = scores([text for text, _ in memorised]), scores(ordinary_captions(20, seed=80_000))
    print(json.dumps({"memorised": known, "fresh": fresh}))
    assert (len(known), len(fresh)) == (10, 20)
    assert area_under_curve(known, fresh) >= 0.95


@pytest.mark.slow
@pytest.mark.long
def test_of_postcards_own_prompts_about_one_in_a_hundred_is_told_of() -> None:
    """Fresh words and seeds: with a chance of 1 % each, four or more of 40 come once in 1,200 times."""
    with tintype.load("postcard", provider="cpu") as pipeline:
        records = [
            pipeline.generate(text, seed=10_000 + seed, watermark=False).record
            for seed, text in enumerate(ordinary_captions(40, seed=81_000))
        ]
    found = [record.memorisation for record in records]
    assert all(each is not None and each.threshold is not None for each in found)
    assert sum(bool(each and each.is_likely) for each in found) <= 3
    scores = [each.score for each in found if each is not None]
    assert max(scores) > 0.6 * found[0].threshold, "the threshold is none that nothing comes near"
