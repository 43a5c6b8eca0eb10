"""DPM-Solver++ and its stochastic kin: pure steps over float32 arrays.

The papers integrate over half the log of signal to noise; in latents image + sigma * noise that is -log(sigma), and
exp(-h) is sigma_next / sigma.
"""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.sampling.euler import ancestral_sigmas, euler_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def extrapolate(denoised: Latents, before: Latents, sigma_before: float, sigma: float, sigma_next: float) -> Latents:
    """The denoised latents half a step ahead, on the line through the last two (in log sigma)."""
    return denoised + (denoised - before) * half_ratio(sigma_before, sigma, sigma_next)


def half_ratio(sigma_before: float, sigma: float, sigma_next: float) -> float:
    """Half of this step over the last one, in log sigma: 1 / (2 r) of the paper's algorithm 2."""
    return 0.5 * (math.log(sigma / sigma_next) / math.log(sigma_before / sigma))


def sde_step(latents: Latents, denoised: Latents, sigma: float, sigma_next: float, noise: NoiseSource) -> Latents:
    """One step of SDE-DPM-Solver++ (Lu et al. 2022, section 3.3): twice the pull of the ODE, and noise to match."""
    ratio = (sigma_next / sigma) ** 2
    result = denoised + (latents - denoised) * ratio
    return result + noise.draw(latents.shape) * (sigma_next * math.sqrt(1.0 - ratio)) if sigma_next > 0.0 else result


def takes_first_order(schedule: Schedule, index: int) -> bool:
    """The first step has no past; the last one, to the picture, is steadier without it."""
    last = index == schedule.total - 1
    config = schedule.config
    few = config.lower_order_final and schedule.total + schedule.skipped < 15
    return index == 0 or (last and (few or config.euler_at_final or config.final_sigmas_type == "zero"))


def _multistep(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    noise: NoiseSource,
    after_step: AfterStep,
    *,
    stochastic: bool,
) -> Steps:
    before: Latents | None = None
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        target = denoised
        if before is not None and not takes_first_order(schedule, index):
            target = extrapolate(denoised, before, float(schedule.sigmas[index - 1]), sigma, sigma_next)
        if stochastic:
            latents = sde_step(latents, target, sigma, sigma_next, noise)
        else:
            latents = euler_step(latents, target, sigma, sigma_next)
        before = denoised
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def dpmpp_2m(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2): second order from the step before."""
    return _multistep(denoise, latents, schedule, noise, after_step, stochastic=False)


def dpmpp_2m_sde(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """SDE-DPM-Solver++(2M), midpoint (Lu et al. 2022): dpmpp_2m with fresh noise at every step but the last."""
    return _multistep(denoise, latents, schedule, noise, after_step, stochastic=True)


def dpmpp_2s(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DPM-Solver++(2S) (Lu et al. 2022, algorithm 1), one call a step: every second one goes on from the start of two.

    As in diffusers' DPMSolverSinglestepScheduler, whose timesteps are always linspace; here they are as asked for.
    """
    config = schedule.config
    start: tuple[float, Latents, Latents] | None = None  # sigma, latents, denoised
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        first_order = index == schedule.total - 1 and (config.lower_order_final or sigma_next == 0.0)
        if start is None or first_order or (schedule.skipped + index) % 2 == 0:
            start = (sigma, latents, denoised)
            latents = euler_step(latents, denoised, sigma, sigma_next)
        else:
            first_sigma, first_latents, first_denoised = start
            reach = 0.5 * (math.log(first_sigma / sigma_next) / math.log(first_sigma / sigma))
            target = first_denoised + (denoised - first_denoised) * reach
            latents = euler_step(first_latents, target, first_sigma, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def dpmpp_sde(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DPM-Solver++ (stochastic), single step (k-diffusion's sample_dpmpp_sde): two model calls a step, one at the end.

    Both halves of a step follow one Brownian path: the noise of the whole step is made of that to its middle and a
    second draw.
    """
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        if sigma_next > 0.0:
            middle = math.sqrt(sigma * sigma_next)
            to_middle, onwards = noise.draw(latents.shape), noise.draw(latents.shape)
            down, up = ancestral_sigmas(sigma, middle)
            halfway = euler_step(latents, denoised, sigma, down) + to_middle * up
            denoised_halfway = denoise(halfway, middle, schedule.timestep_of(middle)).guided
            share = (sigma - middle) / (sigma - sigma_next)
            whole: Latents = to_middle * math.sqrt(share) + onwards * math.sqrt(1.0 - share)
            down, up = ancestral_sigmas(sigma, sigma_next)
            latents = euler_step(latents, denoised_halfway, sigma, down) + whole * up
        else:
            latents = euler_step(latents, denoised, sigma, sigma_next)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
