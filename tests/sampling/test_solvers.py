"""Samplers that no library here has for these latents, by their papers' formulas, and how fast all of order 2 converge.

The loops here are written in double precision and know nothing of the runtime's samplers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from solvers import CONFIG, SHAPE, drawn, first, fresh, gaussian, on, picture

from tintype.sampling import PARAMETRIZATIONS, Schedule, make_schedule

ATOL = 1e-9

Float64 = NDArray[np.float64]


def exponential_integral(now: float, then: float, past: float, newest: Any, before: Any) -> Any:
    """What DPM-Solver's and RES's exact solution adds from `now` to `then`, in lambda = -log sigma, by quadrature.

    Of the line that is `newest` at 0 and `before` at `past`, both counted from `now`.
    """
    nodes, weights = np.polynomial.legendre.leggauss(24)
    h = then - now
    total = np.zeros_like(newest)
    for node, weight in zip((nodes + 1.0) * h / 2.0, weights * h / 2.0, strict=True):
        total += weight * math.exp(node - h) * (newest + (before - newest) * node / past)
    return total


@pytest.mark.parametrize("spacing", ["karras", "leading"])
@pytest.mark.parametrize(("sampler", "eta"), [("res_multistep", 0.0), ("res_multistep_a", 1.0)])
def test_res_integrates_the_line_through_two_pictures(sampler: str, eta: float, spacing: str) -> None:
    """Zhang et al. 2023; what ComfyUI takes for the past of an ancestral step is where the last one landed unnoised."""
    for steps in (1, 2, 12):
        schedule, noise = make_schedule(CONFIG, sampler, steps, spacing), fresh()
        x, done, expected = first(schedule), drawn(schedule), []
        past: tuple[float, float, Any] | None = None
        for sigma, sigma_next in itertools.pairwise(schedule.sigmas.tolist()):
            denoised = picture(x, sigma)
            up = eta * sigma_next * math.sqrt(1.0 - (sigma_next / sigma) ** 2)
            down = math.sqrt(sigma_next**2 - up**2)
            if past is None or down == 0.0:
                x = denoised + (x - denoised) * down / sigma
            else:
                sigma_before, landed, before = past
                integral = exponential_integral(
                    -math.log(sigma), -math.log(down), math.log(landed) - math.log(sigma_before), denoised, before
                )
                x = x * down / sigma + integral
            past = (sigma, down, denoised)
            if up > 0.0:
                x = x + noise.draw(SHAPE) * up
            expected.append(x)
        np.testing.assert_allclose(done, expected, atol=1e-7, rtol=0)


def restart_loop(segments: list[list[float]], schedule: Schedule) -> list[Float64]:
    """Xu et al. 2023, algorithm 1: Heun along each segment, and noise where one begins above the last one's end."""
    x, noise, after = first(schedule), fresh(), []
    for index, segment in enumerate(segments):
        if index > 0:
            x = x + noise.draw(SHAPE) * math.sqrt(segment[0] ** 2 - segments[index - 1][-1] ** 2)
            after[-1] = x
        for sigma, sigma_next in itertools.pairwise(segment):
            slope = (x - picture(x, sigma)) / sigma
            ahead = x + slope * (sigma_next - sigma)
            if sigma_next > 0.0:
                slope = (slope + (ahead - picture(ahead, sigma_next)) / sigma_next) / 2.0
            x = x + slope * (sigma_next - sigma)
            after.append(x)
    return after


def karras(high: float, low: float, count: int) -> list[float]:
    return [
        float((high ** (1 / 7) + share * (low ** (1 / 7) - high ** (1 / 7))) ** 7) for share in np.linspace(0, 1, count)
    ]


@pytest.mark.parametrize(("steps", "again", "times"), [(20, 9, 1), (35, 9, 1), (36, 9, 2), (50, 12, 2)])
def test_restart_goes_up_and_down_again(steps: int, again: int, times: int) -> None:
    """From the noise level nearest to 0.1 to that nearest to 2, as often and in as many steps as A1111 does."""
    schedule = make_schedule(CONFIG, "restart", steps, "karras")
    way = karras(schedule.training_sigmas[-1], schedule.training_sigmas[0], steps - again * times)
    low, high = (min(range(len(way)), key=lambda at: abs(way[at] - level)) for level in (0.1, 2.0))
    up = karras(way[high], way[low], again + 1)
    # The way to the low noise level; the segments, the last of which goes on to the picture.
    segments = [way[: low + 1], *[up] * (times - 1), [*up, *way[low + 1 :], 0.0]]
    assert schedule.total == steps
    np.testing.assert_allclose(drawn(schedule), restart_loop(segments, schedule), atol=1e-4, rtol=0)


def test_restart_of_few_steps_or_of_little_noise_is_heuns_method() -> None:
    little = dataclasses.replace(CONFIG, beta_start=1e-6, beta_end=2e-6)
    for config, steps in ((CONFIG, 1), (CONFIG, 19), (little, 40)):
        mine, heuns = (drawn(make_schedule(config, sampler, steps)) for sampler in ("restart", "heun"))
        np.testing.assert_array_equal(mine, heuns)


def test_restart_begins_anywhere() -> None:
    """A picture to begin with spares the first steps, whichever they are; where noise is added it is what lacks."""
    whole = make_schedule(CONFIG, "restart", 36)
    for taken in range(1, 37):
        part = make_schedule(CONFIG, "restart", 36, strength=taken / 36 + 1e-9)
        np.testing.assert_array_equal(part.sigmas, whole.sigmas[36 - taken :])
        np.testing.assert_array_equal(part.sigmas_to, whole.sigmas_to[36 - taken :])
        assert part.total == taken
    assert np.count_nonzero(whole.sigmas[1:] > whole.sigmas_to) == 2


@pytest.mark.parametrize("sampler", ["dpm2", "lms", "deis", "dpmpp_2m", "res_multistep", "exp_heun_2_x0", "res_2s"])
def test_half_the_step_is_a_quarter_of_the_error(sampler: str) -> None:
    """Of what is of the second order, or of a higher one but for its first steps."""
    errors = []
    for steps in (40, 80, 160):
        schedule = on(np.geomspace(10.0, 0.1, steps + 1), sampler)
        exact = first(schedule) * math.hypot(1.0, 0.1) / math.hypot(1.0, 10.0)
        errors.append(float(np.abs(drawn(schedule, gaussian)[-1] - exact).max()))
    orders = [math.log2(more / fewer) for more, fewer in itertools.pairwise(errors)]
    assert min(orders) > 1.75, orders


@pytest.mark.reference
def test_ipndm_is_that_of_diffusers_down_to_its_last_step() -> None:
    """Whose own timesteps begin at sigma infinity, so from the second one; the last step is to what was denoised."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(13)
    scheduler.set_begin_index(1)
    alphas, betas = scheduler.alphas.double().numpy()[1:], scheduler.betas.double().numpy()[1:]
    schedule = on(betas / alphas, "ipndm")
    kind = PARAMETRIZATIONS["v_prediction"]

    def velocity(sample: Any) -> Any:
        return np.tanh(sample + 0.3 * np.roll(sample, 1, axis=-1)) * 0.7

    def denoised(x: Any, sigma: float) -> Any:
        return kind.denoised(velocity(kind.model_input(x, sigma)), x, sigma)

    mine = drawn(schedule, denoised)
    x = torch.from_numpy(first(schedule) * alphas[0])
    for index, timestep in enumerate(scheduler.timesteps[1:-1]):
        x = scheduler.step(torch.from_numpy(velocity(x.numpy())), timestep, x).prev_sample
        np.testing.assert_allclose(mine[index] * alphas[index + 1], x.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(mine[-1], denoised(mine[-2], float(schedule.sigmas[-2])), atol=ATOL, rtol=0)


@pytest.mark.parametrize("spacing", ["karras", "leading"])
def test_heunpp2_weighs_the_slopes_ahead_by_their_noise(spacing: str) -> None:
    """sd-webui-samplers-scheduler's Heun++, as ComfyUI has it, written out case by case."""
    for steps in (1, 2, 3, 12):
        schedule = make_schedule(CONFIG, "heunpp2", steps, spacing)
        sigmas, x, expected = schedule.sigmas.tolist(), first(schedule), []

        def slope(at: Any, sigma: float) -> Any:
            return (at - picture(at, sigma)) / sigma

        for index, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            d = slope(x, sigma)
            if after > 0.0:
                ahead = x + d * (after - sigma)
                d2 = slope(ahead, after)
                last = sigmas[index + 2]
                if last == 0.0:
                    share = after / (2 * sigmas[0])
                    d = d * (1 - share) + d2 * share
                else:
                    d3 = slope(ahead + d2 * (last - after), last)
                    two, three = after / (3 * sigmas[0]), last / (3 * sigmas[0])
                    d = d * (1 - two - three) + d2 * two + d3 * three
            x = x + d * (after - sigma)
            expected.append(x)
        np.testing.assert_allclose(drawn(schedule), expected, atol=ATOL, rtol=0)
        assert schedule.model_calls == sum(min(3, steps - index) for index in range(steps))


def ipndm_v_coefficients(h: list[float]) -> list[float]:
    """Of the newest slope first; h: sizes of the steps, the one to take first. Of zju-pi's diff-sampler."""
    if len(h) == 1:
        return [1.0]
    two = h[0] + h[1]
    coefficients = [1 + h[0] / h[1] / 2, -h[0] / h[1] / 2]
    if len(h) > 2:
        bend = (1 - h[0] / (3 * two) * (h[0] * two) / (h[1] * (h[1] + h[2]))) / 2
        coefficients = [coefficients[0] + bend, coefficients[1] - (1 + h[1] / h[2]) * bend, bend * h[1] / h[2]]
    if len(h) > 3:
        outer = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
        twist = (1 - h[0] / (3 * two)) / 2 + (1 - h[0] / (2 * two)) * h[0] / (6 * sum(h[:3]))
        twist *= h[0] * two * sum(h[:3]) / (h[1] * (h[1] + h[2]) * sum(h[1:4]))
        coefficients[0] += twist
        coefficients[1] -= (1 + h[1] / h[2] + outer) * twist
        coefficients[2] += (h[1] / h[2] + outer * (1 + h[2] / h[3])) * twist
        coefficients.append(-twist * outer * h[1] / h[2])
    return coefficients


@pytest.mark.parametrize("spacing", ["karras", "leading"])
def test_ipndm_v_is_adams_bashforth_with_steps_of_their_own_size(spacing: str) -> None:
    schedule = make_schedule(CONFIG, "ipndm_v", 12, spacing)
    sigmas, x, slopes, expected = schedule.sigmas.tolist(), first(schedule), [], []
    for index, sigma in enumerate(sigmas[:-1]):
        denoised = picture(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes][:4]
        h = [sigmas[at + 1] - sigmas[at] for at in range(index, max(index - 4, -1), -1)]
        terms = zip(ipndm_v_coefficients(h), slopes, strict=True)
        x = x + h[0] * sum(share * slope for share, slope in terms) if sigmas[index + 1] > 0.0 else denoised
        expected.append(x)
    np.testing.assert_allclose(drawn(schedule), expected, atol=ATOL, rtol=0)
    even = [drawn(on(np.linspace(10.0, 7.0, 4), name)) for name in ("ipndm_v", "ipndm")]
    np.testing.assert_allclose(*even, atol=1e-9, rtol=0)  # steps of one size, up to the third order


def er_scale(sigma: Any) -> Any:
    return sigma * (np.exp(sigma**0.3) + 10.0)


@pytest.mark.parametrize("spacing", ["karras", "leading"])
def test_er_sde_is_that_of_its_authors(spacing: str) -> None:
    """Cui et al. 2023, algorithm 3, with the integrals as sums over 200 points, as their code and ComfyUI have them."""
    for steps in (1, 2, 3, 12):
        schedule, noise = make_schedule(CONFIG, "er_sde", steps, spacing), fresh()
        sigmas, x, seen, slopes, expected = schedule.sigmas.tolist(), first(schedule), [], [], []
        for index, (s, t) in enumerate(itertools.pairwise(sigmas)):
            seen.append(picture(x, s))
            if t == 0.0:
                expected.append(seen[-1])
                break
            ratio, places = er_scale(t) / er_scale(s), t + np.arange(200) * (s - t) / 200
            x = ratio * x + (1 - ratio) * seen[-1]
            if index > 0:
                slopes.append((seen[-1] - seen[-2]) / (s - sigmas[index - 1]))
                x = x + (t - s + np.sum(1 / er_scale(places)) * (s - t) / 200 * er_scale(t)) * slopes[-1]
            if index > 1:
                bend = (slopes[-1] - slopes[-2]) / ((s - sigmas[index - 2]) / 2)
                weight = np.sum((places - s) / er_scale(places)) * (s - t) / 200
                x = x + ((t - s) ** 2 / 2 + weight * er_scale(t)) * bend
            x = x + noise.draw(SHAPE) * math.sqrt(max(t**2 - s**2 * ratio**2, 0.0))
            expected.append(x)
        np.testing.assert_allclose(drawn(schedule), expected, atol=1e-7, rtol=0)
