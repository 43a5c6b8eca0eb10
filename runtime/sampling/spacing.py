"""Timesteps and noise levels of a sampler's steps: evenly spaced timesteps as in its diffusers scheduler, or respaced.

Pure values. What the layout of a sampler says is in `layout`, the rules of noise levels are in `respacing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tintype.sampling.layout import Layout
from tintype.sampling.respacing import (
    AYS,
    BETWEEN_ENDS,
    BY_TIMESTEP,
    OVER_TRAINING,
    ays_sigmas,
    karras_sigmas,
)
from tintype.sampling.scheduler_config import SchedulerConfig

Spaced: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]  # timesteps and sigmas, (n,) each

_RESTART_LOW, _RESTART_HIGH = 0.1, 2.0  # noise levels that a restart goes up from and to, as A1111 has them


def timesteps_for(
    config: SchedulerConfig,
    layout: Layout,
    steps: int,
    name: str,
    base: str,
    training_sigmas: NDArray[np.float64],
    family: str | None,
) -> Spaced:
    """Timesteps and sigmas, (n,) each: of spacing `name`, on the timestep spacing `base` where that matters."""
    if name in BY_TIMESTEP or not layout.spacings:
        timesteps = spaced_timesteps(config, layout, steps, base)
        return timesteps, _rounded(sigmas_of(timesteps, training_sigmas))
    if name in BETWEEN_ENDS:
        ends = training_sigmas[[-1, 0]]
        if layout.grid == "points":
            ends = sigmas_of(spaced_timesteps(config, layout, steps, base)[[0, -1]], training_sigmas)
        sigmas = BETWEEN_ENDS[name](float(ends[0]), float(ends[1]), steps)
    else:
        sigmas = ays_sigmas(steps, family) if name == AYS else OVER_TRAINING[name](training_sigmas, steps)
    timesteps = timesteps_of(sigmas, training_sigmas)
    if layout.whole or (name == "karras" and layout.rounds_karras):
        cosine = config.beta_schedule == "squaredcos_cap_v2" and layout.cuts_cosine_timesteps
        cut = name in BETWEEN_ENDS and (name != "karras" or cosine)
        timesteps = np.trunc(timesteps) if cut else np.rint(timesteps)
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


def with_restarts(
    steps: int, spaced: Callable[[int], Spaced], training_sigmas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Timesteps and sigmas where steps begin, (n,) each, and where those before the last land, (n - 1,).

    spaced: timesteps and sigmas of so many steps. From 20 steps on 9 of them go down again from more noise, from 36 on
    a quarter of them, twice, as in A1111; fewer are all needed for the way itself. So are all of them where no step of
    the way lies between the two noise levels.
    """
    again, times = (0, 0) if steps < 20 else (9, 1) if steps < 36 else (steps // 4, 2)
    timesteps, way = spaced(steps - again * times)
    low, high = (int(np.abs(way - sigma).argmin()) for sigma in (_RESTART_LOW, _RESTART_HIGH))
    if not times or low <= high:
        timesteps, way = spaced(steps)
        return timesteps, way, way[1:]
    up = karras_sigmas(float(way[high]), float(way[low]), again + 1)[:-1]
    begins = np.concatenate([way[:low], *[up] * times, way[low:]])
    lands = begins[1:].copy()
    lands[low - 1 + again * np.arange(times)] = way[low]
    up_timesteps = [timesteps_of(up, training_sigmas)] * times
    return np.concatenate([timesteps[:low], *up_timesteps, timesteps[low:]]), begins, lands


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
