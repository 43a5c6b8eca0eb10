"""Latent consistency sampling: denoise at once, add noise again, each time less. Pure steps over float32 arrays."""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, model_input, unchanged

_SIGMA_DATA = 0.5


def consistency_step(
    latents: Latents, denoised: Latents, sigma: float, timestep: float, timestep_scaling: float
) -> Latents:
    """The consistency function's value (Luo et al. 2023, formula 9): the input itself at timestep 0, else denoised."""
    scaled = timestep * timestep_scaling
    length = math.hypot(scaled, _SIGMA_DATA)
    return denoised * (scaled / length) + model_input(latents, sigma) * (_SIGMA_DATA / length) ** 2


def lcm(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Multistep latent consistency sampling (Luo et al. 2023, algorithm 3), for models distilled for it."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        timestep = float(schedule.timesteps[index])
        denoised = denoise(latents, sigma, timestep).guided
        denoised = consistency_step(latents, denoised, sigma, timestep, schedule.config.timestep_scaling)
        latents = denoised + noise.draw(latents.shape) * sigma_next if sigma_next > 0.0 else denoised
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
