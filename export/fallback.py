"""Which layers become int8: all that the gate allows, by measurement of what each one costs.

Errors of layers add up like independent noise, nearly: the squared error of a set is the sum of its layers'. So each
layer (each block, where a call takes seconds) is made int8 alone, its damage to the graph's output is measured on
real calls, and layers stay float in order of damage a parameter until the sum fits. The set is then tried whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.export.calls import Call
from tintype.export.parity import Gate, GraphReport, guidance_error, worst_psnr_db
from tintype.export.progress import Progress
from tintype.export.quantization import Layer

AIM_ABOVE_GATE_DB = 2.0  # the gate's calls are others than those measured on
AIM_OF_GUIDANCE = 0.8
FIRST_STEP = 0.05  # share of layers that goes float at once when a set misses the gate

# What the model gives for each call's inputs while these layers of it answer as if they were int8.
Run = Callable[[Sequence[Layer], Sequence[Call]], list[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Damage:
    """What int8 does to a graph's output: |error|^2 as a share of the gate's, per criterion; 1.0 just fits."""

    noise: float
    guidance: float

    @property
    def worst(self) -> float:
        return max(self.noise, self.guidance)

    def __add__(self, other: Damage) -> Damage:
        return Damage(self.noise + other.noise, self.guidance + other.guidance)


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers that are decided on together."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)


@dataclass(slots=True)
class Choice:
    """Units in the order in which they go float; the first `floats` of them are float."""

    order: tuple[Unit, ...]
    floats: int

    @property
    def layers(self) -> list[Layer]:
        return [layer for unit in self.order for layer in unit.layers]

    @property
    def int8(self) -> list[Layer]:
        return [layer for unit in self.order[self.floats :] for layer in unit.layers]

    @property
    def float_names(self) -> tuple[str, ...]:
        return tuple(unit.name for unit in self.order[: self.floats])

    def retreat(self, share: float) -> None:
        """Leave a further share of all units float."""
        self.floats = min(len(self.order), self.floats + max(1, math.ceil(share * len(self.order))))


class Trial:
    """Tries sets of int8 layers on a model, against a gate, on fixed calls."""

    def __init__(self, run: Run, calls: Sequence[Call], gate: Gate) -> None:
        self.run, self.calls, self.gate = run, calls, gate

    def damage(self, layers: Sequence[Layer], calls: Sequence[Call] | None = None) -> Damage:
        """The damage of these layers together."""
        calls = self.calls if calls is None else calls
        found = self.run(layers, calls)
        references = [call.reference for call in calls]
        aim_db = self.gate.psnr_db + AIM_ABOVE_GATE_DB
        noise = 10.0 ** ((aim_db - worst_psnr_db(references, found)) / 10.0)
        guidance = 0.0
        if self.gate.guidance_error is not None:
            guidance = (guidance_error(references, found) / (AIM_OF_GUIDANCE * self.gate.guidance_error)) ** 2
        return Damage(noise, guidance)


def choose(trial: Trial, layers: Sequence[Layer], seconds: float, title: str, progress: Progress) -> Choice:
    """The largest set of int8 layers, nearly, that the trial's calls let through; `seconds` bounds the measuring."""
    if not layers:
        return Choice((), 0)
    started = time.perf_counter()
    together = trial.damage(layers)
    each_call = (time.perf_counter() - started) / len(trial.calls)
    if together.worst <= 1.0:  # the order is needed no more: should the real graph miss, the smallest layers go first
        units = sorted(_units(layers, len(layers)), key=lambda unit: unit.parameters)
        return Choice(tuple(units), 0)
    calls = trial.calls
    if each_call * len(layers) * len(calls) > seconds:
        calls = [calls[len(calls) // 2]]
    units = _units(layers, max(1, int(seconds / (each_call * len(calls)))))
    alone: dict[str, Damage] = {}
    with progress.stage(title, len(units)) as advance:
        for unit in units:
            alone[unit.name] = trial.damage(unit.layers, calls)
            advance(1)
    order = tuple(sorted(units, key=lambda unit: alone[unit.name].worst / unit.parameters, reverse=True))
    return _fit(trial, Choice(order, _predicted_floats(order, alone)))


def until_it_passes(choice: Choice, attempt: Callable[[Sequence[Layer]], GraphReport]) -> GraphReport:
    """Layers go float until the real graph, which `attempt` writes and judges, passes; the last attempt has no int8."""
    share = FIRST_STEP
    while True:
        layers = choice.int8
        report = attempt(layers)
        if report.parity.passed or not layers:
            return report
        choice.retreat(share)
        share *= 2.0


def _predicted_floats(order: Sequence[Unit], alone: Mapping[str, Damage]) -> int:
    """How many units must be float for the others' sum to fit."""
    total = Damage(0.0, 0.0)
    for index in range(len(order) - 1, -1, -1):
        total = total + alone[order[index].name]
        if total.worst > 1.0:
            return index + 1
    return 0


def _fit(trial: Trial, choice: Choice) -> Choice:
    """Retreat until the whole set fits in the trial."""
    share = FIRST_STEP
    while choice.int8 and trial.damage(choice.int8).worst > 1.0:
        choice.retreat(share)
        share *= 1.5
    return choice


def _units(layers: Sequence[Layer], most: int) -> list[Unit]:
    """Layers one by one where there's time for that, else by block: as many dots of their names as still fit."""
    for depth in range(12, 0, -1):
        groups: dict[str, list[Layer]] = {}
        for layer in layers:
            groups.setdefault(".".join(layer.module.split(".")[:depth]), []).append(layer)
        if len(groups) <= most:
            break
    return [Unit(name, tuple(group)) for name, group in groups.items()]
