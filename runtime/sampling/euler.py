"""Euler, ancestral Euler and Heun: pure steps over float32 arrays. No sessions, clocks or progress bars.

Latents are image + sigma * noise; their slope along sigma is (latents - denoised) / sigma.
"""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def euler_step(latents: Latents, denoised: Latents, sigma: float, sigma_next: float) -> Latents:
    """One Euler step (Karras et al. 2022, algorithm 2 without churn), to any lower or higher sigma."""
    return denoised + (latents - denoised) * (sigma_next / sigma)


def slope_at(latents: Latents, denoised: Latents, sigma: float) -> Latents:
    """The change of the latents along sigma (Karras et al. 2022, equations 1 and 3)."""
    return (latents - denoised) / sigma


def ancestral_sigmas(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """(down, up): step to `down` without noise, add `up` of fresh noise, and be at sigma_next.

    With eta 1 this is the posterior of Ho et al. 2020, with eta between 0 and 1 that of Song et al. 2020 (formula 16).
    """
    up = min(sigma_next, eta * sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def ancestral_step(
    latents: Latents, denoised: Latents, sigma: float, sigma_next: float, noise: NoiseSource, eta: float = 1.0
) -> Latents:
    """An Euler step past sigma_next and fresh noise back up to it; draws only where noise is added."""
    down, up = ancestral_sigmas(sigma, sigma_next, eta)
    result = euler_step(latents, denoised, sigma, down)
    return result + noise.draw(latents.shape) * up if up > 0.0 else result


def heun_step(
    latents: Latents, denoised: Latents, denoise: Denoise, sigma: float, sigma_next: float, timestep: float
) -> Latents:
    """Along the mean of both ends' slopes (Karras et al. 2022, algorithm 1). timestep: that of sigma_next, above 0."""
    slope = slope_at(latents, denoised, sigma)
    ahead = latents + slope * (sigma_next - sigma)
    denoised_ahead = denoise(ahead, sigma_next, timestep).guided
    slope = (slope + slope_at(ahead, denoised_ahead, sigma_next)) * 0.5
    return latents + slope * (sigma_next - sigma)


def euler(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Euler's method on the probability flow (Karras et al. 2022)."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        latents = euler_step(latents, denoised, sigma, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def euler_a(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Ancestral Euler (k-diffusion's sample_euler_ancestral): fresh noise at every step but the last."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        latents = ancestral_step(latents, denoised, sigma, sigma_next, noise)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def heun(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Heun's method (Karras et al. 2022, algorithm 1): two model calls a step, one for the last."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        if sigma_next > 0.0:
            timestep = float(schedule.timesteps[index + 1])
            latents = heun_step(latents, denoised, denoise, sigma, sigma_next, timestep)
        else:
            latents = euler_step(latents, denoised, sigma, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
