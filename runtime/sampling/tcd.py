"""Trajectory consistency sampling: jump past the next noise level and add noise back up to it. Pure steps."""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.euler import euler_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def tcd(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Strategic stochastic sampling (Zheng et al. 2024, arXiv 2402.19159, algorithm 4), for models distilled for it.

    schedule.eta is the paper's gamma: each step but the last jumps to the timestep (1 - eta) * t of the next one.
    """
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        landing = sigma_next
        if index < schedule.total - 1:
            landing = schedule.sigma_of(math.floor((1.0 - schedule.eta) * float(schedule.timesteps[index + 1])))
        latents = euler_step(latents, denoised, sigma, landing)
        if landing < sigma_next:
            latents = latents + noise.draw(latents.shape) * math.sqrt(sigma_next**2 - landing**2)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
