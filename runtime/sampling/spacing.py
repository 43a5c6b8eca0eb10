"""Where each sampler's timesteps lie, as in its diffusers scheduler; karras and exponential respacing. Pure values.

A spacing of the same name is laid differently by different samplers, so each has a layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.sampling.scheduler_config import SchedulerConfig

SPACINGS = ("leading", "trailing", "linspace", "karras", "exponential")
BY_TIMESTEP = ("leading", "trailing", "linspace")

_KARRAS_RHO = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a sampler's timesteps lie.

    grid: "points" puts n timesteps on the line, both ends included; "intervals" puts n + 1 and goes to sigma 0 from
    the last but one; "lcm" takes from the timesteps a consistency model was distilled on.
    """

    grid: str = "points"
    whole: bool = False  # timesteps are whole numbers: tables are indexed, not interpolated
    variance_exploding: bool = False  # starts from sigma * noise rather than from unit variance; ends without rescaling
    spacings: tuple[str, ...] = SPACINGS
    default_spacing: str = "linspace"
    by_stride: bool = False  # lands on t - T // n, not on the list's next timestep
    begins_twice: bool = False  # calls the model at its second timestep twice, to redo the first step
    looks_ahead: bool = False  # calls the model once more in each step that does not land on sigma 0
    default_alpha_to_one: bool = True
    may_stop_early: bool = False  # honours final_sigmas_type
    cuts_cosine_timesteps: bool = False  # on a cosine schedule, karras timesteps are cut off, not rounded


_EULER = Layout(variance_exploding=True, may_stop_early=True)
_EXPLODING = Layout(variance_exploding=True)
_LOOKING_AHEAD = Layout(variance_exploding=True, looks_ahead=True)
_DPM = Layout(grid="intervals", whole=True, may_stop_early=True, cuts_cosine_timesteps=True)

LAYOUTS: dict[str, Layout] = {
    "euler": _EULER,
    "euler_a": _EXPLODING,
    "heun": _LOOKING_AHEAD,
    "ddim": Layout(whole=True, spacings=BY_TIMESTEP, default_spacing="leading", by_stride=True),
    "ddpm": Layout(whole=True, spacings=BY_TIMESTEP, default_spacing="leading"),
    "pndm": Layout(
        whole=True,
        spacings=BY_TIMESTEP,
        default_spacing="leading",
        by_stride=True,
        begins_twice=True,
        default_alpha_to_one=False,
    ),
    "dpmpp_2m": _DPM,
    "dpmpp_2m_sde": _DPM,
    "dpmpp_sde": _LOOKING_AHEAD,
    "unipc": Layout(grid="intervals", whole=True, may_stop_early=True),
    "euler_cfg_pp": _EULER,
    "euler_a_cfg_pp": _EXPLODING,
    "dpmpp_2m_cfg_pp": _DPM,
    "lcm": Layout(grid="lcm", whole=True, spacings=(), default_spacing="leading"),
}


def timesteps_for(
    config: SchedulerConfig, layout: Layout, steps: int, name: str, base: str, training_sigmas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Timesteps and sigmas, (n,) each: of spacing `name`, on the timestep spacing `base` where that matters."""
    if name in BY_TIMESTEP or layout.grid == "lcm":
        timesteps = spaced_timesteps(config, layout, steps, base)
        return timesteps, _rounded(sigmas_of(timesteps, training_sigmas))
    ends = training_sigmas[[-1, 0]]
    if layout.grid == "points":
        ends = sigmas_of(spaced_timesteps(config, layout, steps, base)[[0, -1]], training_sigmas)
    respaced = karras_sigmas if name == "karras" else exponential_sigmas
    sigmas = respaced(float(ends[0]), float(ends[1]), steps)
    timesteps = timesteps_of(sigmas, training_sigmas)
    if layout.whole:
        cosine = config.beta_schedule == "squaredcos_cap_v2" and layout.cuts_cosine_timesteps
        timesteps = np.rint(timesteps) if name == "karras" and not cosine else np.trunc(timesteps)
    return timesteps, _rounded(sigmas)


def spaced_timesteps(config: SchedulerConfig, layout: Layout, steps: int, base: str) -> NDArray[np.float64]:
    """Timesteps (n,), falling (Lin et al. 2023, table 2, and Luo et al. 2023 for lcm)."""
    train = config.num_train_timesteps
    extra = 1 if layout.grid == "intervals" else 0
    if layout.grid == "lcm":
        distilled = np.arange(config.original_inference_steps, 0, -1) * (train // config.original_inference_steps) - 1
        return distilled[(np.arange(steps) * len(distilled)) // steps].astype(np.float64)
    if base == "trailing":
        # arange, and cut to length: rounding halves must fall as they do in diffusers, and it may give one too many.
        return np.rint(np.arange(float(train), 0.0, -train / steps)[:steps]) - 1.0
    if base == "leading":
        index = np.arange(steps - 1 + extra, extra - 1, -1)
        return (index * (train // (steps + extra)) + config.steps_offset).astype(np.float64)
    points = np.linspace(0.0, train - 1.0, steps + extra)[::-1][:steps]
    return np.rint(points) if layout.whole else _rounded(points)


def karras_sigmas(first: float, last: float, count: int) -> NDArray[np.float64]:
    """Sigmas evenly spaced in sigma^(1/7) (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(0.0, 1.0, count)
    high, low = first ** (1 / _KARRAS_RHO), last ** (1 / _KARRAS_RHO)
    return (high + ramp * (low - high)) ** _KARRAS_RHO


def exponential_sigmas(first: float, last: float, count: int) -> NDArray[np.float64]:
    """Sigmas evenly spaced in log sigma."""
    return np.exp(np.linspace(math.log(first), math.log(last), count))


def sigmas_by_stride(
    layout: Layout,
    timesteps: NDArray[np.float64],
    stride: int,
    last: float,
    training_sigmas: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """sigmas_from and sigmas_to of ddim and pndm, which step by a stride wherever the next timestep lies.

    stride: of T training timesteps and n steps of the whole way, T // n.

    pndm begins with a step of Heun's kind: its second call redoes the first step with the mean of both slopes, and its
    list has the second timestep of the whole way twice. Of a picture to begin with it begins one entry of that list
    earlier than others, and where it leaves the double out it redoes its first step all the same, as diffusers does.
    """
    twice = layout.begins_twice and len(timesteps) > 1
    start, end = timesteps.copy(), timesteps - stride
    if twice:
        start[1], end[1] = timesteps[1] + stride, timesteps[1]
    sigmas_to = np.where(end >= 0, sigmas_of(np.maximum(end, 0.0), training_sigmas), last)
    return sigmas_of(start, training_sigmas), sigmas_to


def sigmas_of(timesteps: NDArray[np.float64], training_sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.interp(timesteps, np.arange(len(training_sigmas)), training_sigmas)


def timesteps_of(sigmas: NDArray[np.float64], training_sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    # The table's logarithms are float32 in diffusers, and where timesteps are cut off to whole numbers it shows.
    table = np.log(training_sigmas.astype(np.float32)).astype(np.float64)
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), table, np.arange(len(table)))


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float32).astype(np.float64)
