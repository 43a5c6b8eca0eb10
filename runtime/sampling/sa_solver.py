"""SA-Solver: a predictor and a corrector with the noise of the middle of the way. Pure steps over float32 arrays."""

from __future__ import annotations

from tintype.arrays import Latents
from tintype.sampling.adams import adams_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged

_NOISY = (0.2, 0.8)  # of the training timesteps, where tau is 1; elsewhere it is 0


def tau_at(schedule: Schedule, timestep: float) -> float:
    """How much of the reverse equation's noise there is at a timestep: the authors' interval for latent models."""
    low, high = _NOISY
    return 1.0 if low <= timestep / schedule.config.num_train_timesteps <= high else 0.0


def sa_solver(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """SA-Solver, PEC (Xue et al. 2023, arXiv 2309.05019, algorithm 1), of the checkpoint's orders, as in diffusers.

    Each model call corrects the step that led to it, then predicts the next. diffusers stops at the least noise of
    training whatever the checkpoint says; here final_sigmas_type says it. As there noise is drawn at every step, also
    where none is added.
    """
    config, total = schedule.config, schedule.total
    pictures: list[tuple[float, Latents]] = []
    start, fresh, tau = latents, None, 0.0
    for index in range(total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        timestep = float(schedule.timesteps[index])
        denoised = denoise(latents, sigma, timestep).guided
        pictures = [*pictures[-3:], (sigma, denoised)]
        left = total - index if config.lower_order_final else total
        if index > 0:
            used = pictures[-min(config.corrector_order, left + 2) :]
            latents = adams_step(start, used, float(schedule.sigmas[index - 1]), sigma, tau, fresh, simple=True)
        start, tau = latents, tau_at(schedule, timestep)
        if sigma_next > 0.0:
            fresh = noise.draw(latents.shape)
            used = pictures[-min(config.predictor_order, left) :]
            latents = adams_step(start, used, sigma, sigma_next, tau, fresh, simple=True)
        else:
            latents = denoised
        latents = after_step(latents, sigma_next, total - 1 - index)
        yield Step(index, total, sigma, sigma_next, latents, denoised)
