"""Every sampler against the diffusers scheduler of the same name, over whole trajectories.

The model is a fixed nonlinear function of what it sees and of the timestep, so a wrong timestep, a wrong scale or a
wrong order of steps shows; both sides get the same noise, draw by draw.
"""

from __future__ import annotations

import importlib
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from solvers import NoNoise

from tintype.arrays import Latents
from tintype.sampling import (
    ETAS,
    PARAMETRIZATIONS,
    SAMPLERS,
    Denoised,
    NoiseSource,
    Schedule,
    SchedulerConfig,
    make_schedule,
    noise_source,
)
from tintype.sampling.layout import LAYOUTS
from tintype.sampling.respacing import BETWEEN_ENDS, BY_TIMESTEP
from tintype.sampling.respacing import SPACINGS as ALL_SPACINGS
from tintype.sampling.step import model_input

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.reference,
    # diffusers hands torch tensors to numpy functions, which numpy 2 finds old-fashioned.
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]

ATOL = 1e-4
BUILT: dict[tuple[str, str], Any] = {}
SHAPE, SEEDS = (2, 4, 6, 6), (11, 12)
STEPS = (1, 2, 5, 20)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = (*BY_TIMESTEP, *BETWEEN_ENDS)  # that diffusers has

# Stable Diffusion 1.x's own noise schedule.
CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

STOCHASTIC = {"algorithm_type": "sde-dpmsolver++"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {**STOCHASTIC, "solver_type": "midpoint"}),
    "dpmpp_2m_sde_heun": ("DPMSolverMultistepScheduler", {**STOCHASTIC, "solver_type": "heun"}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
# What diffusers does whatever a checkpoint says, and Tintype where it says so.
TO_THE_LEAST = {"final_sigmas_type": "sigma_min"}
ALWAYS = {"deis": TO_THE_LEAST, "sa_solver": TO_THE_LEAST, "dpmpp_2s": {"timestep_spacing": "linspace"}}
# diffusers' schedulers that start from sigma * noise, and those that call the model twice a step.
EXPLODING = ("euler", "euler_a", "heun", "dpm2", "dpm2_a", "lms", "dpmpp_sde")
TWO_CALLS = ("heun", "dpm2", "dpm2_a", "dpmpp_sde")
NO_SAMPLE_PREDICTION = ("euler_a", "dpm2", "dpm2_a", "pndm", "dpmpp_sde")
NOT_RESPACED = ("euler_a",)  # diffusers has no karras or exponential of it; ours is compared by handing it over


def fake_model(seen: Latents, timestep: float) -> Latents:
    """Nonlinear in the input and its neighbours, and in the timestep."""
    turned = np.roll(seen, 1, axis=-1) - 0.5 * np.roll(seen, 1, axis=-2)
    wave = math.cos(timestep / 157.0)
    return (0.7 * seen + 0.6 * np.tanh(turned + wave) - 0.3 * wave * np.sin(2.0 * seen)).astype(np.float32)


def our_trajectory(config: SchedulerConfig, schedule: Schedule, noise: NoiseSource) -> list[Latents]:
    """Latents after each step, scaled as diffusers keeps them."""

    kind = PARAMETRIZATIONS[config.prediction_type]

    def denoise(latents: Latents, sigma: float, timestep: float) -> Denoised:
        prediction = fake_model(kind.model_input(latents, sigma), kind.timestep(sigma, timestep))
        return Denoised.unguided(kind.denoised(prediction, latents, sigma))

    latents = noise.draw(SHAPE) * schedule.initial_scale
    steps = list(SAMPLERS[schedule.sampler](denoise, latents, schedule, noise))
    if schedule.variance_exploding:
        return [step.latents for step in steps]
    return [model_input(step.latents, step.sigma_next) for step in steps]


class BrownianPath:
    """Increments of one path over (sigma, middle) then (sigma, sigma_next), scaled to unit variance."""

    def __init__(self, noise: NoiseSource) -> None:
        self._noise = noise
        self._middle: tuple[float, Any] | None = None

    def __call__(self, sigma: Any, sigma_next: Any) -> Any:
        start, end = float(sigma), float(sigma_next)
        if self._middle is None:
            travelled = self._noise.draw(SHAPE) * math.sqrt(start - end)
            self._middle = (end, travelled)
        else:
            middle, to_middle = self._middle
            travelled = to_middle + self._noise.draw(SHAPE) * math.sqrt(middle - end)
            self._middle = None
        return torch.from_numpy(travelled / np.float32(math.sqrt(start - end)))


def build_scheduler(sampler: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, noise: NoiseSource) -> Any:
    """The diffusers scheduler, drawing from `noise`."""
    name, own_settings = SCHEDULERS[sampler]
    if sampler == "dpmpp_sde":
        # diffusers imports torchsde for the Brownian tree alone, and the path here is ours.
        if "torchsde" not in sys.modules:
            monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
        module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    else:
        module = sys.modules[getattr(diffusers, name).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(noise.draw(tuple(shape))))
    # Making one takes a thousand steps' timesteps, so each is made once; `set_timesteps` forgets what was before.
    key = (sampler, repr(sorted(item for item in settings.items() if item[0] != "prediction_type")))
    if key not in BUILT:
        BUILT[key] = getattr(module, name).from_config({**settings, **own_settings})
    BUILT[key].register_to_config(prediction_type=settings.get("prediction_type", "epsilon"))
    return BUILT[key]


def their_trajectory(scheduler: Any, sampler: str, noise: NoiseSource, **step_settings: Any) -> list[Latents]:
    latents = torch.from_numpy(noise.draw(SHAPE)) * scheduler.init_noise_sigma
    if sampler == "dpmpp_sde":
        scheduler.noise_sampler = BrownianPath(noise)
    if hasattr(scheduler, "set_begin_index"):
        # Else diffusers looks for its place by timestep, and skips a step where the first two round to the same.
        scheduler.set_begin_index(0)
    result = []
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, timestep)
        prediction = torch.from_numpy(fake_model(seen.to(torch.float32).numpy(), float(timestep)))
        latents = scheduler.step(prediction, timestep, latents, **step_settings).prev_sample
        result.append(latents.to(torch.float32).numpy())
    if sampler in TWO_CALLS:
        result = [*result[1:-1:2], result[-1]]
    return result


def spacings_of(sampler: str) -> tuple[str | None, ...]:
    known = SPACINGS[2:] if sampler == "dpmpp_2s" else SPACINGS
    return tuple(name for name in known if name in LAYOUTS[sampler].spacings) or (None,)


def cases() -> Iterator[Any]:
    for sampler in SCHEDULERS:
        for spacing in spacings_of(sampler):
            for prediction in PREDICTIONS:
                if prediction != "sample" or sampler not in NO_SAMPLE_PREDICTION:
                    yield pytest.param(sampler, spacing, prediction, id=f"{sampler}-{spacing}-{prediction}")


def settings_with(spacing: str | None, sampler: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The scheduler config that asks diffusers for a spacing."""
    if spacing in BY_TIMESTEP:
        return {**settings, "timestep_spacing": spacing}
    if spacing and sampler not in NOT_RESPACED:
        return {**settings, f"use_{spacing}_sigmas": True}
    return settings


def their_timesteps(scheduler: Any, sampler: str) -> Any:
    timesteps = scheduler.timesteps.to(torch.float64).numpy()
    return timesteps[::2] if sampler in TWO_CALLS else timesteps


def worst_difference(
    sampler: str,
    spacing: str | None,
    steps: int,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    eta: float = 0.0,
    as_seen: bool = False,
) -> float:
    """The largest difference of the two trajectories; as_seen: of what the model would see of them."""
    settings = {**settings, **ALWAYS.get(sampler, {})}
    config = SchedulerConfig.from_json(settings)
    schedule = make_schedule(config, sampler, steps, spacing, eta=eta)
    mine = our_trajectory(config, schedule, noise_source("numpy", SEEDS))
    noise = noise_source("numpy", SEEDS)
    scheduler = build_scheduler(sampler, settings_with(spacing, sampler, settings), monkeypatch, noise)
    scheduler.set_timesteps(steps)
    if spacing in BETWEEN_ENDS and sampler in NOT_RESPACED:
        scheduler.sigmas = torch.from_numpy(schedule.sigmas).to(torch.float32)
        scheduler.timesteps = torch.from_numpy(schedule.timesteps)
    theirs = their_trajectory(scheduler, sampler, noise, **({"eta": eta} if sampler in ETAS else {}))
    assert len(mine) == len(theirs)
    np.testing.assert_allclose(schedule.timesteps, their_timesteps(scheduler, sampler), atol=2e-3, rtol=0)
    scales = [
        math.hypot(1.0, sigma) if as_seen and schedule.variance_exploding else 1.0 for sigma in schedule.sigmas[1:]
    ]
    return max(float(np.abs(a - b).max()) / scale for a, b, scale in zip(mine, theirs, scales, strict=True))


# Heun from sigma 14.6 to 0.03 in one step divides a difference of float32 latents by 0.03: diffusers itself is up to
# 7e-4 away from its own double precision there.
# And from there an ancestral step goes down to 6e-5, the difference of two squares that float32 has two digits of;
# tests/sampling/test_k_diffusion.py has both in double precision. sa_solver's latents come to 700 there.
ILL_CONDITIONED = {("heun", "linspace", 2): 5e-4, ("dpm2_a", "linspace", 2): 1e-2, ("sa_solver", "beta", 5): 2e-3}


@pytest.mark.parametrize(("sampler", "spacing", "prediction"), list(cases()))
def test_a_trajectory_is_that_of_diffusers(
    sampler: str, spacing: str | None, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of one respaced step, diffusers' deis and sa_solver take the first sigma for the last as well and go nowhere.
    for steps in STEPS[1:] if sampler in ("deis", "sa_solver") and spacing in BETWEEN_ENDS else STEPS:
        error = worst_difference(sampler, spacing, steps, {**CONFIG, "prediction_type": prediction}, monkeypatch)
        assert error < ILL_CONDITIONED.get((sampler, str(spacing), steps), ATOL), f"{steps} steps"


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize(
    "sampler", ["euler", "euler_a", "ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd"]
)
def test_zero_terminal_snr_is_that_of_diffusers(
    sampler: str, prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sampler in NO_SAMPLE_PREDICTION and prediction == "sample":
        prediction = "v_prediction"
    settings = {**CONFIG, "prediction_type": prediction, "rescale_betas_zero_snr": True}
    spacing = "trailing" if LAYOUTS[sampler].spacings else None
    # Euler starts from sigma 4096 here, where diffusers subtracts float32 latents that are 4096 times the picture.
    cancelled = 4096 * 2.0**-22 if sampler in EXPLODING and steps < 5 else 0.0
    error = worst_difference(sampler, spacing, steps, settings, monkeypatch, as_seen=True)
    assert error < ATOL + cancelled


@pytest.mark.parametrize("betas", [{"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"}], ids=str)
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_other_noise_schedules_are_those_of_diffusers(
    sampler: str, betas: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**CONFIG, **betas, "prediction_type": "v_prediction"}
    spacing = "karras" if sampler in ("euler", "heun", "dpmpp_2m", "unipc") else None
    assert worst_difference(sampler, spacing, 7, settings, monkeypatch, as_seen=True) < ATOL


def test_trained_betas_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**CONFIG, "num_train_timesteps": 60, "trained_betas": np.linspace(0.001, 0.2, 60).tolist()}
    assert worst_difference("dpmpp_2m", "linspace", 7, settings, monkeypatch) < ATOL


# Of one karras step, diffusers' unipc takes the first sigma for the last as well and goes nowhere: from two.
@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "unipc"])
@pytest.mark.parametrize("spacing", ["leading", "karras"])
def test_ending_at_the_least_sigma_is_that_of_diffusers(
    sampler: str, spacing: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**CONFIG, "final_sigmas_type": "sigma_min"}
    assert worst_difference(sampler, spacing, steps, settings, monkeypatch) < ATOL


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
@pytest.mark.parametrize("spacing", BY_TIMESTEP)
@pytest.mark.parametrize("to_one", [True, None], ids=["alpha-to-one", "scheduler-default"])
def test_the_last_alpha_is_that_of_diffusers(
    sampler: str, spacing: str, to_one: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {key: value for key, value in CONFIG.items() if key != "set_alpha_to_one"}
    if to_one is not None:
        settings["set_alpha_to_one"] = to_one
    assert worst_difference(sampler, spacing, 7, settings, monkeypatch) < ATOL


@pytest.mark.parametrize("spacing", BY_TIMESTEP)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_fresh_noise_is_that_of_diffusers(spacing: str, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst_difference("ddim", spacing, 7, CONFIG, monkeypatch, eta=eta) < ATOL


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_tcd_with_eta_is_that_of_diffusers(eta: float, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (1, 4, 8):
        settings = {**CONFIG, "prediction_type": prediction}
        assert worst_difference("tcd", None, steps, settings, monkeypatch, eta=eta) < ATOL


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["bh1", "bh2"])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_unipc_of_every_order_is_that_of_diffusers(
    order: int, form: str, lower_order_final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From here to sigma 0 diffusers divides by zero; the least sigma shows the same orders.
    settings = {**CONFIG, "solver_order": order, "solver_type": form, "lower_order_final": lower_order_final}
    settings["final_sigmas_type"] = "sigma_min"
    assert worst_difference("unipc", "leading", 10, settings, monkeypatch) < ATOL


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize(
    ("sampler", "orders"),
    [*[("deis", (n,)) for n in (1, 2, 3)], *[("sa_solver", n) for n in ((1, 1), (1, 3), (2, 4), (3, 2), (4, 4))]],
)
def test_deis_and_sa_solver_of_every_order_are_those_of_diffusers(
    sampler: str, orders: tuple[int, ...], lower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("solver_order",) if sampler == "deis" else ("predictor_order", "corrector_order")
    settings = {**CONFIG, **dict(zip(keys, orders, strict=True)), "lower_order_final": lower}
    atol = 2e-3 if orders == (4, 4) and not lower else ATOL  # latents of 170, by diffusers' float32 coefficients
    errors = [worst_difference(sampler, "leading", steps, settings, monkeypatch) for steps in (3, 10, 16)]
    assert max(errors) < atol, errors


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_without_a_spacing_the_scheduler_has_its_own(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {key: value for key, value in CONFIG.items() if key != "timestep_spacing"}
    assert worst_difference(sampler, None, 6, settings, monkeypatch) < ATOL


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("steps", "strength"), [(2, 0.5), (3, 0.34), (10, 0.1), (10, 0.2), (10, 0.5), (10, 0.8), (10, 0.9), (7, 0.75)]
)
def test_pndm_begins_with_a_picture_where_diffusers_does(
    steps: int, strength: float, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list of timesteps has one twice, from which diffusers' pipelines leave out as much as of any other."""
    settings = {**CONFIG, "prediction_type": prediction}
    config, taken = SchedulerConfig.from_json(settings), int(steps * strength)
    schedule = make_schedule(config, "pndm", steps, strength=strength)
    scheduler = build_scheduler("pndm", settings, monkeypatch, NoNoise())
    scheduler.set_timesteps(steps)
    scheduler.timesteps = scheduler.timesteps[steps - taken :]
    assert (schedule.total, schedule.skipped) == (taken + 1, steps - taken)
    mine = our_trajectory(config, schedule, noise_source("numpy", SEEDS))
    theirs = their_trajectory(scheduler, "pndm", noise_source("numpy", SEEDS))
    np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps.numpy())
    assert len(mine) == len(theirs) == taken + 1
    assert max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True)) < ATOL


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddim"])
def test_a_checkpoint_may_ask_for_karras(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst_difference(sampler, None, 6, {**CONFIG, "use_karras_sigmas": True}, monkeypatch) < ATOL


# Where 1000 / steps isn't exact, diffusers counts one timestep too many, the last of them -1.
ONE_TOO_MANY = (61, 103, 998)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_timesteps_of_any_number_of_steps_are_those_of_diffusers(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SchedulerConfig.from_json(CONFIG)
    for spacing in [name for name in spacings_of(sampler) if name not in BETWEEN_ENDS]:
        scheduler = build_scheduler(sampler, settings_with(spacing, sampler, CONFIG), monkeypatch, NoNoise())
        counts = [*range(1, 41), 48, 50] if spacing is None else [*range(1, 114, 3), 48, 96, 112, 61, 103, 998]
        for steps in counts[::8] if sampler.startswith("dpm2") else counts:  # which counts half steps too, slowly
            scheduler.set_timesteps(steps)
            schedule = make_schedule(config, sampler, steps, spacing)
            theirs = their_timesteps(scheduler, sampler)
            if spacing == "trailing" and steps in ONE_TOO_MANY:
                theirs = theirs[: len(schedule.timesteps)]
            np.testing.assert_allclose(schedule.timesteps, theirs, atol=2e-3, rtol=0)
            if LAYOUTS[sampler].spacings == ALL_SPACINGS and steps not in ONE_TOO_MANY:
                scale = float(scheduler.init_noise_sigma) if schedule.variance_exploding else schedule.initial_scale
                assert schedule.initial_scale == pytest.approx(scale, rel=1e-5)
