"""The choice of each layer's kernel: by timing its ways on this machine at the build's shape, or by what was timed on
processors of its kind.

Runs in the child process that makes a build. Times are kept in a table in the cache, so that layers of one kind are
timed once, and a build that is made again chooses the same.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype import strict_json
from tintype.engine.device.disturbance import DISTURBED, Reading, others_share
from tintype.engine.device.providers import Target, load_onnxruntime
from tintype.engine.run.session_options import session_options
from tintype.files import read_cached, write_cached
from tintype.kernels.graph.priors import AS_IS as AS_IS  # for those who read reports too

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from tintype.kernels.base import Kernel
    from tintype.kernels.graph.choice import Layer
    from tintype.kernels.graph.priors import Priors

LAYER_SECONDS = 0.3  # for timing one layer, beyond the first run of each way
MOST_ROUNDS = 40
LAYER_GATE_DB = 90.0  # of an exact way against the layer as it is
ROUNDED_GATE_DB = 70.0  # the same where the output is rounded to 8 bits: a few values fall to the other side
LOSSY_GATE_DB = 40.0  # of a way that a balanced build may take
CLOSE = 1.04  # times that differ by less are taken to be equal
SMALL_CLOSE = 1.1  # the same of a way whose weights take half as much or less
PATIENCE_SECONDS = 1.0  # for timing one layer in quiet
HOPELESS = 1.6  # a way that much slower than the best so far is not timed again


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do a layer, as it was measured."""

    seconds: float
    weight_bytes: int
    psnr_db: float  # against the layer as it is; 200 where they are equal


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one layer, and from what; by priors, seconds are in times of the layer as it is."""

    node: str
    layer: str
    ways: dict[str, Way]
    chosen: str
    refused: dict[str, str]  # by way, why it could not be taken, however fast


@dataclass(slots=True)
class CostTable:
    """What was measured before, by signature; one file for a processor, ONNX Runtime, kernels and thread count."""

    path: Path | None = None
    known: dict[str, dict[str, Way]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> CostTable:
        """The table at a path; an empty one when there is none, or it cannot be read."""
        table = cls(path)
        try:
            stored = strict_json.parse(read_cached(path)) if path is not None else {}
            table.known = {
                key: {name: strict_json.read(Way, way) for name, way in ways.items()}
                for key, ways in stored.items()
                if AS_IS in ways
            }
        except (OSError, ValueError, TypeError, AttributeError):
            table.known = {}
        return table

    def write(self) -> None:
        """Put what is known at the path, whole; what another process wrote there meanwhile is kept."""
        if self.path is None:
            return
        self.known = {**CostTable.read(self.path).known, **self.known}
        stored = {key: {name: asdict(way) for name, way in ways.items()} for key, ways in self.known.items()}
        write_cached(self.path, json.dumps(stored))


def choose(
    model: ir.Model,
    kernels: Iterable[Kernel],
    ways_of: Callable[[Layer], dict[str, Way]],
    *,
    largest_bytes: int | None,
    after_each: Callable[[], None] = lambda: None,
) -> list[Choice]:
    """Choose a way for every layer of a pinned model, and do it so, in place; after_each is called after each layer.

    ways_of: what each way of a layer takes. largest_bytes: only ways whose weights are no larger than that, or than
    they are; None sets no bound.
    """
    from tintype.kernels.graph import choice
    from tintype.kernels.graph.unused import remove_unused

    decided: list[tuple[Layer, Choice]] = []
    gone: set[ir.Node] = set()  # what earlier layers, as they are chosen, leave nothing of
    for layer in list(choice.layers(model.graph, kernels)):
        if layer.node in gone:
            continue
        ways = ways_of(layer)
        refused = refusals(ways, _gates(layer), largest_bytes)
        chosen = fastest(ways, refused)
        decided.append((layer, Choice(str(layer.node.name), layer.describe(), ways, chosen, refused)))
        gone.update(choice.replaced(layer, chosen))
    for layer, each in decided:
        choice.apply(layer, each.chosen, model.graph)
        after_each()
    remove_unused(model)
    return [each for _, each in decided]


def timed_ways(
    layer: Layer, model: ir.Model, target: Target, *, threads: int, mapped: bool, table: CostTable
) -> dict[str, Way]:
    """Every way of a layer as it was measured, now or before. mapped: timed without prepacked copies."""
    key = f"{layer.signature}-{threads}{'-mapped' if mapped else ''}"
    if key not in table.known:
        table.known[key] = measure(layer, model, target, threads=threads, mapped=mapped)
    return table.known[key]


def layer_costs(
    model: onnx.ModelProto, target: Target, *, threads: int
) -> Iterator[tuple[str, list[int], dict[str, list[float]]]]:
    """Kind, size and ways of each layer of a graph whose shapes are numbers, as `kernels/priors.json` has them: lowered
    as far as a build that chooses would be."""
    import onnx_ir as ir
    from onnx_ir.passes.common import NameFixPass

    from tintype.engine.device.abilities import abilities
    from tintype.kernels.graph import choice
    from tintype.kernels.registry import kernels_for, lower, measured_kernels

    loaded, able = ir.from_proto(model), abilities(target)
    NameFixPass()(loaded)
    lower(loaded, target.name, kernels=kernels_for(target.name, able, choosing=True))
    for layer in choice.layers(loaded.graph, measured_kernels(target.name, able)):
        ways = measure(layer, loaded, target, threads=threads, mapped=False)
        yield (
            layer.kind,
            list(layer.size),
            {
                name: [float(f"{way.seconds:.4g}"), round(way.weight_bytes / layer.weights, 2), round(way.psnr_db, 1)]
                for name, way in ways.items()
            },
        )


def likely_ways(layer: Layer, priors: Priors) -> dict[str, Way]:
    """The ways of a layer as those that are nearest in a table took, in times of the layer as it is; where it has none
    of that kind, `as_is` and what kernels say of themselves."""
    known = priors.likely(layer.kind, layer.size)
    ways = {AS_IS: Way(1.0, layer.stored_bytes, 200.0)}
    if not known:
        said = {kernel.name: kernel.likely_seconds for kernel in layer.kernels if kernel.likely_seconds}
        return ways | {name: Way(seconds, layer.stored_bytes, 200.0) for name, seconds in said.items()}
    halved = {kernel.name for kernel in layer.kernels if kernel.keeps_halves} if layer.is_half else set()
    for name in layer.ways:
        if name in known and name != AS_IS:
            way = known[name]
            size = round(way.bytes_a_weight * layer.weights / (2 if name in halved else 1))
            ways[name] = Way(way.seconds, size, way.psnr_db)
    return ways


def _gates(layer: Layer) -> dict[str, float]:
    """How near each way has to come to the layer as it is, in dB."""
    exact = ROUNDED_GATE_DB if layer.is_rounded else LAYER_GATE_DB
    return {kernel.name: LOSSY_GATE_DB if kernel.lossy else exact for kernel in layer.kernels}


def refusals(
    ways: Mapping[str, Way], gates_db: Mapping[str, float], largest_bytes: int | None = None
) -> dict[str, str]:
    """The ways that can't be taken, each with the reason: it has to be near enough to the layer as it is, and its
    weights no larger than as they are or than `largest_bytes`, if that is given."""
    most = math.inf if largest_bytes is None else max(ways[AS_IS].weight_bytes * 1.05 + 4096, largest_bytes)
    refused = {name: "its weights are too large here" for name, way in ways.items() if way.weight_bytes > most}
    gates = {name: gates_db.get(name, 0.0) for name in ways}
    return refused | {name: f"below {gates[name]:.0f} dB" for name, way in ways.items() if way.psnr_db < gates[name]}


def fastest(ways: Mapping[str, Way], refused: Collection[str]) -> str:
    """The way to take: of those that are about as fast as the fastest, the one with the smallest weights."""
    allowed = {name: way for name, way in ways.items() if name not in refused}
    best = min(allowed.values(), key=lambda way: way.seconds)

    def is_close(way: Way) -> bool:
        is_small = way.weight_bytes * 2 <= best.weight_bytes * 1.05
        return way.seconds <= best.seconds * (SMALL_CLOSE if is_small else CLOSE)

    close = {name: way for name, way in allowed.items() if is_close(way)}
    return min(close, key=lambda name: (close[name].weight_bytes, close[name].seconds))


def measure(layer: Layer, model: ir.Model, target: Target, *, threads: int, mapped: bool) -> dict[str, Way]:
    """Run every way of a layer on the same random input, in turn."""
    from tintype.kernels.graph import choice

    feed = _random_inputs(layer)
    runs: dict[str, _Timed] = {}
    for name in layer.ways:
        alone = choice.model_of(layer, name, model.opset_imports)
        runs[name] = _Timed(alone, choice.weight_bytes(alone), feed, target, threads, mapped)
    expected = runs[AS_IS].first
    ranges = [choice.rounded_range(value) if choice.is_rounded(value) else None for value in layer.outputs]
    ends = time.perf_counter() + PATIENCE_SECONDS
    while True:  # each run keeps its best time of all races
        before = Reading.now()
        _race(list(runs.values()))
        if (others_share(before, Reading.now()) or 0.0) <= DISTURBED or time.perf_counter() > ends:
            break
    return {
        name: Way(round(run.seconds, 7), run.weight_bytes, round(_worst_psnr(expected, run.first, ranges), 1))
        for name, run in runs.items()
    }


class _Timed:
    """A small model, open, with its best time so far."""

    def __init__(
        self,
        model: ir.Model,
        weight_bytes: int,
        feed: dict[str, NDArray[np.float32]],
        target: Target,
        threads: int,
        mapped: bool,
    ) -> None:
        import onnx_ir as ir

        options = session_options(target, threads=threads, optimize=True, mapped=mapped)
        text = ir.to_proto(model).SerializeToString()
        self._session = load_onnxruntime().InferenceSession(
            text, options, providers=[target.provider], enable_fallback=0
        )
        self._feed = feed
        self.weight_bytes = weight_bytes
        self.seconds = float("inf")
        self.first: list[NDArray[Any]] = self._session.run(None, feed)

    def run(self) -> float:
        started = time.perf_counter()
        self._session.run(None, self._feed)
        self.seconds = min(self.seconds, time.perf_counter() - started)
        return self.seconds


def _race(runs: Sequence[_Timed]) -> None:
    """Time them in turn, so that what else the machine does hits all alike; the hopeless ones drop out.

    The best time of each counts: a shared machine only ever adds to it. A short layer is timed often, since one
    thread that waits for its turn on a busy core costs more than the layer.
    """
    ends = time.perf_counter() + LAYER_SECONDS
    rounds, racing = 0, list(runs)
    while True:
        best = min(run.run() for run in racing)
        rounds += 1
        if rounds >= (2 if best > 0.02 else 8):
            racing = [run for run in racing if run.seconds <= HOPELESS * best]
            if rounds >= MOST_ROUNDS or time.perf_counter() > ends or (len(racing) == 1 and best > 0.02):
                return


def _random_inputs(layer: Layer) -> dict[str, NDArray[np.float32]]:
    """Normal numbers; where an input is rounded to 8 bits, of an eighth of its range, as activations have it: where an
    output leaves the range of its own rounding, a way without that rounding would seem to be wrong."""
    from tintype.kernels.graph.choice import rounded_range

    random, inputs = np.random.default_rng(0), {}
    for value in layer.inputs:
        numbers = random.standard_normal(tuple(int(str(dim)) for dim in value.shape or ()), dtype=np.float32)
        known = rounded_range(value)
        if known is not None:
            numbers = (numbers * np.float32((known[1] - known[0]) / 8)).clip(*known)
        inputs[str(value.name)] = numbers
    return inputs


def _worst_psnr(
    expected: Sequence[NDArray[Any]], given: Sequence[NDArray[Any]], ranges: Sequence[tuple[float, float] | None]
) -> float:
    """Of all outputs; of one that is rounded to 8 bits only what its range keeps counts, as random numbers leave it."""
    kept = (result if ends is None else result.clip(*ends) for result, ends in zip(given, ranges, strict=True))
    return min(psnr_db(reference, result) for reference, result in zip(expected, kept, strict=True))


def psnr_db(reference: NDArray[Any], result: NDArray[Any]) -> float:
    """Peak signal to noise of a result against its reference, whose range is the peak; 200 where they are equal."""
    error = float(np.mean((result.astype(np.float64) - reference) ** 2))
    if error == 0.0:
        return 200.0
    peak = float(np.ptp(reference)) or 1.0
    return float(10 * np.log10(peak**2 / error)) if np.isfinite(error) else -200.0
