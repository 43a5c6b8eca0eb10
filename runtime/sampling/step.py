"""The words every sampler shares: latents, what denoises them, and one step of the way.

Inside the runtime latents are image + sigma * noise (variance variance_exploding, as in k-diffusion). A model that was
trained on variance preserving latents sees latents / sqrt(1 + sigma^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from tintype.arrays import Latents


@dataclass(frozen=True, slots=True)
class Denoised:
    """What the model takes the picture to be, seen from noisy latents; each of their shape."""

    guided: Latents  # what guidance makes of it: where samplers go
    unconditional: Latents  # without the words, which CFG++ renoises by; the same array where nothing is guided

    @classmethod
    def unguided(cls, latents: Latents) -> Denoised:
        return cls(latents, latents)


Denoise: TypeAlias = Callable[[Latents, float, float], Denoised]  # (latents, sigma, timestep) -> the picture
# (latents after a step, their sigma, steps left) -> those that the next step goes on from
AfterStep: TypeAlias = Callable[[Latents, float, int], Latents]


def unchanged(latents: Latents, sigma: float, left: int) -> Latents:
    """The `AfterStep` of a picture from words alone."""
    return latents


@dataclass(frozen=True, slots=True)
class Step:
    """One step done: from `sigma` to `sigma_next`, `index` of `total` (from 0)."""

    index: int
    total: int
    sigma: float
    sigma_next: float
    latents: Latents  # at sigma_next
    denoised: Latents  # the model's guess of the picture, seen from sigma


Steps: TypeAlias = Generator[Step, None, None]


def model_input(latents: Latents, sigma: float) -> Latents:
    """What the model was trained to see: latents / sqrt(1 + sigma^2), unit variance for unit-variance images."""
    return latents / math.hypot(1.0, sigma)


def same_model_input(latents: Latents, sigma: float, other: float) -> Latents:
    """Latents at `other` that look to the model as these do at `sigma`.

    Schedulers that step by timestep land on t - T // n and go on from the next timestep of their list as if it were
    the same; where the two differ they keep the model's input, so the latents change their scale.
    """
    if sigma == other:
        return latents
    return latents * (math.hypot(1.0, other) / math.hypot(1.0, sigma))
