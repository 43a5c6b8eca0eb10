"""Exponential solvers of the second order in one step, without noise and with. Pure steps over float32 arrays."""

from __future__ import annotations

from tintype.arrays import Latents
from tintype.sampling.exponential import staged_steps
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Steps, unchanged


def exp_heun_2_x0(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Heun's method for the picture in log sigma (Hochbruck & Ostermann 2010, tableau 2.39 with c_2 = 1).

    As ComfyUI's exp_heun_2_x0: two model calls a step, at both its ends, one for the last.
    """
    return staged_steps(denoise, latents, schedule, noise, after_step, places=(1.0,))


def exp_heun_2_x0_sde(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """The same along the reverse equation with its noise (Gonzalez et al. 2023, arXiv 2305.14267; ComfyUI's)."""
    return staged_steps(denoise, latents, schedule, noise, after_step, places=(1.0,), eta=1.0)


def res_2s(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Refined exponential solver, single step (Zhang et al. 2023, arXiv 2308.02157, table 1 with c_2 = 1/2).

    As stable-diffusion.cpp's res_2s: two model calls a step, one for the last.
    """
    return staged_steps(denoise, latents, schedule, noise, after_step, places=(1 / 2,))
