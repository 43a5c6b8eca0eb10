"""A schedule falls from noise to picture, says what it cannot do, and is made of what the checkpoint was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tintype.errors import BundleError, RequestError
from tintype.sampling import SAMPLERS, SPACINGS, SchedulerConfig, make_schedule
from tintype.sampling.layout import LAYOUTS
from tintype.sampling.respacing import exponential_sigmas, karras_sigmas

# The scheduler_config.json of Stable Diffusion 1.5, whole.
STABLE_DIFFUSION: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
CONFIG = SchedulerConfig.from_json(STABLE_DIFFUSION)


def test_every_sampler_has_a_layout() -> None:
    assert LAYOUTS.keys() == SAMPLERS.keys()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "restart"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50])
def test_noise_falls_and_timesteps_with_it(sampler: str, steps: int) -> None:
    for spacing in LAYOUTS[sampler].spacings or (None,):
        schedule = make_schedule(CONFIG, sampler, steps, spacing)
        assert schedule.sigmas.shape == (schedule.total + 1,)
        assert schedule.timesteps.shape == schedule.sigmas_from.shape == schedule.sigmas_to.shape == (schedule.total,)
        falls = np.diff(schedule.sigmas)
        assert (falls <= 0).all()
        assert schedule.spacing == (spacing or sampler)  # one that takes no spacing has its own
        if sampler == "pndm" and steps > 1:
            assert schedule.sigmas[1] == schedule.sigmas[2]
        if sampler not in ("ddim", "pndm"):  # which, from timestep 0, may land where they are
            assert (falls < 0).all()
        assert (np.diff(schedule.timesteps) <= 0).all()
        assert 0 <= schedule.timesteps.min() <= schedule.timesteps.max() <= 999


def test_stable_diffusions_ends_are_the_known_ones() -> None:
    schedule = make_schedule(CONFIG, "euler", 20, "linspace")
    assert schedule.sigmas[0] == pytest.approx(14.6146, abs=1e-4)
    assert schedule.sigmas[-2] == pytest.approx(0.02917, abs=1e-5)
    assert schedule.initial_scale == schedule.sigmas[0]
    assert make_schedule(CONFIG, "ddim", 20, "trailing").initial_scale == pytest.approx(14.6488, abs=1e-4)
    assert make_schedule(CONFIG, "ddim", 50).timesteps[:3].tolist() == [981, 961, 941]
    assert make_schedule(CONFIG, "pndm", 50).timesteps[:4].tolist() == [981, 961, 961, 941]
    assert make_schedule(CONFIG, "dpmpp_2m", 20).timesteps[:3].tolist() == [999, 949, 899]
    assert make_schedule(CONFIG, "lcm", 4).timesteps.tolist() == [999, 759, 499, 259]


def test_sigma_and_timestep_are_each_others_inverse() -> None:
    schedule = make_schedule(CONFIG, "euler", 5)
    for timestep in (0.0, 1.0, 250.0, 777.0, 999.0):
        assert schedule.timestep_of(schedule.sigma_of(timestep)) == pytest.approx(timestep, abs=2e-3)
    assert schedule.timestep_of(1e9) == 999.0
    assert schedule.timestep_of(0.0) == 0.0


def test_karras_and_exponential_keep_the_ends() -> None:
    for respaced in (karras_sigmas, exponential_sigmas):
        sigmas = respaced(14.6, 0.03, 12)
        assert sigmas[0] == pytest.approx(14.6)
        assert sigmas[-1] == pytest.approx(0.03)
        assert (np.diff(sigmas) < 0).all()
    assert np.ptp(np.diff(karras_sigmas(14.6, 0.03, 12) ** (1 / 7))) < 1e-12
    assert np.ptp(np.diff(np.log(exponential_sigmas(14.6, 0.03, 12)))) < 1e-12


def test_zero_terminal_snr_leaves_nothing_of_the_picture() -> None:
    config = SchedulerConfig.from_json({**STABLE_DIFFUSION, "rescale_betas_zero_snr": True})
    assert config.alphas_cumprod[-1] == 0.0
    assert config.alphas_cumprod[0] == pytest.approx(CONFIG.alphas_cumprod[0], rel=1e-6)
    assert make_schedule(config, "euler", 5, "trailing").sigmas[0] == pytest.approx(4096, rel=1e-3)
    assert make_schedule(config, "ddim", 5, "trailing").sigmas[0] > 1e7


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [0, -1, 1001, 10**9])
def test_steps_that_cannot_be_done_are_refused(sampler: str, steps: int) -> None:
    with pytest.raises(RequestError, match="ask for 1 to"):
        make_schedule(CONFIG, sampler, steps)


@pytest.mark.parametrize(("sampler", "most"), [("euler", 999), ("ddim", 999), ("dpmpp_2m", 998), ("lcm", 50)])
def test_the_most_steps_that_can_be_done_are_done(sampler: str, most: int) -> None:
    config = SchedulerConfig.from_json({**STABLE_DIFFUSION, "timestep_spacing": "leading"})
    assert make_schedule(config, sampler, most).total == most
    with pytest.raises(RequestError):
        make_schedule(config, sampler, most + 1)


def test_an_unknown_sampler_names_the_near_ones() -> None:
    with pytest.raises(RequestError, match="dpmpp_2m"):
        make_schedule(CONFIG, "dpmpp2m", 20)


def test_an_unknown_spacing_names_the_near_ones() -> None:
    with pytest.raises(RequestError, match="karras"):
        make_schedule(CONFIG, "euler", 20, "karas")


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "pndm"])
def test_a_sampler_by_timestep_is_not_respaced(sampler: str) -> None:
    with pytest.raises(RequestError, match="leading, trailing, linspace"):
        make_schedule(CONFIG, sampler, 20, "karras")


@pytest.mark.parametrize("spacing", SPACINGS)
def test_lcm_keeps_its_own_timesteps(spacing: str) -> None:
    with pytest.raises(RequestError, match="leave the spacing out"):
        make_schedule(CONFIG, "lcm", 4, spacing)


def test_eta_is_ddims_alone_and_between_0_and_1() -> None:
    assert make_schedule(CONFIG, "ddim", 5, eta=0.5).eta == 0.5
    with pytest.raises(RequestError, match="no eta"):
        make_schedule(CONFIG, "euler", 5, eta=0.5)
    for eta in (-0.1, 1.5, float("nan")):
        with pytest.raises(RequestError, match="out of range"):
            make_schedule(CONFIG, "ddim", 5, eta=eta)


def test_keys_that_no_sampler_needs_are_ignored() -> None:
    assert SchedulerConfig.from_json({**STABLE_DIFFUSION, "something_new": 3}) == CONFIG
    assert SchedulerConfig.from_json({}) == SchedulerConfig()
    assert SchedulerConfig.from_json({"beta_start": 1e-4, "thresholding": False, "predict_x0": True}).beta_start == 1e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("thresholding", True),
        ("use_flow_sigmas", True),
        ("timestep_type", "continuous"),
        ("variance_type", "learned_range"),
        ("prediction_type", "flow_prediction"),
        ("beta_schedule", "laplace"),
        ("timestep_spacing", "sideways"),
        ("final_sigmas_type", "one"),
        ("num_train_timesteps", 1),
        ("num_train_timesteps", 10**12),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", True),
        ("beta_start", float("nan")),
        ("beta_start", "0.1"),
        ("beta_end", 1.5),
        ("beta_end", -1),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", "0.1"),
        ("trained_betas", [None]),
        ("steps_offset", -1),
        ("steps_offset", 1000),
        ("steps_offset", 0.5),
        ("solver_order", 4),
        ("predictor_order", 5),
        ("corrector_order", 0),
        ("solver_type", 3),
        ("original_inference_steps", 0),
        ("set_alpha_to_one", "no"),
        ("timestep_scaling", []),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(BundleError) as caught:
        SchedulerConfig.from_json({**STABLE_DIFFUSION, key: value})
    assert key.removeprefix("trained_") in str(caught.value) or "betas" in str(caught.value)
    assert "scheduler_config.json" in caught.value.fix
