"""Second order in one step: the model is called again halfway, in log sigma. Pure steps over float32 arrays.

The last step goes to the picture with one call. Ancestral ones step further down than they land, and add noise.
"""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.euler import euler_step, slope_at
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def ancestral_pair(sigma: float, sigma_next: float) -> tuple[float, float]:
    """`ancestral_sigmas` with eta 1 and sigma_next above 0, where `down` never rounds to 0: its logarithm is taken."""
    down = sigma_next * (sigma_next / sigma)
    return down, sigma_next * math.sqrt(max(1.0 - (sigma_next / sigma) ** 2, 0.0))


def _two_calls(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    noise: NoiseSource,
    after_step: AfterStep,
    *,
    ancestral: bool,
    exponential: bool = False,
) -> Steps:
    """exponential: go to what was denoised halfway, as DPM-Solver++ does, rather than along the slope there."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        if sigma_next > 0.0:
            down, up = ancestral_pair(sigma, sigma_next) if ancestral else (sigma_next, 0.0)
            middle = math.sqrt(sigma * down)
            halfway = euler_step(latents, denoised, sigma, middle)
            denoised_halfway = denoise(halfway, middle, schedule.timestep_of(middle)).guided
            if exponential:
                latents = euler_step(latents, denoised_halfway, sigma, down)
            else:
                latents = latents + slope_at(halfway, denoised_halfway, middle) * (down - sigma)
            if ancestral:
                latents = latents + noise.draw(latents.shape) * up
        else:
            latents = euler_step(latents, denoised, sigma, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def dpm2(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, algorithm 1), as k-diffusion's sample_dpm_2 takes it in sigma."""
    return _two_calls(denoise, latents, schedule, noise, after_step, ancestral=False)


def dpm2_a(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Ancestral DPM-Solver-2 (k-diffusion's sample_dpm_2_ancestral)."""
    return _two_calls(denoise, latents, schedule, noise, after_step, ancestral=True)


def dpmpp_2s_a(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Ancestral DPM-Solver++(2S) (Lu et al. 2022, arXiv 2211.01095; k-diffusion's sample_dpmpp_2s_ancestral)."""
    return _two_calls(denoise, latents, schedule, noise, after_step, ancestral=True, exponential=True)
