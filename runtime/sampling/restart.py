"""Restart: Heun's method, and on the way back up to more noise and down once more. Pure steps over float32 arrays."""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.euler import euler_step, heun_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def restart(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Restart sampling (Xu et al. 2023, arXiv 2306.14878, algorithm 1): what the noise adds contracts earlier errors.

    A step that the way goes up after lands at sigmas_to and ends with the noise that makes it the next one's sigma.
    """
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        landing = float(schedule.sigmas_to[index])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        if landing > 0.0:
            goes_up = sigma_next > landing
            timestep = schedule.timestep_of(landing) if goes_up else float(schedule.timesteps[index + 1])
            latents = heun_step(latents, denoised, denoise, sigma, landing, timestep)
            if goes_up:
                latents = latents + noise.draw(latents.shape) * math.sqrt(sigma_next**2 - landing**2)
        else:
            latents = euler_step(latents, denoised, sigma, landing)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
