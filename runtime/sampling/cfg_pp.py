"""CFG++ (Chung et al. 2024, arXiv 2406.08070): step to the guided picture, renoise by the unconditional prediction.

Guidance then stays near what the model knows at scales of 0 to 1: the paper's lambda, of which 0.6 does what 7.5 does
without. Where nothing is guided (a scale of 1 turns guidance off) each is the sampler that it is named after.
Pure steps over float32 arrays.
"""

from __future__ import annotations

from tintype.arrays import Latents
from tintype.sampling.dpm import half_ratio, takes_first_order
from tintype.sampling.euler import ancestral_sigmas
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Denoised, Step, Steps, unchanged

CFG_PP_GUIDANCE = 0.6  # does what 7.5 does without CFG++, by the paper's table of scales that match


def cfg_pp_step(latents: Latents, denoised: Denoised, sigma: float, sigma_next: float) -> Latents:
    """DDIM's step under CFG++ (Chung et al. 2024, algorithm 2): the guided picture, the unconditional noise."""
    return denoised.guided + (latents - denoised.unconditional) * (sigma_next / sigma)


def euler_cfg_pp(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Euler's method under CFG++, which is its DDIM."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index]))
        latents = cfg_pp_step(latents, denoised, sigma, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised.guided)


def euler_a_cfg_pp(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Ancestral Euler under CFG++: fresh noise at every step but the last."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index]))
        down, up = ancestral_sigmas(sigma, sigma_next)
        latents = cfg_pp_step(latents, denoised, sigma, down)
        if up > 0.0:
            latents = latents + noise.draw(latents.shape) * up
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised.guided)


def dpmpp_2m_cfg_pp(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DPM-Solver++(2M) under CFG++: its second order looks from the last unconditional picture to this guided one."""
    before: Latents | None = None
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index]))
        latents = cfg_pp_step(latents, denoised, sigma, sigma_next)
        if before is not None and not takes_first_order(schedule, index):
            ratio = half_ratio(float(schedule.sigmas[index - 1]), sigma, sigma_next)
            latents = latents + (denoised.guided - before) * (ratio * (1.0 - sigma_next / sigma))
        before = denoised.unconditional
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised.guided)
