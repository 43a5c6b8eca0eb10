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

from tintype.arrays import Latents
from tintype.sampling import (
    PARAMETRIZATIONS,
    SAMPLERS,
    Denoised,
    NoiseSource,
    Schedule,
    SchedulerConfig,
    make_schedule,
    noise_source,
)

CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
SHAPE = (2, 4, 5, 6)
ATOL = 1e-9

Float64 = NDArray[np.float64]


def picture(x: Any, sigma: float) -> Any:
    """Some denoiser that is not a straight line."""
    seen = x / math.hypot(1.0, sigma)
    return np.tanh(seen + 0.3 * np.roll(seen, 1, axis=-1)) * math.cos(sigma / 9.0)


def first(schedule: Schedule) -> Float64:
    return noise_source("numpy", [1, 2]).draw(SHAPE).astype(np.float64) * schedule.initial_scale


def fresh() -> NoiseSource:
    return noise_source("numpy", [3, 4])


def drawn(schedule: Schedule, model: Any = picture) -> list[Any]:
    """The latents after each step, in float64."""

    def denoise(latents: Latents, sigma: float, timestep: float) -> Denoised:
        return Denoised.unguided(model(latents, sigma))

    steps = SAMPLERS[schedule.sampler](denoise, first(schedule), schedule, fresh())  # type: ignore[arg-type]
    return [step.latents for step in steps]


def on(sigmas: Float64, sampler: str, config: SchedulerConfig = CONFIG) -> Schedule:
    """A schedule of these sigmas, whose last is where it lands."""
    steps = len(sigmas) - 1
    return dataclasses.replace(
        make_schedule(config, sampler, steps),
        timesteps=np.zeros(steps),
        sigmas=sigmas,
        sigmas_from=sigmas[:-1],
        sigmas_to=sigmas[1:],
    )


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


def gaussian(x: Any, sigma: float) -> Any:
    """The perfect denoiser of standard normals, under which x / sqrt(1 + sigma^2) stays as it is."""
    return x / (1.0 + sigma**2)


@pytest.mark.parametrize("sampler", ["dpm2", "lms", "deis", "dpmpp_2m", "res_multistep"])
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
