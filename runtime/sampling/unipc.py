"""UniPC: a predictor and a corrector that share their model calls. Pure steps over float32 arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tintype.arrays import Latents
from tintype.sampling.euler import euler_step
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, unchanged


def _weights(ratios: Sequence[float], h: float, solver_type: str) -> tuple[np.ndarray, np.ndarray, float]:
    """The linear system of the order conditions (Zhao et al. 2023, theorem 3.1): matrix, right-hand side, B(h)."""
    hh = -h
    grown = math.expm1(hh)
    b_of_h = hh if solver_type == "bh1" else grown
    phi, factorial = grown / hh - 1.0, 1.0
    matrix, right = [], []
    for power in range(len(ratios)):
        matrix.append([ratio**power for ratio in ratios])
        right.append(phi * factorial / b_of_h)
        factorial *= power + 2
        phi = phi / hh - 1.0 / factorial
    return np.array(matrix), np.array(right), b_of_h


def unipc_step(
    latents: Latents,
    history: Sequence[tuple[float, Latents]],
    sigma_next: float,
    solver_type: str,
    ahead: Latents | None = None,
) -> Latents:
    """From history[-1]'s sigma to sigma_next (Zhao et al. 2023, algorithms 1 and 2; the B(h) form).

    history: (sigma, denoised) of the steps so far, newest last, as many as the order. Without `ahead` this predicts;
    with it, the denoised latents at sigma_next, it corrects. Towards sigma 0 every order is the first.
    """
    sigma, denoised = history[-1]
    if sigma_next == sigma:
        return latents
    plain = euler_step(latents, denoised, sigma, sigma_next)
    if sigma_next == 0.0 or (len(history) == 1 and ahead is None):
        return plain
    h = math.log(sigma / sigma_next)
    ratios = [math.log(sigma / past) / h for past, _ in reversed(history[:-1])]
    slopes = [
        (value - denoised) * (1.0 / ratio) for ratio, (_, value) in zip(ratios, reversed(history[:-1]), strict=True)
    ]
    matrix, right, b_of_h = _weights([*ratios, 1.0], h, solver_type)
    if ahead is not None:
        weights = np.linalg.solve(matrix, right) if slopes else np.array([0.5])
        slopes.append(ahead - denoised)
    elif len(slopes) == 1:
        weights = np.array([0.5])
    else:
        weights = np.linalg.solve(matrix[:-1, :-1], right[:-1])
    for weight, slope in zip(weights, slopes, strict=True):
        plain = plain - slope * (b_of_h * float(weight))
    return plain


def unipc(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """UniPC (Zhao et al. 2023): each model call corrects the step that led to it, then predicts the next."""
    config = schedule.config
    history: list[tuple[float, Latents]] = []
    order, start = 0, latents
    for index in range(schedule.total):
        sigma, sigma_next = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = denoise(latents, sigma, float(schedule.timesteps[index])).guided
        if index > 0:
            latents = unipc_step(start, history[-order:], sigma, config.solver_type, denoised)
        history = [*history, (sigma, denoised)][-config.solver_order :]
        left = schedule.total - index if config.lower_order_final else config.solver_order
        order, start = min(config.solver_order, left, index + 1), latents
        latents = unipc_step(start, history[-order:], sigma_next, config.solver_type)
        latents = after_step(latents, sigma_next, schedule.total - 1 - index)
        yield Step(index, schedule.total, sigma, sigma_next, latents, denoised)
