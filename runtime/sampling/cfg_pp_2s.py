"""Ancestral DPM-Solver++(2S) under CFG++: two model calls a step, one for the last. Pure steps over float32 arrays."""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.cfg_pp import cfg_pp_step
from tintype.sampling.dpm2 import ancestral_pair
from tintype.sampling.euler import euler_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def dpmpp_2s_a_cfg_pp(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Ancestral DPM-Solver++(2S) (Lu et al. 2022) under CFG++, as ComfyUI's dpmpp_2s_ancestral_cfg_pp.

    Halfway it is CFG++'s own step; the whole step moves the latents by what guidance adds and goes to what was denoised
    halfway.
    """
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index]))
        if sigma_next > 0.0:
            down, up = ancestral_pair(sigma, sigma_next)
            middle = math.sqrt(sigma * down)
            halfway = cfg_pp_step(latents, denoised, sigma, middle)
            denoised_halfway = denoise(halfway, middle, schedule.timestep_of(middle)).guided
            moved = latents + (denoised.guided - denoised.unconditional)
            latents = euler_step(moved, denoised_halfway, sigma, down) + noise.draw(latents.shape) * up
        else:
            latents = denoised.guided
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised.guided)
