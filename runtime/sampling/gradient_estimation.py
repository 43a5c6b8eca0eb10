"""Gradient estimation: each slope corrects the one before, which had an error in common. Pure steps over arrays."""

from __future__ import annotations

from tintype.arrays import Latents
from tintype.sampling.cfg_pp import cfg_pp_step
from tintype.sampling.euler import slope_at
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Denoised, Step, Steps, unchanged

GAMMA = 2.0  # the slope ahead is gamma times the newest and 1 - gamma times the one before; 2 is the authors'


def _extrapolated(
    denoise: Denoise, latents: Latents, schedule: Schedule, after_step: AfterStep, *, cfg_pp: bool
) -> Steps:
    before: Latents | None = None
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index]))
        renoised_by = denoised.unconditional if cfg_pp else denoised.guided
        slope = slope_at(latents, renoised_by, sigma)
        latents = cfg_pp_step(latents, Denoised(denoised.guided, renoised_by), sigma, sigma_next)
        if before is not None and sigma_next > 0.0:
            latents = latents + (slope - before) * ((GAMMA - 1.0) * (sigma_next - sigma))
        before = slope
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised.guided)


def gradient_estimation(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DDIM with gradient estimation (Permenter & Yuan 2024, arXiv 2306.04848, algorithm 2).

    As ComfyUI's gradient_estimation and stable-diffusion.cpp's euler_ge.
    """
    return _extrapolated(denoise, latents, schedule, after_step, cfg_pp=False)


def gradient_estimation_cfg_pp(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """The same under CFG++ (ComfyUI's): slopes are those of the unconditional pictures."""
    return _extrapolated(denoise, latents, schedule, after_step, cfg_pp=True)
