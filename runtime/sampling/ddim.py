"""The samplers by timestep: DDIM, DDPM and PNDM. Pure steps over float32 arrays.

In their papers' latents (unit variance) each has its own formula; divided by sqrt(alpha) they are Euler's step and the
ancestral one, with PNDM's slope a combination of earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from tintype.arrays import Latents
from tintype.sampling.euler import ancestral_step, euler_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.parametrization import EPSILON, PARAMETRIZATIONS, SAMPLE
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, same_model_input, unchanged

# Coefficients by order, newest slope first (Liu et al. 2022, formulas 9 and 12).
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ddim(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DDIM (Song et al. 2020, formula 12), with schedule.eta of its noise."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas_to[index])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        latents = ancestral_step(latents, denoised, sigma, sigma_next, noise, schedule.eta)
        latents = same_model_input(latents, sigma_next, float(schedule.sigmas[index + 1]))
        latents = after_step(latents, float(schedule.sigmas[index + 1]), schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, float(schedule.sigmas[index + 1]), latents, denoised)


def ddpm(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DDPM (Ho et al. 2020, formulas 6 and 7, the smaller variance)."""
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        latents = ancestral_step(latents, denoised, sigma, sigma_next, noise)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def combine(predictions: Sequence[Latents]) -> Latents:
    """The slope ahead from up to four predictions, newest last (linear multistep)."""
    coefficients = ADAMS_BASHFORTH[len(predictions) - 1]
    total = predictions[-1] * coefficients[0]
    for coefficient, prediction in zip(coefficients[1:], reversed(predictions[:-1]), strict=True):
        total = total + prediction * coefficient
    return total


def pndm(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """PNDM without its Runge-Kutta start, also called PLMS (Liu et al. 2022): one call a step, one more to start.

    Predictions are combined as the model makes them (velocities for a v model), as diffusers does.
    """
    kind = PARAMETRIZATIONS[schedule.config.prediction_type]
    kind = EPSILON if kind is SAMPLE else kind  # pictures seen from several noise levels make no slope
    history: list[Latents] = []
    first = latents
    for index in range(schedule.total):
        sigma, departure = float(schedule.sigmas[index]), float(schedule.sigmas_from[index])
        landing, sigma_next = float(schedule.sigmas_to[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        prediction = kind.prediction(denoised, latents, sigma)
        if index == 1:
            slope = (history[-1] + prediction) * 0.5
            latents = same_model_input(first, float(schedule.sigmas[0]), departure)
        else:
            history = [*history[-3:], prediction]
            slope = combine(history)
        target = kind.denoised(slope, latents, departure)
        latents = same_model_input(euler_step(latents, target, departure, landing), landing, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
