"""DPM-Solver of orders 1 to 3 in one step, so many calls in all. Pure steps over float32 arrays, in -log sigma."""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.euler import euler_step, slope_at
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def third_order_share(h: float) -> float:
    """(e^h - 1 - h) / h: how far a step of h goes along its slope's change (Lu et al. 2022, algorithm 2)."""
    return math.expm1(h) / h - 1.0


def solver_step(
    latents: Latents,
    denoised: Latents,
    denoise: Denoise,
    sigma: float,
    sigma_next: float,
    order: int,
    schedule: Schedule,
) -> Latents:
    """DPM-Solver-1, 2 or 3 (Lu et al. 2022, arXiv 2206.00927, algorithms 1 and 2): `order` - 1 further calls."""
    h = math.log(sigma / sigma_next)
    plain = euler_step(latents, denoised, sigma, sigma_next)
    if order == 1:
        return plain
    slope = slope_at(latents, denoised, sigma)

    def change(at: Latents, place: float) -> Latents:
        seen = denoise(at, place, schedule.timestep_of(place)).guided
        return slope_at(at, seen, place) - slope

    first = sigma * math.exp(-h / order)
    bend = change(euler_step(latents, denoised, sigma, first), first)
    if order == 2:
        return plain - bend * (sigma_next * math.expm1(h))
    second = sigma * math.exp(-2 * h / 3)
    ahead = euler_step(latents, denoised, sigma, second) - bend * (2 * second * third_order_share(2 * h / 3))
    return plain - change(ahead, second) * (1.5 * sigma_next * third_order_share(h))


def dpm_fast(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DPM-Solver-fast (Lu et al. 2022, section 3.4; k-diffusion's sample_dpm_fast): third order, and the calls that are
    left over go to the last steps. It lands on training's least noise, which stays in the picture."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        latents = solver_step(latents, denoised, denoise, sigma, sigma_next, schedule.calls_in(index), schedule)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
