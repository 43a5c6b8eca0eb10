"""Each rule of noise levels against where it comes from, to 1e-5."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tintype.sampling import SchedulerConfig, make_schedule
from tintype.sampling.beta import beta_quantiles

CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TRAINING = make_schedule(CONFIG, "euler", 1).training_sigmas
STEPS = [1, 2, 3, 10, 11, 25]


def sigmas(spacing: str, steps: int, **settings: str) -> list[float]:
    """Without the 0 at the end."""
    *result, last = make_schedule(CONFIG, "euler", steps, spacing, **settings).sigmas.tolist()  # type: ignore[arg-type]
    assert last == 0.0
    return result


def at(timestep: float) -> float:
    """As k-diffusion's DiscreteSchedule.t_to_sigma has it: log sigma between the two timesteps around."""
    low, high = math.floor(timestep), math.ceil(timestep)
    share = timestep - low
    return math.exp((1 - share) * math.log(TRAINING[low]) + share * math.log(TRAINING[high]))


@pytest.mark.parametrize("shape", [0.3, 0.6, 1.0])
def test_quantiles_of_beta_are_those_of_scipy(shape: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    shares = np.concatenate([np.linspace(0.0, 1.0, 301), [1e-12, 1e-6, 1 - 1e-6]])
    np.testing.assert_allclose(beta_quantiles(shares, shape), stats.beta.ppf(shares, shape, shape), atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", STEPS)
def test_normal_and_sgm_uniform_are_even_in_timesteps(steps: int) -> None:
    """ComfyUI's normal_scheduler; A1111's Uniform and stable-diffusion.cpp's discrete are its normal."""
    even = [999.0 * (1 - index / max(steps - 1, 1)) for index in range(steps)]
    np.testing.assert_allclose(sigmas("normal", steps), [at(timestep) for timestep in even], rtol=1e-5)
    without_last = [999.0 * (1 - index / steps) for index in range(steps)]
    np.testing.assert_allclose(sigmas("sgm_uniform", steps), [at(timestep) for timestep in without_last], rtol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_simple_counts_trainings_own(steps: int) -> None:
    expected = [TRAINING[999 - math.floor(index * 1000 / steps)] for index in range(steps)]
    np.testing.assert_allclose(sigmas("simple", steps), expected, rtol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_smoothstep_is_that_of_stable_diffusion_cpp_between_its_timesteps(steps: int) -> None:
    """Which rounds them, and so lies half a timestep from here at most."""
    found = sigmas("smoothstep", steps)
    expected = [999.0 * (3.0 * (1.0 - index / steps) ** 2 - 2.0 * (1.0 - index / steps) ** 3) for index in range(steps)]
    np.testing.assert_allclose(found, [at(timestep) for timestep in expected], rtol=1e-5)
    for sigma, timestep in zip(found, expected, strict=True):
        assert abs(np.interp(sigma, TRAINING, np.arange(1000.0)) - round(timestep)) < 0.51


@pytest.mark.parametrize("steps", STEPS[1:])
def test_bong_tangent_is_that_of_stable_diffusion_cpp(steps: int) -> None:
    """Written out as there, stage by stage; of one step it begins in the middle, and here with all noise."""
    points = steps + 2
    turn, slope = int(points * 0.6), 0.2 / (points / 40)
    expected: list[float] = []
    ends = (TRAINING[-1], (TRAINING[-1] + TRAINING[0]) / 2, TRAINING[0])
    for stage, (count, pivot) in enumerate(((turn, turn), (points - turn, 0))):
        share = [(2 / math.pi * math.atan(-slope * (x - pivot)) + 1) / 2 for x in range(count)]
        span = ends[stage] - ends[stage + 1]
        levels = [(value - share[-1]) / (share[0] - share[-1]) * span + ends[stage + 1] for value in share]
        expected = [*expected, *levels[:-1]]
    np.testing.assert_allclose(sigmas("bong_tangent", steps), expected, rtol=1e-5)
    assert sigmas("bong_tangent", 1) == [pytest.approx(TRAINING[-1])]


@pytest.mark.parametrize("steps", STEPS)
def test_kl_optimal_is_even_in_the_arc_tangent(steps: int) -> None:
    found = sigmas("kl_optimal", steps)
    ends = (math.atan(TRAINING[-1]), math.atan(TRAINING[0]))
    expected = [math.tan(ends[0] + (ends[1] - ends[0]) * index / max(steps - 1, 1)) for index in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("steps", STEPS[1:])
def test_linear_quadratic_is_that_of_diffusers(steps: int) -> None:
    """Its Mochi pipeline's, of noise from 1 to 0, times the most noise."""
    pytest.importorskip("diffusers")
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    *expected, last = [*linear_quadratic_schedule(steps, 0.025), 0.0]
    assert last == 0.0
    np.testing.assert_allclose(sigmas("linear_quadratic", steps), np.array(expected) * TRAINING[-1], rtol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("family", "theirs"),
    [("stable-diffusion", "StableDiffusionSigmas"), ("stable-diffusion-xl", "StableDiffusionXLSigmas")],
)
def test_ten_steps_of_ays_are_those_that_diffusers_has(family: str, theirs: str) -> None:
    pytest.importorskip("diffusers")
    from diffusers.schedulers import AysSchedules

    np.testing.assert_allclose([*sigmas("ays", 10, family=family), 0.0], AysSchedules[theirs], rtol=1e-5)


@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-xl"])
def test_ays_is_log_linear_between_its_ten(family: str) -> None:
    ten, twenty = (np.log(sigmas("ays", steps, family=family)) for steps in (10, 20))
    np.testing.assert_allclose(twenty[::2], ten, atol=1e-5)
    np.testing.assert_allclose(twenty[1:-1:2], (ten[1:] + ten[:-1]) / 2, atol=1e-5)
    assert math.exp(twenty[-1]) == pytest.approx(math.sqrt(math.exp(ten[-1]) * 0.029), rel=1e-5)


def test_ays_is_stable_diffusions_where_a_family_has_none() -> None:
    assert sigmas("ays", 7) == sigmas("ays", 7, family="stable-diffusion") == sigmas("ays", 7, family="of tomorrow")
    assert sigmas("ays", 7) != sigmas("ays", 7, family="stable-diffusion-xl")


@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
def test_a_checkpoint_may_ask_for_a_spacing(name: str) -> None:
    config = SchedulerConfig.from_json({"beta_schedule": "scaled_linear", f"use_{name}_sigmas": True})
    assert make_schedule(config, "euler", 5).spacing == name
    assert make_schedule(config, "ddim", 5).spacing == "leading"  # which isn't respaced
