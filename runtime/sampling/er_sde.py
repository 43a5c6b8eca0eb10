"""ER-SDE: the reverse equation with noise of another size, third order from earlier steps. Pure steps over arrays."""

from __future__ import annotations

import math

import numpy as np

from tintype.arrays import Latents
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged

POINTS = 200  # of the sums that stand for integrals over a step


def noise_scale(sigma: float) -> float:
    """How noise is scaled along the way: the authors' ER-SDE 5 (Cui et al. 2023, arXiv 2309.06169, section 4.2)."""
    return sigma * (math.exp(sigma**0.3) + 10.0)


def integrals(sigma: float, sigma_next: float) -> tuple[float, float]:
    """What a step goes along the first and the second derivative of the denoised latents (the same, formula 17).

    Integrals of 1 / noise_scale, and of (place - sigma) / noise_scale, from sigma_next to sigma.
    """
    width = (sigma - sigma_next) / POINTS
    places = sigma_next + np.arange(POINTS) * width
    inverse = 1.0 / np.array([noise_scale(place) for place in places.tolist()])
    end = noise_scale(sigma_next)
    first = sigma_next - sigma + float(inverse.sum()) * width * end
    second = (sigma_next - sigma) ** 2 / 2 + float(((places - sigma) * inverse).sum()) * width * end
    return first, second


def er_sde(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """ER-SDE-Solver-3 (Cui et al. 2023, algorithm 3), as ComfyUI's er_sde: fresh noise at every step but the last."""
    before: list[tuple[float, Latents]] = []  # sigma and what was denoised there, newest last
    slope: Latents | None = None
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        if sigma_next > 0.0:
            ratio = noise_scale(sigma_next) / noise_scale(sigma)
            latents = latents * ratio + denoised * (1.0 - ratio)
            if before:
                first, second = integrals(sigma, sigma_next)
                earlier, slope = slope, (denoised - before[-1][1]) / (sigma - before[-1][0])
                latents = latents + slope * first
                if earlier is not None:
                    latents = latents + (slope - earlier) * (second * 2 / (sigma - before[-2][0]))
            up = math.sqrt(max(sigma_next**2 - (sigma * ratio) ** 2, 0.0))
            latents = latents + noise.draw(latents.shape) * up
        else:
            latents = denoised
        before = [*before[-1:], (sigma, denoised)]
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
