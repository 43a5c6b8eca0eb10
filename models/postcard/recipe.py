"""How large postcard is and how long it trains: facts alone, one recipe a machine. No code of training here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RUNS = HERE / "runs"  # caches, logs and resumable state; never in git
CHECKPOINT = HERE / "checkpoint"  # the diffusers folder in fp16 that the shipped bundle comes from
BUNDLE = HERE / "bundle"
JUDGE = HERE / "judge.safetensors"

MAX_TOKENS = 77  # as CLIP's


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything a training run is made from. Samples count pictures seen, epochs or not."""

    name: str
    resolution: int  # pixels, each side
    pictures: int  # rendered once and cached
    crop: int  # pixels, each side; what the autoencoder trains on
    vae_channels: tuple[int, ...]  # one level each; the factor is 2 ** (levels - 1)
    latent_channels: int
    vae_batch: int
    vae_samples: int
    vae_learning_rate: float
    text_width: int
    text_layers: int
    text_heads: int
    text_batch: int
    text_samples: int
    unet_channels: tuple[int, ...]
    unet_layers: int
    unet_heads: int
    unet_batch: int
    unet_samples: int
    unet_learning_rate: float
    ema_decay: float
    fast_steps: int  # that the distilled denoiser takes
    fast_ways: int  # from noise to picture, of the guided denoiser that it learns from
    fast_batch: int
    fast_samples: int
    fast_learning_rate: float
    cooldown: float = 0.3  # the last share of the samples, over which the learning rate goes to zero

    @property
    def vae_scale_factor(self) -> int:
        """Image pixels per latent cell, each side."""
        return 2 ** (len(self.vae_channels) - 1)

    @property
    def latent_side(self) -> int:
        return self.resolution // self.vae_scale_factor

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def fast_folder(self) -> Path:
        """Where the checkpoint with the distilled denoiser lies, as diffusers reads it; never in git."""
        return self.folder / "fast"


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="cpu", resolution=128, pictures=30_000, crop=64,
            vae_channels=(16, 32, 64), latent_channels=4, vae_batch=16, vae_samples=90_000, vae_learning_rate=1.5e-3,
            text_width=128, text_layers=4, text_heads=4, text_batch=64, text_samples=40_000,
            unet_channels=(32, 96, 160), unet_layers=1, unet_heads=4, unet_batch=32, unet_samples=86_000,
            unet_learning_rate=8e-4, ema_decay=0.999,
            fast_steps=4, fast_ways=3_000, fast_batch=16, fast_samples=19_000, fast_learning_rate=3e-4,
        ),
        Recipe(
            name="gpu", resolution=256, pictures=120_000, crop=128,
            vae_channels=(32, 48, 64, 64), latent_channels=8, vae_batch=64, vae_samples=1_500_000,
            vae_learning_rate=1e-3,
            text_width=128, text_layers=4, text_heads=4, text_batch=512, text_samples=1_000_000,
            unet_channels=(48, 96, 160), unet_layers=1, unet_heads=4, unet_batch=256, unet_samples=4_000_000,
            unet_learning_rate=1e-3, ema_decay=0.9995,
            fast_steps=4, fast_ways=50_000, fast_batch=64, fast_samples=1_000_000, fast_learning_rate=3e-4,
        ),
        Recipe(  # minutes of nothing: what the tests run from one end to the other
            name="smoke", resolution=32, pictures=48, crop=16,
            vae_channels=(8, 8, 8), latent_channels=4, vae_batch=4, vae_samples=48, vae_learning_rate=1e-3,
            text_width=16, text_layers=1, text_heads=2, text_batch=16, text_samples=64,
            unet_channels=(8, 16, 16), unet_layers=1, unet_heads=2, unet_batch=4, unet_samples=48,
            unet_learning_rate=1e-3, ema_decay=0.9,
            fast_steps=4, fast_ways=6, fast_batch=4, fast_samples=16, fast_learning_rate=1e-3,
        ),
    )
}  # fmt: skip
