"""Slopes of earlier steps, continued: LMS, DEIS and iPNDM, one model call a step. Pure steps over float32 arrays.

They differ in what runs through the slopes: a polynomial in sigma, one in log sigma, or one that takes the steps to be
of equal size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from tintype.arrays import Latents
from tintype.sampling.ddim import ADAMS_BASHFORTH
from tintype.sampling.euler import euler_step, slope_at
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged

_GAUSS = (-(3.0**-0.5), 3.0**-0.5)  # nodes of equal weight, exact up to the third degree
# (sigmas so far, newest last, sigma ahead) -> the weight of each slope, newest last
Weights: TypeAlias = Callable[[Sequence[float], float], Sequence[float]]


def lms_weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """Integrals from the newest sigma to the next of the polynomials that are 1 at one sigma and 0 at the others.

    Adams-Bashforth with steps of any size (k-diffusion's linear_multistep_coeff, to which it is exact).
    """
    half = 0.5 * (sigma_next - sigmas[-1])
    places = [sigmas[-1] + half * (1.0 + node) for node in _GAUSS]
    return [half * sum(_basis(sigmas, index, place) for place in places) for index in range(len(sigmas))]


def deis_weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """The same with polynomials in log sigma (Zhang & Chen 2022, arXiv 2204.13902, equation 15; its rho is our sigma).

    With u = log(sigma / newest sigma) each power's integral against d sigma follows from the one below it.
    """
    if len(sigmas) == 1:
        return [sigma_next - sigmas[-1]]
    end = math.log(sigma_next / sigmas[-1])
    integrals = [math.expm1(end)]
    for power in range(1, len(sigmas)):
        integrals.append(end**power * math.exp(end) - power * integrals[-1])
    logs = [math.log(sigma / sigmas[-1]) for sigma in sigmas]
    result = []
    for index, log in enumerate(logs):
        others = logs[:index] + logs[index + 1 :]
        polynomial = np.poly(others)[::-1] / math.prod(log - other for other in others)
        result.append(sigmas[-1] * float(np.dot(polynomial, integrals)))
    return result


def ipndm_weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """The same as if all steps were of equal size (Liu et al. 2022, formulas 9 and 12)."""
    step = sigma_next - sigmas[-1]
    return [step * coefficient for coefficient in reversed(ADAMS_BASHFORTH[len(sigmas) - 1])]


def ipndm_v_weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """The same for steps of any size (Zhang & Chen 2022), as their code and ComfyUI's ipndm_v have it.

    Beyond the second order theirs is not quite that of Adams and Bashforth: what `bend` halves is a whole difference
    where the formula has one term of it, `twist` adds what it should take away, and the oldest weight has the ratio of
    two other steps, so that the weights of steps of unlike size don't sum up. Pictures of that name are made so.
    """
    ahead, *back = [after - at for at, after in zip(sigmas, [*sigmas[1:], sigma_next], strict=True)][::-1]
    weights = [1.0, 0.0, 0.0, 0.0]  # newest first
    if len(back) > 0:
        share = ahead / back[0] / 2
        weights[0], weights[1] = 1.0 + share, -share
    if len(back) > 1:
        two = ahead + back[0]
        ratio = back[0] / back[1]
        bend = (1 - ahead / (3 * two) * (ahead * two) / (back[0] * (back[0] + back[1]))) / 2
        weights = [weights[0] + bend, weights[1] - (1 + ratio) * bend, ratio * bend, 0.0]
    if len(back) > 2:
        three, outer = two + back[1], back[0] * (back[0] + back[1]) / (back[1] * (back[1] + back[2]))
        twist = (1 - ahead / (3 * two)) / 2 + (1 - ahead / (2 * two)) * ahead / (6 * three)
        twist *= ahead * two * three / (back[0] * (back[0] + back[1]) * (back[0] + back[1] + back[2]))
        weights[0] += twist
        weights[1] -= (1 + ratio + outer) * twist
        weights[2] += (ratio + outer * (1 + back[1] / back[2])) * twist
        weights[3] = -outer * ratio * twist
    return [ahead * weight for weight in reversed(weights[: len(sigmas)])]


def _basis(sigmas: Sequence[float], index: int, place: float) -> float:
    return math.prod((place - other) / (sigmas[index] - other) for at, other in enumerate(sigmas) if at != index)


def _multistep(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    after_step: AfterStep,
    order_of: Callable[[int], int],
    weights: Weights,
    *,
    whole: bool = True,
) -> Steps:
    """Euler's step, and what earlier slopes differ from the newest. order_of: of a step by its index, at most.

    whole: the weights of a step sum up to it.
    """
    history: list[tuple[float, Latents]] = []
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        slope = slope_at(latents, denoised, sigma)
        latents = euler_step(latents, denoised, sigma, sigma_next)
        history = [*history[-3:], (sigma, slope)]
        used = history[-order_of(index) :]
        shares = weights([at for at, _ in used], sigma_next)
        for weight, (_, earlier) in zip(shares, used[:-1], strict=False):
            latents = latents + (earlier - slope) * weight
        if not whole:
            latents = latents + slope * (sum(shares) - (sigma_next - sigma))
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)


def lms(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """Linear multistep of the fourth order, down to the picture (k-diffusion's sample_lms)."""
    return _multistep(denoise, latents, schedule, after_step, lambda index: 4, lms_weights)


def deis(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """DEIS, log-rho (Zhang & Chen 2022), of the checkpoint's order and its last steps of lower order, as in diffusers.

    diffusers stops at the least noise of training whatever the checkpoint says; here final_sigmas_type says it, and the
    step to the picture itself is of the first order.
    """
    config = schedule.config
    few = config.lower_order_final and schedule.total + schedule.skipped < 15

    def order_of(index: int) -> int:
        if schedule.sigmas[index + 1] == 0.0:
            return 1
        return min(config.solver_order, schedule.total - index) if few else config.solver_order

    return _multistep(denoise, latents, schedule, after_step, order_of, deis_weights)


def ipndm(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """iPNDM of the fourth order (Zhang & Chen 2022, section 3; Liu et al. 2022): pndm that begins with a single call.

    The step to the picture itself is of the first order, as in ComfyUI.
    """

    def order_of(index: int) -> int:
        return 4 if schedule.sigmas[index + 1] > 0.0 else 1

    return _multistep(denoise, latents, schedule, after_step, order_of, ipndm_weights)


def ipndm_v(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """iPNDM of the fourth order that knows the size of its steps (ComfyUI's ipndm_v); see `ipndm_v_weights`."""

    def order_of(index: int) -> int:
        return 4 if schedule.sigmas[index + 1] > 0.0 else 1

    return _multistep(denoise, latents, schedule, after_step, order_of, ipndm_v_weights, whole=False)
