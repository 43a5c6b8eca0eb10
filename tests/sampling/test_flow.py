"""Rectified flow by the samplers of noise levels: with sigma = t / (1 - t) they draw what loops in t draw.

The loops here are written in the flow's own latents, (1 - t) * image + t * noise, and know nothing of sigma.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tintype.arrays import Latents
from tintype.sampling import SAMPLERS, Denoised, Schedule, SchedulerConfig, make_schedule, noise_source
from tintype.sampling.parametrization import Flow

SHAPE = (2, 4, 5, 6)
FIRST = 0.999  # t of the first step: at 1 sigma is infinite
# In float32 Heun loses digits where sigma falls from 999 to 1 in a step: it takes the difference of two such latents.
FIRST_IN_FLOAT32 = {"euler": FIRST, "dpmpp_2m": FIRST, "heun": 0.9}
FLOW = Flow()
STEPS = [1, 2, 8, 20]
ATOL = 1e-5

Float64 = NDArray[np.float64]


def velocity(x: Any, t: float) -> Any:
    """Some model of noise - image that no straight line is a solution of."""
    turned = np.roll(x, 1, axis=-1) - 0.5 * np.roll(x, 1, axis=-2)
    return 0.6 * x + 0.5 * np.tanh(turned + math.cos(3.0 * t))


def times(steps: int, begin: float = FIRST) -> list[float]:
    """t of each step, and 0."""
    return [*np.linspace(begin, 0.0, steps + 1)[:-1].tolist(), 0.0]


def flow_schedule(sampler: str, ts: list[float]) -> Schedule:
    steps, sigmas = len(ts) - 1, np.array([t / (1.0 - t) for t in ts])
    return dataclasses.replace(
        make_schedule(SchedulerConfig(), sampler, steps),
        timesteps=np.zeros(steps),  # the model is told t
        sigmas=sigmas,
        sigmas_from=sigmas[:-1],
        sigmas_to=sigmas[1:],
    )


def drawn(sampler: str, ts: list[float], kind: type = np.float32, model: Callable[..., Any] = velocity) -> Any:
    """What a sampler comes to. kind: of its latents, np.float32 in the runtime."""

    def denoise(latents: Latents, sigma: float, timestep: float) -> Denoised:
        output = model(FLOW.model_input(latents, sigma), FLOW.timestep(sigma, timestep) / 1000.0)
        return Denoised.unguided(FLOW.denoised(output, latents, sigma))

    schedule = flow_schedule(sampler, ts)
    latents = first().astype(kind) * kind(1.0 + schedule.sigmas[0])  # the model sees `first`
    last = list(SAMPLERS[sampler](denoise, latents, schedule, noise_source("numpy", [3, 4])))[-1].latents
    assert last.dtype == kind
    return last


def first() -> Latents:
    return noise_source("numpy", [1, 2]).draw(SHAPE)


def euler_loop(ts: list[float], model: Callable[..., Any] = velocity) -> Float64:
    x = first().astype(np.float64)
    for t, t_next in itertools.pairwise(ts):
        x = x + (t_next - t) * model(x, t)
    return x


def heun_loop(ts: list[float]) -> Float64:
    """Two slopes a step: of x / (1 - t) along t / (1 - t), which is where Karras et al. 2022 have theirs."""
    x = first().astype(np.float64)
    for t, t_next in itertools.pairwise(ts):
        v = velocity(x, t)
        ahead = x + (t_next - t) * v
        if t_next == 0.0:
            x = ahead
            continue
        noise, noise_ahead = x + (1.0 - t) * v, ahead + (1.0 - t_next) * velocity(ahead, t_next)
        image = x - t * v
        # Along the mean of both noises, from where the first one has it begin.
        x = (1.0 - t_next) * (image + t / (1.0 - t) * noise) + (t_next - t) / (1.0 - t) * (noise + noise_ahead) / 2.0
    return x


def dpm_solver_loop(ts: list[float]) -> Float64:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) with its alpha = 1 - t, its sigma = t."""
    x = first().astype(np.float64)
    before = None
    log_ratio = [math.log((1.0 - t) / t) for t in ts[:-1]]
    for index, (t, t_next) in enumerate(itertools.pairwise(ts)):
        image = target = x - t * velocity(x, t)
        if t_next == 0.0:
            return image
        h = log_ratio[index + 1] - log_ratio[index]
        if before is not None:
            r = (log_ratio[index] - log_ratio[index - 1]) / h
            target = image + (image - before) / (2.0 * r)
        x = t_next / t * x - (1.0 - t_next) * math.expm1(-h) * target
        before = image
    raise AssertionError("the last step ends at 0")


LOOPS = {"euler": euler_loop, "heun": heun_loop, "dpmpp_2m": dpm_solver_loop}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("sampler", LOOPS)
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_a_sampler_of_noise_levels_draws_rectified_flow(sampler: str, steps: int, kind: type) -> None:
    ts = times(steps, FIRST_IN_FLOAT32[sampler] if kind is np.float32 else FIRST)
    np.testing.assert_allclose(drawn(sampler, ts, kind), LOOPS[sampler](ts), atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    "sampler",
    [
        *("euler", "heun", "dpmpp_2m", "unipc", "exp_heun_2_x0", "res_2s", "gradient_estimation", "euler_cfg_pp"),
        *("dpmpp_2m_cfg_pp", "res_multistep_cfg_pp"),
    ],
)
def test_a_straight_flow_is_eulers_with_any_sampler(sampler: str) -> None:
    """Where the model has one picture in mind, its velocity is the same all the way."""
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)

    def straight(x: Any, t: float) -> Any:
        return (x - image) / t

    ts = times(8)
    np.testing.assert_allclose(drawn(sampler, ts, model=straight), euler_loop(ts, straight), atol=ATOL, rtol=0)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
def test_more_steps_come_to_where_the_flow_goes(sampler: str) -> None:
    exact = euler_loop(times(4000))
    errors = [float(np.abs(drawn(sampler, times(steps)) - exact).max()) for steps in (10, 40, 160)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize("steps", [2, 8, 20])
def test_euler_and_dpm_solver_are_those_of_diffusers(steps: int) -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    ts = times(steps)
    dpm = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, algorithm_type="dpmsolver++", solver_type="midpoint"
    )
    for sampler, scheduler in (("euler", diffusers.FlowMatchEulerDiscreteScheduler()), ("dpmpp_2m", dpm)):
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.tensor(ts)
        scheduler.timesteps = torch.tensor(ts[:-1]) * 1000.0
        scheduler.set_begin_index(0)
        x = torch.from_numpy(first())
        for t, timestep in zip(ts[:-1], scheduler.timesteps, strict=True):
            x = scheduler.step(torch.from_numpy(velocity(x.numpy(), t)), timestep, x).prev_sample
        np.testing.assert_allclose(drawn(sampler, ts), x.numpy(), atol=ATOL, rtol=0)
