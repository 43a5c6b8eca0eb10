"""CFG++ by its paper's formulas: the guided picture, renoised by the unconditional prediction."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tintype.arrays import Latents
from tintype.sampling import (
    CFG_PP,
    SAMPLERS,
    Denoise,
    Denoised,
    NoiseSource,
    Schedule,
    SchedulerConfig,
    make_schedule,
    noise_source,
)

CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=True)
SHAPE = (2, 4, 5, 6)
SCALE = 0.6  # lambda
STEPS = [1, 2, 8]


def unconditional_noise(seen: Latents, timestep: float) -> Latents:
    """Some model of what the latents sqrt(alpha) * image + sqrt(1 - alpha) * noise have for noise, without words."""
    return (0.8 * seen + 0.3 * np.tanh(np.roll(seen, 1, axis=-1) + timestep / 500.0)).astype(np.float32)


def conditional_noise(seen: Latents, timestep: float) -> Latents:
    return (unconditional_noise(seen, timestep) - 0.4 * np.cos(seen + timestep / 300.0)).astype(np.float32)


def guided(latents: Latents, sigma: float, timestep: float) -> Denoised:
    seen = latents / math.hypot(1.0, sigma)
    without = unconditional_noise(seen, timestep)
    noise = without + (conditional_noise(seen, timestep) - without) * SCALE
    return Denoised(latents - noise * sigma, latents - without * sigma)


def unguided(latents: Latents, sigma: float, timestep: float) -> Denoised:
    return Denoised.unguided(guided(latents, sigma, timestep).guided)


def last_latents(sampler: str, schedule: Schedule, denoise: Denoise, noise: NoiseSource | None = None) -> Latents:
    noise = noise or noise_source("numpy", [5, 6])
    return list(SAMPLERS[sampler](denoise, first(schedule), schedule, noise))[-1].latents


def first(schedule: Schedule) -> Latents:
    return noise_source("numpy", [1, 2]).draw(SHAPE) * schedule.initial_scale


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "karras"])
def test_euler_is_the_ddim_of_algorithm_2(spacing: str, steps: int) -> None:
    """In the paper's latents, of unit variance, with its alphas and its two predictions of noise."""
    schedule = make_schedule(CONFIG, "euler_cfg_pp", steps, spacing)
    alphas = 1.0 / (1.0 + schedule.sigmas**2)
    x = first(schedule).astype(np.float64) * math.sqrt(alphas[0])
    for index in range(steps):
        timestep, alpha, alpha_next = float(schedule.timesteps[index]), alphas[index], alphas[index + 1]
        without, with_words = unconditional_noise(x, timestep), conditional_noise(x, timestep)
        noise = without + SCALE * (with_words - without)
        image = (x - math.sqrt(1.0 - alpha) * noise) / math.sqrt(alpha)
        x = math.sqrt(alpha_next) * image + math.sqrt(1.0 - alpha_next) * without
    np.testing.assert_allclose(last_latents("euler_cfg_pp", schedule, guided), x, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", STEPS)
def test_ancestral_euler_renoises_by_the_unconditional_prediction_and_by_chance(steps: int) -> None:
    schedule = make_schedule(CONFIG, "euler_a_cfg_pp", steps)
    x, chance = first(schedule).astype(np.float64), noise_source("numpy", [5, 6])
    for index in range(steps):
        sigma, after = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        denoised = guided(x.astype(np.float32), sigma, float(schedule.timesteps[index]))
        up = math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
        slope = (x - denoised.unconditional) / sigma
        x = denoised.guided + slope * math.sqrt(after**2 - up**2)
        if after > 0:
            x = x + chance.draw(SHAPE) * up
    np.testing.assert_allclose(last_latents("euler_a_cfg_pp", schedule, guided), x, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", [*STEPS, 20])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_dpm_solver_is_the_one_of_the_papers_appendix(spacing: str, steps: int) -> None:
    """In lambda = -log sigma: exp(-h) of what is left of the latents, and of the unconditional picture against them."""
    schedule = make_schedule(CONFIG, "dpmpp_2m_cfg_pp", steps, spacing)
    log_sigmas = [math.log(sigma) for sigma in schedule.sigmas[:-1]]
    x = first(schedule).astype(np.float64)
    before = None
    for index in range(steps):
        denoised = guided(x.astype(np.float32), float(schedule.sigmas[index]), float(schedule.timesteps[index]))
        if index == steps - 1:  # to sigma 0
            x = denoised.guided.astype(np.float64)
            break
        h = log_sigmas[index] - log_sigmas[index + 1]
        x = denoised.guided - math.exp(-h) * denoised.unconditional + math.exp(-h) * x
        if before is not None:
            r = (log_sigmas[index - 1] - log_sigmas[index]) / h
            x = x - math.expm1(-h) * (denoised.guided - before) / (2.0 * r)
        before = denoised.unconditional
    np.testing.assert_allclose(last_latents("dpmpp_2m_cfg_pp", schedule, guided), x, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", STEPS)
def test_gradient_estimation_takes_unconditional_slopes(steps: int) -> None:
    """ComfyUI's: CFG++'s step, and on it the change of the unconditional slope (gamma 2)."""
    schedule = make_schedule(CONFIG, "gradient_estimation_cfg_pp", steps, "karras")
    x, slopes = first(schedule).astype(np.float64), []
    for index, (sigma, after) in enumerate(itertools.pairwise(schedule.sigmas.tolist())):
        denoised = guided(x.astype(np.float32), sigma, float(schedule.timesteps[index]))
        slopes.append((x - denoised.unconditional) / sigma)
        x = denoised.guided + after * slopes[-1]
        if index > 0 and after > 0:
            x = x + (after - sigma) * (slopes[-1] - slopes[-2])
    np.testing.assert_allclose(last_latents("gradient_estimation_cfg_pp", schedule, guided), x, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", [*STEPS, 20])
@pytest.mark.parametrize(("sampler", "eta"), [("res_multistep_cfg_pp", 0), ("res_multistep_a_cfg_pp", 1)])
def test_res_goes_on_from_latents_moved_by_guidance(sampler: str, eta: int, steps: int) -> None:
    """ComfyUI's, with its phi and its b in lambda = -log sigma."""
    schedule, chance = make_schedule(CONFIG, sampler, steps, "trailing"), noise_source("numpy", [5, 6])
    x, before, landed = first(schedule).astype(np.float64), None, 0.0
    sigmas = schedule.sigmas.tolist()
    for index, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = guided(x.astype(np.float32), sigma, float(schedule.timesteps[index]))
        without = denoised.unconditional.astype(np.float64)
        up = eta * after * math.sqrt(1 - (after / sigma) ** 2)
        down = math.sqrt(after**2 - up**2)
        if before is None or down == 0.0:
            x = denoised.guided + (x - without) * down / sigma
        else:
            h = math.log(sigma / down)
            c_2 = math.log(landed / sigmas[index - 1]) / h
            phi_1 = (1 - math.exp(-h)) / h
            b_2 = (1 - phi_1) / h / c_2
            x = math.exp(-h) * (x + denoised.guided - without) + h * ((phi_1 - b_2) * without + b_2 * before)
        if up > 0:
            x = x + chance.draw(SHAPE) * up
        before, landed = without, down
    np.testing.assert_allclose(last_latents(sampler, schedule, guided), x, atol=3e-4, rtol=0)


@pytest.mark.parametrize("steps", STEPS)
def test_ancestral_dpm_solver_looks_halfway_with_the_guided_picture(steps: int) -> None:
    """ComfyUI's dpmpp_2s_ancestral_cfg_pp, in lambda = -log sigma."""
    schedule, chance = make_schedule(CONFIG, "dpmpp_2s_a_cfg_pp", steps, "karras"), noise_source("numpy", [5, 6])
    x = first(schedule).astype(np.float64)
    for index, (sigma, after) in enumerate(itertools.pairwise(schedule.sigmas.tolist())):
        denoised = guided(x.astype(np.float32), sigma, float(schedule.timesteps[index]))
        if after == 0.0:
            x = denoised.guided.astype(np.float64)
            break
        h = 2 * math.log(sigma / after)  # to after^2 / sigma
        moved, middle = x + denoised.guided - denoised.unconditional, sigma * math.exp(-h / 2)
        halfway = math.exp(-h / 2) * moved - math.expm1(-h / 2) * denoised.guided
        ahead = guided(halfway.astype(np.float32), middle, schedule.timestep_of(middle)).guided
        x = math.exp(-h) * moved - math.expm1(-h) * ahead
        x = x + chance.draw(SHAPE) * math.sqrt(after**2 - after**4 / sigma**2)
    np.testing.assert_allclose(last_latents("dpmpp_2s_a_cfg_pp", schedule, guided), x, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("sampler", sorted(CFG_PP))
def test_where_nothing_is_guided_it_is_the_sampler_of_that_name(sampler: str, steps: int) -> None:
    plain = sampler.removesuffix("_cfg_pp")
    schedule, other = (make_schedule(CONFIG, name, steps) for name in (sampler, plain))
    np.testing.assert_array_equal(schedule.sigmas, other.sigmas)
    np.testing.assert_allclose(
        last_latents(sampler, schedule, unguided), last_latents(plain, other, unguided), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("sampler", sorted(CFG_PP))
def test_where_something_is_guided_it_is_another(sampler: str) -> None:
    plain = sampler.removesuffix("_cfg_pp")
    ours = last_latents(sampler, make_schedule(CONFIG, sampler, 8), guided)
    other = last_latents(plain, make_schedule(CONFIG, plain, 8), guided)
    assert np.abs(ours - other).max() > 0.05


def test_the_samplers_of_cfg_pp_are_told_by_their_names() -> None:
    assert {
        *("euler_cfg_pp", "euler_a_cfg_pp", "dpmpp_2m_cfg_pp", "dpmpp_2s_a_cfg_pp", "gradient_estimation_cfg_pp"),
        *("res_multistep_cfg_pp", "res_multistep_a_cfg_pp"),
    } == CFG_PP
