"""SA-Solver that looks at what it corrected: two model calls a step. Pure steps over float32 arrays."""

from __future__ import annotations

from tintype.arrays import Latents
from tintype.sampling.adams import adams_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.sa_solver import tau_at
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged

_PREDICTOR, _CORRECTOR = 3, 4  # orders, of fewer steps at both ends of the way


def sa_solver_pece(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """SA-Solver, PECE (Xue et al. 2023, arXiv 2309.05019), of the orders that ComfyUI's sa_solver_pece has.

    In every step but the first the model is called again at the same noise level, for the corrected latents. Noise is
    added where the step lands at a timestep that has it.
    """
    total = schedule.total
    pictures: list[tuple[float, Latents]] = []
    start, tau = latents, 0.0
    fresh: Latents | None = None
    for index in range(total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        timestep = float(schedule.timesteps[index])
        denoised = denoise(latents, sigma, timestep).guided
        pictures = [*pictures[-3:], (sigma, denoised)]
        if index > 0:
            used = pictures[-min(_CORRECTOR, total - index) :]
            latents = adams_step(start, used, float(schedule.sigmas[index - 1]), sigma, tau, fresh)
            denoised = denoise(latents, sigma, timestep).guided
            pictures[-1] = (sigma, denoised)
        start = latents
        if sigma_next > 0.0:
            tau = tau_at(schedule, schedule.timestep_of(sigma_next))
            fresh = noise.draw(latents.shape) if tau > 0.0 else None
            used = pictures[-min(_PREDICTOR, total - 1 - index) :]
            latents = adams_step(start, used, sigma, sigma_next, tau, fresh)
        else:
            latents = denoised
        latents = after_step(latents, sigma_next, total - 1 - index)
        yield Step(index, total, sigma, sigma_next, latents, denoised)
