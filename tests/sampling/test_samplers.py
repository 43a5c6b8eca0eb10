"""Laws every sampler keeps, whoever it agrees with."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from solvers import NoNoise

from tintype.arrays import Latents
from tintype.sampling import (
    ETAS,
    PARAMETRIZATIONS,
    SAMPLERS,
    Denoise,
    Denoised,
    NoiseSource,
    Parametrization,
    Schedule,
    SchedulerConfig,
    Step,
    make_schedule,
    noise_source,
)
from tintype.sampling.layout import LAYOUTS
from tintype.sampling.step import model_input

CONFIG = SchedulerConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=True
)
STOCHASTIC = (
    *("euler_a", "dpm2_a", "ddpm", "dpmpp_2s_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "res_multistep_a"),
    *("dpmpp_2m_sde_heun", "er_sde", "lcm", "euler_a_cfg_pp", "exp_heun_2_x0_sde", "seeds_2", "seeds_3"),
    *("sa_solver", "sa_solver_pece", "dpmpp_2s_a_cfg_pp", "res_multistep_a_cfg_pp"),
)
TWO_CALLS = (
    *("heun", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "restart", "exp_heun_2_x0", "exp_heun_2_x0_sde", "res_2s"),
    *("seeds_2", "sa_solver_pece", "dpmpp_2s_a_cfg_pp"),
)
OF_THEIR_OWN_TIMESTEPS = ("lcm", "tcd", "dpm_fast")
ENDING_IN_NOISE = ("dpm_fast",)  # training's least
# Without eta tcd draws none, and restart none of less than 20 steps.
DETERMINISTIC = tuple(name for name in SAMPLERS if name not in STOCHASTIC)
SHAPE = (2, 4, 5, 6)


def run(denoise: Denoise, schedule: Schedule, noise: NoiseSource | None = None, shape: Any = SHAPE) -> list[Step]:
    first = noise_source("numpy", range(shape[0])).draw(shape) * schedule.initial_scale
    fresh = noise or noise_source("numpy", range(100, 100 + shape[0]))
    return list(SAMPLERS[schedule.sampler](denoise, first, schedule, fresh))


def bent(latents: Latents, sigma: float, timestep: float) -> Denoised:
    """Some denoiser that is not a straight line."""
    seen = model_input(latents, sigma)
    return Denoised.unguided(np.tanh(seen + 0.3 * np.roll(seen, 1, axis=-1)) * np.float32(1.0 - timestep / 2000.0))


def gaussian(latents: Latents, sigma: float, timestep: float) -> Denoised:
    """The perfect denoiser of pictures whose every cell is a standard normal."""
    return Denoised.unguided(latents * (1.0 / (1.0 + sigma**2)))


@pytest.mark.parametrize("steps", [1, 2, 5, 20], ids=lambda steps: f"{steps}-step")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_denoiser_recovers_the_image(sampler: str, steps: int) -> None:
    """On every spacing."""
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for spacing in LAYOUTS[sampler].spacings or (None,):
        if (sampler, spacing) == ("pndm", "linspace"):
            continue  # pndm steps by T // n, and linspace's timesteps don't lie on that
        schedule = make_schedule(CONFIG, sampler, steps, spacing)
        last = run(lambda *_: Denoised.unguided(image), schedule)[-1]
        # lcm keeps a trace of its input, the less the later its last timestep. lms takes the differences of small steps
        # many times here.
        tolerance = {("lcm", None): 1e-4, ("lms", "linear_quadratic"): 5e-3}.get((sampler, spacing), 2e-5)
        if sampler in ENDING_IN_NOISE:
            tolerance = 5 * float(schedule.sigmas[-1])
        np.testing.assert_allclose(
            schedule.to_model_space(last.latents), image, atol=tolerance, rtol=0, err_msg=str(spacing)
        )


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "pndm"])
def test_zero_terminal_snr_recovers_the_image_from_pure_noise(sampler: str) -> None:
    config = SchedulerConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction", set_alpha_to_one=True)
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for steps in (1, 2, 8):
        schedule = make_schedule(config, sampler, steps, None if sampler in OF_THEIR_OWN_TIMESTEPS else "trailing")
        assert schedule.sigmas[0] > 4000.0
        seen: list[float] = []

        def denoise(latents: Latents, sigma: float, timestep: float, seen: list[float] = seen) -> Denoised:
            seen.append(float(model_input(latents, sigma).std()))
            return Denoised.unguided(image)

        last = run(denoise, schedule)[-1]
        assert seen[0] == pytest.approx(1.0, abs=0.2)
        noise = 5 * float(schedule.sigmas[-1]) if sampler in ENDING_IN_NOISE else 0.0
        np.testing.assert_allclose(last.latents, image, atol=2e-3 + noise, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_again_is_the_same_bytes_and_nothing_given_is_written_to(sampler: str) -> None:
    schedule = make_schedule(CONFIG, sampler, 6)
    first = noise_source("philox", [1, 2]).draw(SHAPE) * schedule.initial_scale
    kept = first.copy()
    results = []
    for _ in range(2):
        steps = list(SAMPLERS[sampler](bent, first, schedule, noise_source("philox", [3, 4])))
        results.append([step.latents.tobytes() for step in steps])
        assert all(step.latents.dtype == step.denoised.dtype == np.float32 for step in steps)
    assert results[0] == results[1]
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_a_deterministic_sampler_draws_no_noise(sampler: str) -> None:
    assert np.isfinite(run(bent, make_schedule(CONFIG, sampler, 6), NoNoise())[-1].latents).all()


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_a_stochastic_sampler_draws_noise_but_for_its_last_step(sampler: str) -> None:
    schedule = make_schedule(CONFIG, sampler, 6)
    one = run(bent, schedule, noise_source("numpy", [7, 8]))[-1].latents
    other = run(bent, schedule, noise_source("numpy", [9, 10]))[-1].latents
    assert np.abs(one - other).max() > 0.01
    assert np.isfinite(run(bent, make_schedule(CONFIG, sampler, 1), NoNoise())[-1].latents).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(sampler: str) -> None:
    schedule = make_schedule(CONFIG, sampler, 5)

    def last(seeds: list[int]) -> Latents:
        noise = noise_source("philox", seeds)
        first = noise.draw((len(seeds), 4, 5, 6)) * schedule.initial_scale
        return list(SAMPLERS[sampler](bent, first, schedule, noise))[-1].latents

    np.testing.assert_array_equal(last([1, 2, 3])[1], last([2])[0])


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_counted_and_follow_one_another(sampler: str, steps: int) -> None:
    calls = 0

    def counting(latents: Latents, sigma: float, timestep: float) -> Denoised:
        nonlocal calls
        calls += 1
        return bent(latents, sigma, timestep)

    schedule = make_schedule(CONFIG, sampler, steps)
    done = run(counting, schedule)
    assert [step.index for step in done] == list(range(schedule.total))
    assert {step.total for step in done} == {schedule.total}
    assert all(a.sigma_next == b.sigma for a, b in itertools.pairwise(done))
    assert done[-1].sigma_next == schedule.sigmas[-1]
    if sampler in ENDING_IN_NOISE:
        assert (schedule.total, calls) == (steps // 3 + 1, steps)
        assert schedule.sigmas[-1] == pytest.approx(schedule.training_sigmas[0])
        return
    assert schedule.sigmas[-1] == 0.0
    twice = 1 if sampler == "pndm" and steps > 1 else 0
    assert schedule.total == steps + twice
    further = {**dict.fromkeys(TWO_CALLS, steps - 1), "heunpp2": max(0, 2 * steps - 3), "seeds_3": 2 * steps - 2}
    assert calls == steps + twice + further.get(sampler, 0)


@pytest.mark.parametrize("steps", [1, 2, 3, 21])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_schedule_knows_how_often_its_sampler_calls_the_model(sampler: str, steps: int) -> None:
    """On every spacing, with eta, and on a schedule that ends above sigma 0."""
    early = SchedulerConfig(set_alpha_to_one=False, final_sigmas_type="sigma_min", beta_schedule="scaled_linear")
    etas = (0.0, 0.5) if sampler in ETAS else (0.0,)
    for config, spacing, eta in itertools.product((CONFIG, early), (None, *LAYOUTS[sampler].spacings), etas):
        calls = 0

        def counting(latents: Latents, sigma: float, timestep: float) -> Denoised:
            nonlocal calls
            calls += 1
            return bent(latents, sigma, timestep)

        schedule = make_schedule(config, sampler, steps, spacing, eta=eta)
        run(counting, schedule, shape=(1, 1, 2, 2))
        assert calls == schedule.model_calls


def test_a_step_is_frozen() -> None:
    step = run(bent, make_schedule(CONFIG, "euler", 1))[0]
    with pytest.raises(FrozenInstanceError):
        step.sigma = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stopping_makes_no_further_call(sampler: str) -> None:
    calls = 0

    def counting(latents: Latents, sigma: float, timestep: float) -> Denoised:
        nonlocal calls
        calls += 1
        return bent(latents, sigma, timestep)

    schedule = make_schedule(CONFIG, sampler, 10)
    first = noise_source("numpy", [0]).draw((1, 4, 4, 4)) * schedule.initial_scale
    steps = SAMPLERS[sampler](counting, first, schedule, noise_source("numpy", [1]))
    assert calls == 0
    next(steps)
    after_one = calls
    steps.close()
    assert calls == after_one <= 3


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "pndm"])
def test_how_a_model_words_its_prediction_makes_no_difference(sampler: str) -> None:
    results = []
    for parametrization in PARAMETRIZATIONS.values():

        def denoise(
            latents: Latents, sigma: float, timestep: float, kind: Parametrization = parametrization
        ) -> Denoised:
            prediction = kind.prediction(bent(latents, sigma, timestep).guided, latents, sigma)
            return Denoised.unguided(kind.denoised(prediction, latents, sigma))

        results.append(run(denoise, make_schedule(CONFIG, sampler, 8))[-1].latents)
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-4, rtol=0)


def gaussian_error(sampler: str, steps: int) -> float:
    """Distance from the exact solution of the probability flow, which keeps latents / sqrt(1 + sigma^2)."""
    schedule = make_schedule(CONFIG, sampler, steps, "trailing")
    exact = noise_source("numpy", range(2)).draw(SHAPE)
    if schedule.variance_exploding:
        exact = model_input(exact * schedule.initial_scale, float(schedule.sigmas[0]))
    return float(np.abs(run(gaussian, schedule)[-1].latents - exact).max())


@pytest.mark.parametrize("sampler", [name for name in DETERMINISTIC if name not in ("tcd", "restart", "dpm_fast")])
def test_more_steps_come_nearer_to_the_exact_solution(sampler: str) -> None:
    errors = [gaussian_error(sampler, steps) for steps in (10, 20, 50, 200)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.06


@pytest.mark.parametrize(
    "sampler",
    [
        *("heun", "dpm2", "lms", "pndm", "ipndm", "deis", "dpmpp_2m", "unipc", "unipc_bh2", "res_multistep", "res_2s"),
        "exp_heun_2_x0",
    ],
)
def test_second_order_beats_first(sampler: str) -> None:
    assert gaussian_error(sampler, 50) < 0.7 * gaussian_error("euler", 50)


@pytest.mark.parametrize("sampler", [name for name in (*STOCHASTIC, "restart") if name != "lcm"])
def test_fresh_noise_keeps_the_pictures_spread(sampler: str) -> None:
    schedule = make_schedule(CONFIG, sampler, 200, "trailing")
    result = run(gaussian, schedule, shape=(1, 4, 64, 64))[-1].latents
    assert result.std() == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # ddim's steps lie on these timesteps, as ddpm's do
def test_ddim_with_all_its_noise_is_ddpm(spacing: str) -> None:
    one = run(bent, make_schedule(CONFIG, "ddim", 10, spacing, eta=1.0))[-1].latents
    other = run(bent, make_schedule(CONFIG, "ddpm", 10, spacing))[-1].latents
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "euler"])
def test_ending_above_sigma_zero_gives_the_decoder_what_the_model_would_see(sampler: str) -> None:
    config = SchedulerConfig(set_alpha_to_one=False, final_sigmas_type="sigma_min", beta_schedule="scaled_linear")
    schedule = make_schedule(config, sampler, 6)
    assert schedule.sigmas[-1] == schedule.training_sigmas[0]
    latents = np.ones(SHAPE, dtype=np.float32)
    expected = latents if sampler == "euler" else model_input(latents, float(schedule.sigmas[-1]))
    np.testing.assert_array_equal(schedule.to_model_space(latents), expected)
