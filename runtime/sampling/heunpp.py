"""Heun++: slopes of up to two steps ahead, each weighed by the noise there. Pure steps over float32 arrays."""

from __future__ import annotations

from tintype.arrays import Latents
from tintype.sampling.euler import euler_step, slope_at
from tintype.sampling.layout import LAYOUTS
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def heunpp2(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Heun++ (of sd-webui-samplers-scheduler, as ComfyUI's heunpp2): three model calls a step, two for the last but
    one, one for the last.

    Of k slopes the one at sigma counts sigma / (k * first sigma), and the step's own what is left.
    """
    highest, looks_ahead = float(schedule.sigmas[0]), LAYOUTS["heunpp2"].looks_ahead
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        slope = first = slope_at(latents, denoised, sigma)
        ahead, seen, at = latents, denoised, sigma
        taken = [float(value) for value in schedule.sigmas[index + 1 : index + 1 + looks_ahead] if value > 0.0]
        for number, further in enumerate(taken, 1):
            ahead = euler_step(ahead, seen, at, further)
            seen, at = denoise(ahead, further, float(schedule.timesteps[index + number])).guided, further
            slope = slope + (slope_at(ahead, seen, at) - first) * (at / (highest * (len(taken) + 1)))
        latents = latents + slope * (sigma_next - sigma) if taken else euler_step(latents, denoised, sigma, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
