"""What tests of samplers run them on: a denoiser, schedules of any sigmas, latents in double precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents
from tintype.sampling import (
    SAMPLERS,
    Denoised,
    NoiseSource,
    Schedule,
    SchedulerConfig,
    make_schedule,
    noise_source,
)

CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
SHAPE = (2, 4, 5, 6)

Float64 = NDArray[np.float64]


def picture(x: Any, sigma: float) -> Any:
    """Some denoiser that is not a straight line."""
    seen = x / math.hypot(1.0, sigma)
    return np.tanh(seen + 0.3 * np.roll(seen, 1, axis=-1)) * math.cos(sigma / 9.0)


def first(schedule: Schedule) -> Float64:
    return noise_source("numpy", [1, 2]).draw(SHAPE).astype(np.float64) * schedule.initial_scale


def fresh() -> NoiseSource:
    return noise_source("numpy", [3, 4])


def drawn(schedule: Schedule, model: Any = picture) -> list[Any]:
    """The latents after each step, in float64."""

    def denoise(latents: Latents, sigma: float, timestep: float) -> Denoised:
        return Denoised.unguided(model(latents, sigma))

    steps = SAMPLERS[schedule.sampler](denoise, first(schedule), schedule, fresh())  # type: ignore[arg-type]
    return [step.latents for step in steps]


def on(sigmas: Float64, sampler: str, config: SchedulerConfig = CONFIG) -> Schedule:
    """A schedule of these sigmas, whose last is where it lands."""
    steps = len(sigmas) - 1
    return dataclasses.replace(
        make_schedule(config, sampler, steps),
        timesteps=np.zeros(steps),
        sigmas=sigmas,
        sigmas_from=sigmas[:-1],
        sigmas_to=sigmas[1:],
    )


def gaussian(x: Any, sigma: float) -> Any:
    """The perfect denoiser of standard normals, under which x / sqrt(1 + sigma^2) stays as it is."""
    return x / (1.0 + sigma**2)


class NoNoise:
    """Noise that nobody may draw."""

    def draw(self, shape: Sequence[int]) -> Latents:
        raise AssertionError(f"noise of {tuple(shape)} drawn")
