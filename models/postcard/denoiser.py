"""Stage 3: the UNet, on cached latents and fresh captions; then the checkpoint, in the layout that diffusers publishes.

The prediction is v (Salimans & Ho 2022): its error stays bounded at every noise level, which a quantized graph
needs. Loss weights: min-SNR (Hang et al. 2023), and the subject's cells count more, because most of what a prompt
says is said of the subject; a pointwise weight leaves the minimum where it was.
"""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from tintype.sampling.scheduler_config import SchedulerConfig

from .autoencoder import latents_path, make_autoencoder
from .dataset import scene_from, shard_sizes
from .progress import Ema, Stage, set_learning_rate, warmup_then_cooldown
from .recipe import Recipe
from .scene import ATTRIBUTES
from .text import embed, load_tokenizer, train_text_encoder, write_caption

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Module = TypeVar("Module", bound=torch.nn.Module)

UNCONDITIONAL_SHARE = 0.1  # of the captions are dropped, for guidance
SUBJECT_WEIGHT = 3.0  # of a cell that the subject fills, on top of 1
SNR_LIMIT = 5.0

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "set_alpha_to_one": False, "steps_offset": 1,
    "timestep_spacing": "leading",
}  # fmt: skip


def make_unet(recipe: Recipe) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    deeper = len(recipe.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=recipe.latent_side,
        in_channels=recipe.latent_channels,
        out_channels=recipe.latent_channels,
        block_out_channels=recipe.unet_channels,
        layers_per_block=recipe.unet_layers,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        cross_attention_dim=recipe.text_width,
        attention_head_dim=recipe.unet_heads,  # diffusers' name for the number of heads, since SD 1.x
        norm_num_groups=min(16, recipe.unet_channels[0]),
    )


class LatentData:
    """Every latent cached so far, in memory as fp16; `grow` takes in what another process has cached since."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._shards: list[int] = []
        self.means = self.deviations = np.zeros((0, recipe.latent_channels, recipe.latent_side, recipe.latent_side))
        self.masks = np.zeros((0, recipe.latent_side, recipe.latent_side), np.uint8)
        self.scenes = np.zeros((0, len(ATTRIBUTES)), np.int8)
        self.grow()

    def grow(self) -> None:
        new = [
            n
            for n in range(len(shard_sizes(self._recipe)))
            if n not in self._shards and latents_path(self._recipe, n).exists()
        ]
        for number in new:
            with np.load(latents_path(self._recipe, number)) as file:
                self.means = np.concatenate([self.means, file["means"]], dtype=np.float16)
                self.deviations = np.concatenate([self.deviations, file["deviations"]], dtype=np.float16)
                self.masks = np.concatenate([self.masks, file["masks"]])
                self.scenes = np.concatenate([self.scenes, file["scenes"]])
        self._shards += new

    @cached_property
    def scaling_factor(self) -> float:
        """1 / the standard deviation of the first shard's latents: the same however many shards there are."""
        with np.load(latents_path(self._recipe, 0)) as first:
            return 1.0 / float(np.std(first["means"].astype(np.float32)))

    def batch(
        self, rng: np.random.Generator, size: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Scaled latents (n, c, h, w), cell weights (n, 1, h, w) and captions, some of them dropped."""
        chosen = rng.integers(0, len(self.means), size)
        means = torch.from_numpy(self.means[chosen]).to(device).float()
        deviations = torch.from_numpy(self.deviations[chosen]).to(device).float()
        latents = (means + deviations * torch.randn_like(means)) * self.scaling_factor
        weights = 1.0 + SUBJECT_WEIGHT * torch.from_numpy(self.masks[chosen]).to(device).float()[:, None] / 255.0
        captions = [write_caption(scene_from(self.scenes[i]), rng)[0] for i in chosen]
        captions = ["" if rng.random() < UNCONDITIONAL_SHARE else text for text in captions]
        return latents.contiguous(memory_format=torch.channels_last), weights, captions


def v_loss(
    unet: torch.nn.Module, latents: torch.Tensor, embeddings: torch.Tensor, weights: torch.Tensor, alphas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted loss, and the plain error of v, at one random timestep a picture."""
    timesteps = torch.randint(0, len(alphas), (len(latents),), device=latents.device)
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    with torch.autocast(latents.device.type, torch.bfloat16):
        predicted = unet(noisy, timesteps, embeddings).sample
    error = (predicted.float() - target).square()
    snr = alpha / (1 - alpha)
    return (error * weights * snr.clamp(max=SNR_LIMIT) / (snr + 1) * 2.0).mean(), error.detach().mean()


def train_denoiser(recipe: Recipe, device: torch.device) -> UNet2DConditionModel:
    """Train or resume; returns the EMA weights in evaluation mode."""
    from diffusers.models.attention_processor import AttnProcessor

    encoder, tokenizer = train_text_encoder(recipe, device), load_tokenizer(recipe)
    data = LatentData(recipe)
    unet = make_unet(recipe).to(device, memory_format=torch.channels_last)
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # at these sizes plain attention trains 1.3x faster on a CPU
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=recipe.unet_learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    ema = Ema(unet, recipe.ema_decay)
    parts = {"model": unet, "optimizer": optimizer, "ema": ema}
    stage = Stage(recipe.folder, "unet", recipe.unet_samples)
    stage.resume(parts)
    rng = np.random.default_rng((5, stage.samples))
    torch.manual_seed(stage.samples)
    alphas = torch.from_numpy(SchedulerConfig.from_json(SCHEDULER).alphas_cumprod).to(device)
    losses: list[tuple[float, float]] = []
    while stage.samples < stage.total:
        latents, weights, captions = data.batch(rng, recipe.unet_batch, device)
        with torch.no_grad():
            embeddings = embed(encoder, tokenizer, captions)
        factor = warmup_then_cooldown(
            stage.samples, stage.total, warmup=200 * recipe.unet_batch, cooldown=recipe.cooldown
        )
        set_learning_rate(optimizer, recipe.unet_learning_rate, factor)
        loss, error = v_loss(unet, latents, embeddings, weights, alphas)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.update(unet)
        losses.append((float(loss.detach()), float(error)))
        stage.samples += recipe.unet_batch
        if len(losses) == 50:
            mean_loss, mean_error = np.mean(losses, axis=0)
            stage.log(loss=float(mean_loss), error=float(mean_error))
            losses.clear()
            data.grow()
        stage.save_if_due(parts)
    stage.save(parts)
    ema.copy_to(unet)
    return unet.eval()


def load_ema(recipe: Recipe, stage: str, module: Module) -> Module:
    """The EMA weights of a stage's state file, finished or not, in evaluation mode."""
    state = torch.load(recipe.folder / f"{stage}.pt", map_location="cpu", weights_only=True)
    module.load_state_dict(state["ema"]["shadow"])
    return module.eval()


def save_checkpoint(recipe: Recipe, folder: Path) -> None:
    """Write the diffusers folder, fp16 safetensors, from the stages' state as it is now (finished or not)."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    cpu = torch.device("cpu")
    vae = load_ema(recipe, "vae", make_autoencoder(recipe))
    vae.register_to_config(scaling_factor=LatentData(recipe).scaling_factor)
    unet = load_ema(recipe, "unet", make_unet(recipe))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=train_text_encoder(recipe, cpu),
        tokenizer=load_tokenizer(recipe),
        unet=unet,
        scheduler=PNDMScheduler(**SCHEDULER, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    # PNDMScheduler has no clip_sample, but a DDIM scheduler made from this file would take its own default, True.
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clip_sample": False}, indent=2) + "\n")


def adopt_checkpoint(recipe: Recipe, folder: Path) -> None:
    """Make a run whose state files are gone from the checkpoint that it saved: the UNet trains on, the rest is done.

    Raises FileNotFoundError without a checkpoint, FileExistsError where the run has a state that this would replace.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    taken = [name for name in ("vae", "text", "unet") if (recipe.folder / f"{name}.pt").exists()]
    if taken:
        raise FileExistsError(
            f"{recipe.folder} has the state of {', '.join(taken)}; move it away to start from {folder}"
        )
    modules: dict[str, tuple[torch.nn.Module, int]] = {
        "vae": (AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32), recipe.vae_samples),
        "text": (CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32), recipe.text_samples),
        "unet": (UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32), 0),
    }
    for name, (module, samples) in modules.items():
        stage = Stage(recipe.folder, name, samples)
        stage.samples = samples
        stage.save({"model": module, "ema": Ema(module, recipe.ema_decay)})
    shutil.copytree(folder / "tokenizer", recipe.folder / "tokenizer", dirs_exist_ok=True)
