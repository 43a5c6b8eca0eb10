"""Stage 1: the autoencoder, trained on crops; then every picture's latents, cached.

Latents come out with zero mean and unit variance after (latent * scaling_factor); the mean is left as it is
because Stable Diffusion 1.x has no shift.
"""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from .dataset import load_shard, random_crops, shard_path, shard_sizes, write_atomically
from .progress import Ema, Stage, set_learning_rate, warmup_then_cooldown
from .recipe import Recipe

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SUBJECT_WEIGHT = 3.0  # of a pixel that the subject fills, on top of 1
KL_WEIGHT = 3e-4  # per latent value, against a per-pixel error: latents smooth enough to be denoised


def make_autoencoder(recipe: Recipe) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    levels = len(recipe.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.vae_channels,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=8,
        sample_size=recipe.resolution,
    )


def to_pixels(pictures: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """(n, h, w, 3) bytes to (n, 3, h, w) in -1..1, channels last in memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return tensor.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_weights(masks: NDArray[np.uint8], cell: int, device: torch.device) -> torch.Tensor:
    """Masks (n, h, w) in 0..255 to weights of pixels (n, 1, h * cell, w * cell): 1, and more where the subject is."""
    shares = torch.from_numpy(np.ascontiguousarray(masks)).to(device).float()[:, None] / 255.0
    return 1.0 + SUBJECT_WEIGHT * F.interpolate(shares, scale_factor=cell, mode="nearest")


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted absolute error of the picture, of its hue, and, so that edges stay where they are, of its differences.

    Hue has a term of its own: few pixels carry a small subject's colour, and brightness alone would take every latent.
    """
    error = decoded - pixels
    hue = error - error.mean(dim=1, keepdim=True)
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return (weights * (error.abs() + error.square() + 2.0 * hue.abs())).mean() + 0.5 * edges


def train_autoencoder(recipe: Recipe, device: torch.device) -> AutoencoderKL:
    """Train or resume; returns the EMA weights in evaluation mode."""
    vae = make_autoencoder(recipe).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=recipe.vae_learning_rate, betas=(0.9, 0.98), weight_decay=1e-4, fused=True
    )
    ema = Ema(vae, recipe.ema_decay)
    parts = {"model": vae, "optimizer": optimizer, "ema": ema}
    stage = Stage(recipe.folder, "vae", recipe.vae_samples)
    stage.resume(parts)
    step = 0
    crops = random_crops(recipe, (2, stage.samples), recipe.vae_batch)
    while stage.samples < stage.total:
        pictures, masks = next(crops)
        pixels = to_pixels(pictures, device)
        weights = to_weights(masks, recipe.vae_scale_factor, device)
        factor = warmup_then_cooldown(
            stage.samples, stage.total, warmup=100 * recipe.vae_batch, cooldown=recipe.cooldown
        )
        set_learning_rate(optimizer, recipe.vae_learning_rate, factor)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).float().mean()
        loss = reconstruction_loss(decoded.float(), pixels, weights) + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(vae)
        stage.samples += recipe.vae_batch
        step += 1
        if step % 50 == 0:
            mse = float((decoded.detach().float().clamp(-1, 1) - pixels).square().mean())
            stage.log(loss=float(loss.detach()), psnr_db=10 * math.log10(4 / mse), kl=float(kl.detach()))
        stage.save_if_due(parts)
    stage.save(parts)
    ema.copy_to(vae)
    return vae.eval()


def cache_latents(recipe: Recipe, vae: AutoencoderKL, device: torch.device, workers: int = 1) -> None:
    """Encode every shard whose latents aren't cached: on the GPU, or in `workers` processes of one thread each."""
    numbers = [n for n in range(len(shard_sizes(recipe))) if not latents_path(recipe, n).exists()]
    if device.type != "cpu" or workers == 1:
        for number in numbers:
            cache_shard(recipe, vae, device, number)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads,
                             initargs=(1,)) as pool:  # fmt: skip
        list(pool.map(partial(cache_shard, recipe, vae, device), numbers))


@torch.no_grad()
def cache_shard(recipe: Recipe, vae: AutoencoderKL, device: torch.device, number: int, batch: int = 50) -> None:
    """One shard's latents: means and deviations, (n, channels, height, width) in fp16, with its masks and scenes."""
    shard = load_shard(recipe, number)
    means, deviations = [], []
    for start in range(0, len(shard.pictures), batch):
        posterior = vae.encode(to_pixels(shard.pictures[start : start + batch], device)).latent_dist
        means.append(posterior.mean.half().cpu().numpy())
        deviations.append(posterior.std.half().cpu().numpy())
    arrays = {"means": np.concatenate(means), "deviations": np.concatenate(deviations)}
    write_atomically(latents_path(recipe, number), arrays | {"masks": shard.masks, "scenes": shard.scenes})
    print(f"latents of shard {number + 1} of {len(shard_sizes(recipe))}", flush=True)


def latents_path(recipe: Recipe, number: int) -> Path:
    return shard_path(recipe, number).with_name(f"latents-{number:03}.npz")


@torch.no_grad()
def reconstruct(
    vae: AutoencoderKL, pictures: NDArray[np.uint8], device: torch.device, batch: int = 25
) -> NDArray[np.uint8]:
    """Pictures through the encoder's mean and the decoder, as bytes."""
    out = []
    for start in range(0, len(pictures), batch):
        latents = vae.encode(to_pixels(pictures[start : start + batch], device)).latent_dist.mean
        decoded = vae.decode(latents).sample.clamp(-1, 1)
        out.append(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(out)
