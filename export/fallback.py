"""Which layers become integers: all that the gate allows, by measurement of what each one costs.

Errors of layers add up like independent noise, nearly: the squared error of a set is the sum of its layers'. So each
layer (each block, where a call takes seconds) is made integers alone, its damage to the graph's output is measured on
real calls, and layers go finer in order of damage a bit that this takes until the sum fits: float in place of int8, and
int8 in place of int4. The set is then tried whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tintype.export.calls import Call
from tintype.export.parity import Gate, GraphReport, guidance_error, worst_psnr_db
from tintype.export.progress import Progress
from tintype.export.quantization import Layer, Scales, halve_weights, quantize_graph, stored_precision
from tintype.export.storage import load_graph, save_graph

AIM_ABOVE_GATE_DB = 2.0  # the gate's calls are others than those measured on
AIM_OF_GUIDANCE = 0.8
FIRST_STEP = 0.05  # share of layers that goes finer at once when a set misses the gate

# What the model gives for each call's inputs while these layers of it answer as if they were integers.
Run = Callable[[Sequence[Layer], Sequence[Call]], list[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Damage:
    """What integers do to a graph's output: |error|^2 as a share of the gate's, per criterion; 1.0 just fits."""

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
    def growth(self) -> int:
        """Bits that it takes more once it is finer: four bits become eight, and eight sixteen."""
        return sum(layer.parameters * layer.bits for layer in self.layers)


@dataclass(slots=True)
class Choice:
    """Units in the order in which they go finer (`Layer.finer`); the first `finer` of them have."""

    order: tuple[Unit, ...]
    finer: int

    @property
    def layers(self) -> list[Layer]:
        return [layer for unit in self.order for layer in unit.layers]

    @property
    def quantized(self) -> list[Layer]:
        """The layers that are integers, each with the bits that it has."""
        raised = [layer.finer() for unit in self.order[: self.finer] for layer in unit.layers]
        kept = [layer for unit in self.order[self.finer :] for layer in unit.layers]
        return [*(layer for layer in raised if layer is not None), *kept]

    @property
    def finer_names(self) -> tuple[str, ...]:
        return tuple(unit.name for unit in self.order[: self.finer])

    @property
    def is_finest(self) -> bool:
        return self.finer == len(self.order)

    def retreat(self, share: float) -> None:
        """Let a further share of all units go finer."""
        self.finer = min(len(self.order), self.finer + max(1, math.ceil(share * len(self.order))))


class Trial:
    """Tries sets of integer layers on a model, against a gate, on fixed calls."""

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
    """The largest set of integer layers, nearly, that the trial's calls let through; `seconds` bounds the measuring."""
    if not layers:
        return Choice((), 0)
    started = time.perf_counter()
    together = trial.damage(layers)
    each_call = (time.perf_counter() - started) / len(trial.calls)
    if together.worst <= 1.0:  # the order is needed no more: should the real graph miss, the smallest layers go first
        units = sorted(_units(layers, len(layers)), key=lambda unit: unit.growth)
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
    order = tuple(sorted(units, key=lambda unit: alone[unit.name].worst / unit.growth, reverse=True))
    return _fit(trial, Choice(order, _predicted_finer(order, alone)))


def write_integers(
    choice: Choice, scales: Mapping[str, Scales], source: Path, path: Path, judged: Callable[[str], GraphReport]
) -> GraphReport:
    """Write the graph at `path`, of the fp32 one at `source`, with layers that go finer until it passes.

    scales: by module. judged: the report of the graph that was written, by the precision that it is stored in.
    """

    def attempt(layers: Sequence[Layer]) -> GraphReport:
        rewrite_graph(source, path, layers, scales)
        return with_layers(judged(stored_precision(layers)), choice, layers)

    return until_it_passes(choice, attempt)


def rewrite_graph(source: Path, path: Path, layers: Sequence[Layer], scales: Mapping[str, Scales]) -> None:
    """The fp32 graph at `source` with these layers as integers and all other weights fp16, at `path`."""
    model = load_graph(source)
    quantize_graph(model, layers, scales)
    halve_weights(model)
    save_graph(model, path)


def until_it_passes(choice: Choice, attempt: Callable[[Sequence[Layer]], GraphReport]) -> GraphReport:
    """Layers go finer until the real graph, which `attempt` writes and judges, passes; the last attempt is float."""
    share = FIRST_STEP
    while True:
        layers = choice.quantized
        report = attempt(layers)
        if report.parity.passed or not layers:
            return report
        if choice.is_finest:
            return attempt([])
        choice.retreat(share)
        share *= 2.0


def with_layers(report: GraphReport, choice: Choice, layers: Sequence[Layer]) -> GraphReport:
    """A report with what became of its graph's layers: these ones are integers."""
    return replace(
        report,
        quantized_layers=len(layers),
        quantizable_layers=len(choice.layers),
        float_layers=choice.finer_names,
        four_bit_layers=sum(layer.bits == 4 for layer in layers),
    )


def _predicted_finer(order: Sequence[Unit], alone: Mapping[str, Damage]) -> int:
    """How many units must go finer for the others' sum to fit."""
    total = Damage(0.0, 0.0)
    for index in range(len(order) - 1, -1, -1):
        total = total + alone[order[index].name]
        if total.worst > 1.0:
            return index + 1
    return 0


def _fit(trial: Trial, choice: Choice) -> Choice:
    """Retreat until the whole set fits in the trial."""
    share = FIRST_STEP
    while not choice.is_finest and trial.damage(choice.quantized).worst > 1.0:
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
