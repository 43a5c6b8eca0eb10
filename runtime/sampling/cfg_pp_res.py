"""RES, multistep, under CFG++: second order from the unconditional picture before. Pure steps over float32 arrays."""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.cfg_pp import cfg_pp_step
from tintype.sampling.euler import ancestral_sigmas, euler_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.res import share_of_past
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def _multistep(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep, eta: float
) -> Steps:
    before: tuple[float, float, Latents] | None = None  # sigma, where that step landed without noise, unconditional
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index]))
        without = denoised.unconditional
        down, up = ancestral_sigmas(sigma, sigma_next, eta)
        if before is None or not 0.0 < down < sigma:
            latents = cfg_pp_step(latents, denoised, sigma, down)
        else:
            sigma_before, landed, without_before = before
            share = share_of_past(math.log(sigma / down), math.log(landed / sigma_before))
            target = without + (without_before - without) * share
            latents = euler_step(latents + (denoised.guided - without), target, sigma, down)
        if up > 0.0:
            latents = latents + noise.draw(latents.shape) * up
        before = (sigma, down, without)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised.guided)


def res_multistep_cfg_pp(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """RES (Zhang et al. 2023, arXiv 2308.02157) under CFG++, as ComfyUI's res_multistep_cfg_pp.

    From the second step on the latents are moved by what guidance adds, and go on as unguided ones do.
    """
    return _multistep(denoise, latents, schedule, noise, after_step, 0.0)


def res_multistep_a_cfg_pp(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Ancestral RES under CFG++ (ComfyUI's res_multistep_ancestral_cfg_pp)."""
    return _multistep(denoise, latents, schedule, noise, after_step, 1.0)
