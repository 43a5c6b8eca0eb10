"""SDE-DPM-Solver++ by exact integrals of what runs through the steps before. Pure steps over float32 arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tintype.arrays import Latents
from tintype.sampling.dpm import sde_step, takes_first_order
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def correction(history: Sequence[tuple[float, Latents]], sigma_next: float) -> Latents:
    """What the order above the first adds to a step of SDE-DPM-Solver++, from differences of what was denoised.

    history: (sigma, denoised), newest last, two or three of them. Lu et al. 2022 (arXiv 2211.01095), appendix, with
    twice the step that the ODE has. Its D2 is subtracted, as in k-diffusion; diffusers adds it.
    """
    middle_sigma, middle = history[-2]
    sigma, newest = history[-1]
    h = math.log(sigma / sigma_next)
    doubled = 2.0 * h
    phi_2 = math.expm1(-doubled) / doubled + 1.0
    ratio = math.log(middle_sigma / sigma) / h
    slope: Latents = (newest - middle) * (1.0 / ratio)
    if len(history) == 2:
        return slope * phi_2
    old_sigma, oldest = history[-3]
    older_ratio = math.log(old_sigma / middle_sigma) / h
    older_slope: Latents = (middle - oldest) * (1.0 / older_ratio)
    bend: Latents = (slope - older_slope) * (1.0 / (ratio + older_ratio))
    phi_3 = phi_2 / doubled - 0.5
    return slope * phi_2 + bend * (ratio * phi_2 - phi_3)


def _multistep(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep, order: int
) -> Steps:
    history: list[tuple[float, Latents]] = []
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        history = [*history, (sigma, denoised)][-order:]
        latents = sde_step(latents, denoised, sigma, sigma_next, noise)
        if sigma_next != sigma and not takes_first_order(schedule, index):
            latents = latents + correction(history, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def dpmpp_2m_sde_heun(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """SDE-DPM-Solver++(2M), Heun's form: the integral of a line, where dpmpp_2m_sde takes its value halfway."""
    return _multistep(denoise, latents, schedule, noise, after_step, 2)


def dpmpp_3m_sde(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """SDE-DPM-Solver++(3M) (k-diffusion's sample_dpmpp_3m_sde): fresh noise at every step but the last."""
    return _multistep(denoise, latents, schedule, noise, after_step, 3)
