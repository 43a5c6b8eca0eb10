"""Exponential solvers, stochastic Adams and gradient estimation by their papers' formulas, and their distributions.

The loops here are written in double precision, integrate by quadrature and know nothing of the runtime's samplers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from solvers import CONFIG, SHAPE, drawn, first, fresh, gaussian, on, picture

from tintype.arrays import Latents
from tintype.sampling import SAMPLERS, Denoised, Schedule, make_schedule, noise_source

Float64 = NDArray[np.float64]
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(32)


def integral(rate: float, h: float, values: Any) -> float:
    """Of rate * exp(-rate * (h - u)) * values(u) from 0 to h: what a way of h keeps of what comes in along it."""
    u = (NODES + 1.0) * h / 2.0
    return float(np.sum(NODE_WEIGHTS * h / 2.0 * rate * np.exp(-rate * (h - u)) * values(u)))


def staged(schedule: Schedule, places: Sequence[float], eta: int, midpoint: bool) -> list[Float64]:
    """SEEDS (Gonzalez et al. 2023) and RES (Zhang et al. 2023) in lambda = -log sigma.

    The noise is sigma^2 times a Brownian motion in 1 / sigma^2, whose stationary form the papers have.
    """
    x, noise, expected, rate = first(schedule), fresh(), [], 1.0 + eta
    for sigma, sigma_next in itertools.pairwise(schedule.sigmas.tolist()):
        picture_first = picture(x, sigma)
        if sigma_next == 0.0:
            expected.append(picture_first)
            break
        h = math.log(sigma / sigma_next)
        motion, at, seen = np.zeros(SHAPE), sigma, (0.0, picture_first)
        for place in (*places, 1.0):
            to = sigma * math.exp(-place * h)
            kept = math.exp(-rate * place * h) * x
            if seen[0] == 0.0:
                kept = kept + integral(rate, place * h, np.ones_like) * picture_first
            elif midpoint:
                kept = kept + integral(rate, place * h, np.ones_like) * seen[1]
            else:
                late = integral(rate, place * h, lambda u, reach=seen[0] * h: u / reach)
                kept = kept + integral(rate, place * h, np.ones_like) * picture_first
                kept = kept + late * (seen[1] - picture_first)
            if eta and to < at * (1.0 - 1e-12):
                motion = motion + noise.draw(SHAPE) * math.sqrt(to**-2 - at**-2)
            there = kept + motion * to**2
            if place < 1.0 or (places[-1] == 1.0 and seen[0] == 0.0):
                seen = (place, picture(there, to))
            at = to
        x = there
        expected.append(x)
    return expected


@pytest.mark.parametrize("spacing", ["karras", "leading"])
@pytest.mark.parametrize(
    ("sampler", "places", "eta"),
    [
        ("exp_heun_2_x0", (1.0,), 0),
        ("exp_heun_2_x0_sde", (1.0,), 1),
        ("res_2s", (0.5,), 0),
        ("seeds_2", (0.5,), 1),
        ("seeds_3", (1 / 3, 2 / 3), 1),
    ],
)
def test_stages_integrate_the_line_through_two_pictures(
    sampler: str, places: tuple[float, ...], eta: int, spacing: str
) -> None:
    """SEEDS-2 alone goes to what was denoised halfway."""
    for steps in (1, 2, 12):
        schedule = make_schedule(CONFIG, sampler, steps, spacing)
        expected = staged(schedule, places, eta, midpoint=sampler == "seeds_2")
        np.testing.assert_allclose(drawn(schedule), expected, atol=5e-6, rtol=0)  # the noise is float32


def lagrange(rate: float, h: float, places: list[float]) -> list[float]:
    """What each picture counts, by the integral of the polynomial that is 1 at its place and 0 at the others."""
    result = []
    for index, place in enumerate(places):
        others = places[:index] + places[index + 1 :]
        result.append(
            integral(
                rate, h, lambda u, o=others, p=place: np.prod([(u - at) / (p - at) for at in o] or [u / u], axis=0)
            )
        )
    return result


@pytest.mark.parametrize("spacing", ["karras", "leading"])
def test_sa_solver_pece_predicts_looks_corrects_and_looks_again(spacing: str) -> None:
    """Xue et al. 2023, equations 14 to 19, with ComfyUI's orders and noise from timestep 800 to 200."""
    for steps in (1, 2, 3, 12):
        schedule, noise = make_schedule(CONFIG, "sa_solver_pece", steps, spacing), fresh()
        sigmas, x, start, seen, expected = schedule.sigmas.tolist(), first(schedule), None, [], []
        tau, taus, added = 0, [], np.zeros(SHAPE)

        def step(begin: Any, used: list[tuple[float, Any]], s: float, t: float, tau: int, added: Any) -> Any:
            h, rate = math.log(s / t), 1.0 + tau**2
            weights = lagrange(rate, h, [math.log(s / at) for at, _ in used])
            terms = sum(weight * image for weight, (_, image) in zip(weights, used, strict=True))
            return t / s * math.exp(-(tau**2) * h) * begin + terms + added

        for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
            seen.append((s, picture(x, s)))
            if i > 0:
                x = step(start, seen[-min(4, i + 1, steps - i) :], sigmas[i - 1], s, tau, added)
                seen[-1] = (s, picture(x, s))
            if t == 0.0:
                expected.append(seen[-1][1])
                break
            tau = int(200 <= schedule.timestep_of(t) <= 800)
            taus.append(tau)
            added = noise.draw(SHAPE) * math.sqrt(t**2 - t**4 / s**2) if tau else np.zeros(SHAPE)
            start, x = x, step(x, seen[-min(3, i + 1, steps - 1 - i) :], s, t, tau, added)
            expected.append(x)
        assert steps < 12 or {*taus} == {0, 1}
        np.testing.assert_allclose(drawn(schedule), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("spacing", ["karras", "leading"])
def test_gradient_estimation_takes_twice_the_newest_slope_less_the_one_before(spacing: str) -> None:
    """Permenter & Yuan 2024, algorithm 2, with gamma 2."""
    for steps in (1, 2, 12):
        schedule = make_schedule(CONFIG, "gradient_estimation", steps, spacing)
        x, slopes, expected = first(schedule), [], []
        for s, t in itertools.pairwise(schedule.sigmas.tolist()):
            slopes.append((x - picture(x, s)) / s)
            ahead = slopes[-1] if len(slopes) == 1 or t == 0.0 else 2.0 * slopes[-1] - slopes[-2]
            x = x + (t - s) * ahead
            expected.append(x)
        np.testing.assert_allclose(drawn(schedule), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_unipc_bh2_is_of_the_third_order_whatever_the_checkpoint_says(steps: int) -> None:
    """unipc of every order is held against diffusers'."""
    other = dataclasses.replace(CONFIG, solver_order=1, solver_type="bh1", lower_order_final=False)
    third = dataclasses.replace(CONFIG, solver_order=3)
    mine = drawn(make_schedule(other, "unipc_bh2", steps, "karras"))
    np.testing.assert_array_equal(mine, drawn(make_schedule(third, "unipc", steps, "karras")))
    if steps == 12:
        assert np.abs(mine[-1] - drawn(make_schedule(CONFIG, "unipc", steps, "karras"))[-1]).max() > 1e-4


class Impulses:
    """Noise whose n-th draw is 1 in the n-th picture of a batch and 0 in the others."""

    def __init__(self) -> None:
        self.draws = 0

    def draw(self, shape: Sequence[int]) -> Latents:
        self.draws += 1
        result = np.zeros(shape)
        result[self.draws] = 1.0
        return result  # type: ignore[return-value]


def variance_error(sampler: str, steps: int) -> float:
    """Of what comes of the Gaussian model from sigma 10 to 0.1, over the exact 1 + 0.1^2, less 1.

    The model is linear, so that the variance is the sum of the squares of what each draw makes of itself alone.
    """
    schedule = on(np.geomspace(10.0, 0.1, steps + 1), sampler)
    schedule = dataclasses.replace(
        schedule, timesteps=np.array([schedule.timestep_of(s) for s in schedule.sigmas[:-1]])
    )
    latents = np.zeros((3 * steps + 1, 1, 1, 1))
    latents[0] = math.hypot(1.0, 10.0)

    def denoise(latents: Latents, sigma: float, timestep: float) -> Denoised:
        return Denoised.unguided(gaussian(latents, sigma))

    done = list(SAMPLERS[sampler](denoise, latents, schedule, Impulses()))  # type: ignore[arg-type]
    return float(np.sum(done[-1].latents ** 2)) / (1.0 + 0.1**2) - 1.0


@pytest.mark.parametrize("sampler", ["exp_heun_2_x0_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece"])
def test_the_distribution_is_the_models_and_half_the_step_is_a_quarter_of_its_error(sampler: str) -> None:
    """Of the second order in the weak sense, without the chance of sampling."""
    errors = [abs(variance_error(sampler, steps)) for steps in (40, 80, 160)]
    assert errors[-1] < 6e-4
    orders = [math.log2(more / fewer) for more, fewer in itertools.pairwise(errors)]
    assert min(orders) > 1.7, orders


@pytest.mark.parametrize("sampler", ["seeds_2", "seeds_3", "exp_heun_2_x0_sde", "sa_solver_pece"])
@pytest.mark.parametrize("mode", ["philox", "torch-cpu", "numpy"])
def test_the_noise_of_every_mode_is_each_pictures_own_and_the_same_again(sampler: str, mode: str) -> None:
    schedule = make_schedule(CONFIG, sampler, 6)

    def last(seeds: list[int]) -> Latents:
        noise = noise_source(mode, seeds)
        latents = noise.draw((len(seeds), 4, 2, 2)) * schedule.initial_scale
        steps = SAMPLERS[sampler](
            lambda x, sigma, timestep: Denoised.unguided(gaussian(x, sigma)), latents, schedule, noise
        )
        return list(steps)[-1].latents

    pair = last([5, 6])
    np.testing.assert_array_equal(pair, last([5, 6]))
    np.testing.assert_array_equal(pair[1:], last([6]))
    assert np.abs(pair[0] - pair[1]).max() > 0.01
