"""Stage 4: a denoiser that draws in four steps without guidance, distilled from the one that takes twenty with it.

The teacher, guided, goes its way from noise to picture a few thousand times, each step of it kept. That way falls into
four segments; from any step of a segment the student learns the one straight jump (DDIM's, Song et al. 2020) that ends
where the teacher's segment ends. So it is Salimans & Ho's progressive distillation (2022) in one round, of a guided
teacher (Meng et al. 2023), its segments fixed as in phased consistency models (Wang et al. 2024). What it predicts is
still v, and samplers that go by Euler's or DDIM's step draw with it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tintype.arrays import Latents
from tintype.sampling import SAMPLERS, Denoised, Schedule, make_schedule, noise_source
from tintype.sampling.parametrization import V_PREDICTION
from tintype.sampling.scheduler_config import SchedulerConfig

from .dataset import write_atomically
from .denoiser import SCHEDULER, load_ema, make_unet
from .pack import GUIDANCE_SCALE
from .progress import Ema, Stage, set_learning_rate, warmup_then_cooldown
from .recipe import Recipe
from .text import embed, load_tokenizer, train_text_encoder, write_caption
from .world import random_scene

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

SEED = 9
SHARD = 250  # ways a file
TEACHER_STEPS = 2  # of dpmpp_2m a segment
BOUNDARY_SHARE = 0.7  # of the samples begin where a segment does, as the student's own steps will
HUBER_DELTA = 0.1  # of v; above it the error counts as it is and not squared: edges stay sharp


def teacher_schedule(recipe: Recipe) -> Schedule:
    """The teacher's steps, TEACHER_STEPS for each of the student's, from the last training timestep on."""
    steps = recipe.fast_steps * TEACHER_STEPS
    return make_schedule(SchedulerConfig.from_json(SCHEDULER), "dpmpp_2m", steps, "trailing")


def ways_path(recipe: Recipe, number: int) -> Path:
    return recipe.folder / "data" / f"ways-{number:03}.npz"


def way_shards(recipe: Recipe) -> list[int]:
    full, rest = divmod(recipe.fast_ways, SHARD)
    return [SHARD] * full + ([rest] if rest else [])


def draw_ways(recipe: Recipe, device: torch.device) -> None:
    """Every shard of the teacher's ways that is missing: what the model sees at each step, and the picture last.

    Each file has `ways`, (n, steps + 1, channels, height, width) in fp16, and their `captions`, (n,).
    """
    teacher = load_ema(recipe, "unet", make_unet(recipe)).to(device, memory_format=torch.channels_last)
    encoder, tokenizer = train_text_encoder(recipe, device), load_tokenizer(recipe)
    schedule, side = teacher_schedule(recipe), recipe.latent_side

    @torch.no_grad()
    def way(captions: list[str], seeds: range) -> NDArray[np.float16]:
        count = len(captions)
        words = embed(encoder, tokenizer, [""] * count + captions)

        def denoise(latents: Latents, sigma: float, timestep: float) -> Denoised:
            sample = torch.from_numpy(V_PREDICTION.model_input(latents, sigma)).to(device).repeat(2, 1, 1, 1)
            with torch.autocast(device.type, torch.bfloat16):
                output = teacher(sample.contiguous(memory_format=torch.channels_last), timestep, words).sample
            plain, worded = output.float().cpu().numpy().reshape(2, *latents.shape)
            guided = plain + GUIDANCE_SCALE * (worded - plain)
            return Denoised.unguided(V_PREDICTION.denoised(guided, latents, sigma))

        noise = noise_source("philox", tuple(seeds))
        latents = noise.draw((count, recipe.latent_channels, side, side)) * schedule.initial_scale
        steps = SAMPLERS[schedule.sampler](denoise, latents, schedule, noise)
        points = [latents, *(step.latents for step in steps)]
        seen = [V_PREDICTION.model_input(x, float(sigma)) for x, sigma in zip(points, schedule.sigmas, strict=True)]
        return np.stack(seen, axis=1).astype(np.float16)

    for number, size in enumerate(way_shards(recipe)):
        path = ways_path(recipe, number)
        if path.exists():
            continue
        rng = np.random.default_rng((SEED, number))
        captions = [write_caption(random_scene(rng), rng)[0] for _ in range(size)]
        batches = [range(i, min(i + 10, size)) for i in range(0, size, 10)]
        ways = [
            way(captions[batch.start : batch.stop], range(number * SHARD + batch.start, number * SHARD + batch.stop))
            for batch in batches
        ]
        write_atomically(path, {"ways": np.concatenate(ways), "captions": np.array(captions)})
        print(f"ways of shard {number + 1} of {len(way_shards(recipe))}", flush=True)


class Jumps:
    """The teacher's ways drawn so far, as samples of what the student is to predict at a step of them."""

    def __init__(self, recipe: Recipe) -> None:
        self._schedule = teacher_schedule(recipe)
        self._shards: list[int] = []
        self._recipe = recipe
        self.ways = np.zeros((0, 1, 1, 1, 1), np.float16)
        self.captions = np.zeros(0, "<U1")
        self.grow()

    def grow(self) -> None:
        """Take in what another process has drawn since."""
        numbers = range(len(way_shards(self._recipe)))
        for number in (n for n in numbers if n not in self._shards and ways_path(self._recipe, n).exists()):
            with np.load(ways_path(self._recipe, number)) as file:
                self.ways = np.concatenate([self.ways, file["ways"]]) if len(self.ways) else file["ways"]
                self.captions = np.concatenate([self.captions, file["captions"]])
            self._shards.append(number)

    def velocity(self, way: NDArray[np.float16], step: int) -> Latents:
        """The v, (channels, height, width), whose straight jump from a step ends where its segment does."""
        sigmas, end = self._schedule.sigmas, step - step % TEACHER_STEPS + TEACHER_STEPS
        sigma, sigma_end = float(sigmas[step]), float(sigmas[end])
        latents = way[step].astype(np.float32) * np.float32(np.hypot(1.0, sigma))
        landing = way[end].astype(np.float32) * np.float32(np.hypot(1.0, sigma_end))
        denoised = latents + (landing - latents) * (sigma / (sigma - sigma_end))
        return V_PREDICTION.prediction(denoised, latents, sigma)

    def batch(
        self, rng: np.random.Generator, size: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
        """What the student sees (n, c, h, w), at which timesteps (n,), the v it is to predict, and the captions."""
        chosen = rng.integers(0, len(self.ways), size)
        steps = rng.integers(0, self._recipe.fast_steps, size) * TEACHER_STEPS
        steps += np.where(rng.random(size) < BOUNDARY_SHARE, 0, rng.integers(1, TEACHER_STEPS, size))
        pairs = list(zip(chosen, steps, strict=True))
        seen = torch.from_numpy(np.stack([self.ways[i, step] for i, step in pairs])).to(device).float()
        wanted = torch.from_numpy(np.stack([self.velocity(self.ways[i], int(step)) for i, step in pairs])).to(device)
        timesteps = torch.from_numpy(self._schedule.timesteps[steps]).to(device)
        captions = [str(self.captions[i]) for i in chosen]
        return seen.contiguous(memory_format=torch.channels_last), timesteps, wanted, captions


def train_fast(recipe: Recipe, device: torch.device) -> UNet2DConditionModel:
    """Train or resume the student, which begins as the teacher; returns the EMA weights in evaluation mode."""
    encoder, tokenizer = train_text_encoder(recipe, device), load_tokenizer(recipe)
    jumps = Jumps(recipe)
    unet = load_ema(recipe, "unet", make_unet(recipe)).train().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=recipe.fast_learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    ema = Ema(unet, recipe.ema_decay)
    parts = {"model": unet, "optimizer": optimizer, "ema": ema}
    stage = Stage(recipe.folder, "fast", recipe.fast_samples)
    stage.resume(parts)
    rng = np.random.default_rng((SEED + 1, stage.samples))
    losses: list[tuple[float, float]] = []
    while stage.samples < stage.total:
        seen, timesteps, wanted, captions = jumps.batch(rng, recipe.fast_batch, device)
        with torch.no_grad():
            embeddings = embed(encoder, tokenizer, captions)
        factor = warmup_then_cooldown(
            stage.samples, stage.total, warmup=100 * recipe.fast_batch, cooldown=recipe.cooldown
        )
        set_learning_rate(optimizer, recipe.fast_learning_rate, factor)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = unet(seen, timesteps, embeddings).sample
        loss = F.huber_loss(predicted.float(), wanted, delta=HUBER_DELTA) / HUBER_DELTA
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.update(unet)
        losses.append((float(loss.detach()), float(F.mse_loss(predicted.detach().float(), wanted))))
        stage.samples += recipe.fast_batch
        if len(losses) == 50:
            mean_loss, mean_error = np.mean(losses, axis=0)
            stage.log(loss=float(mean_loss), error=float(mean_error))
            losses.clear()
            jumps.grow()
        stage.save_if_due(parts)
    stage.save(parts)
    ema.copy_to(unet)
    return unet.eval()


def save_fast(recipe: Recipe, teacher: Path, folder: Path) -> None:
    """Write the teacher's checkpoint, a diffusers folder, with the student's UNet as it is now (finished or not)."""
    shutil.copytree(teacher, folder, dirs_exist_ok=True)
    load_ema(recipe, "fast", make_unet(recipe)).to(dtype=torch.float16).save_pretrained(folder / "unet")
