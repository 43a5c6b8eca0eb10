"""Exponential Runge-Kutta: a step by stages in log sigma, with noise on one path through them. Pure steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tintype.arrays import Latents
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def line_share(decay: float) -> float:
    """What a step keeps of a line from 0 where it begins to 1 where it ends, as it keeps 1 - decay of a constant.

    -z phi_2(z) with z = log(decay) (Hochbruck & Ostermann 2010, Exponential integrators, equation 2.11).
    """
    return 1.0 - math.expm1(math.log(decay)) / math.log(decay)


def staged_steps(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    noise: NoiseSource,
    after_step: AfterStep = unchanged,
    *,
    places: Sequence[float],
    eta: float = 0.0,
    midpoint: bool = False,
) -> Steps:
    """Steps that call the model again at each of `places`, shares of the step in log sigma; the last has one call.

    Each stage goes along the line through the step's first picture and the newest; midpoint: the step itself goes to
    the newest alone. eta: of the reverse equation's noise (Gonzalez et al. 2023, arXiv 2305.14267): stages have the
    noise of those before them, less by what the way decays, and fresh noise for the rest.
    """
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        newest = denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        carried: Latents | None = None
        start, latents, at, reached = latents, denoised, sigma, 0.0
        for place in (*places, 1.0) if sigma_next > 0.0 else ():
            if at < sigma:
                newest, reached = denoise(latents, at, schedule.timestep_of(at)).guided, math.log(sigma / at)
            landing = sigma_next if place == 1.0 else sigma * (sigma_next / sigma) ** place
            decay, kept = (landing / sigma) ** (1.0 + eta), (landing / at) ** eta
            latents = denoised + (start - denoised) * decay
            if reached:
                along = 1.0 - decay if midpoint else line_share(decay) * math.log(sigma / landing) / reached
                latents = latents + (newest - denoised) * along
            if kept < 1.0:
                fresh = noise.draw(latents.shape) * math.sqrt(1.0 - kept**2)
                carried = fresh if carried is None else carried * kept + fresh
            if carried is not None:
                latents = latents + carried * landing
            at = landing
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
