"""Refined exponential solver, multistep: second order from the step before. Pure steps over float32 arrays."""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.euler import ancestral_sigmas, euler_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def share_of_past(h: float, past: float) -> float:
    """How far a step goes from the newest denoised latents to the ones before: phi_2 / (c_2 phi_1), c_2 = past / h.

    h: the step, in -log sigma. past: where the ones before lie, below 0 (Zhang et al. 2023, arXiv 2308.02157, table 1).
    """
    phi_1 = -math.expm1(-h) / h
    phi_2 = (1.0 - phi_1) / h
    return phi_2 / phi_1 * (h / past)


def _multistep(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep, eta: float
) -> Steps:
    before: tuple[float, float, Latents] | None = None  # sigma, where that step landed without noise, denoised
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        down, up = ancestral_sigmas(sigma, sigma_next, eta)
        target = denoised
        if before is not None and 0.0 < down < sigma:
            sigma_before, landed, denoised_before = before
            share = share_of_past(math.log(sigma / down), math.log(landed / sigma_before))
            target = denoised + (denoised_before - denoised) * share
        latents = euler_step(latents, target, sigma, down)
        if up > 0.0:
            latents = latents + noise.draw(latents.shape) * up
        before = (sigma, down, denoised)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def res_multistep(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """RES, multistep (Zhang et al. 2023, as ComfyUI's res_multistep)."""
    return _multistep(denoise, latents, schedule, noise, after_step, 0.0)


def res_multistep_a(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Ancestral RES, multistep (ComfyUI's res_multistep_ancestral, which counts the last step without its noise)."""
    return _multistep(denoise, latents, schedule, noise, after_step, 1.0)
