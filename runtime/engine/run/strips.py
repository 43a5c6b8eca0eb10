"""A graph that runs strip by strip: memory for a few rows of each feature map, however large the picture.

Stands where ONNX Runtime's InferenceSession would. The head runs whole, part by part; then each stage is opened, run
over all strips and dropped; at last the tail runs, as the head did. Maps between stages lie in memory while they are
small, else in a file without a name, which goes when the run ends: the system may keep it in its cache, but it is none
of this process's memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype import strict_json
from tintype.engine.run.chain import Chain, Port, prefetch
from tintype.engine.run.heap import return_large_blocks
from tintype.engine.run.moments import Moments
from tintype.engine.run.placement import Placement
from tintype.engine.run.row_store import RowStore, RowStores
from tintype.errors import BuildError
from tintype.files import read_cached

STRIPS_NAME = "strips.json"  # in a build's folder, in place of model.onnx
HEAD, TAIL = "head.onnx", "tail.onnx"  # the chains in parts.json that run before the first stage and after the last


@dataclass(frozen=True, slots=True)
class StripPort:
    """A map that a stage reads or gives."""

    name: str
    shape: tuple[int, ...]  # whole: batch, channels, height, width
    dtype: str
    scale: int  # its rows for one row of the stage
    seen: tuple[str, ...] = ()  # outputs: mean of each row, and the sum of its squared differences

    def block(self, rows: int) -> NDArray[Any]:
        """Memory for a strip of so many rows of the stage."""
        batch, channels, _, width = self.shape
        return np.empty((batch, channels, rows * self.scale, width), self.dtype)


@dataclass(frozen=True, slots=True)
class NormFacts:
    """A norm that a stage begins with, and the two inputs that its statistics go to."""

    source: str
    mean: str
    inverse: str
    groups: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage: its graph's file in the build's folder, and how strips make up the whole."""

    file: str
    weights: tuple[str, ...]  # the files that hold its weights
    rows: int  # of its smallest map
    strip_rows: int
    margin: int
    reads: tuple[StripPort, ...]
    gives: tuple[StripPort, ...]
    norms: tuple[NormFacts, ...]

    def strips(self) -> Iterator[tuple[int, int, int]]:
        """Each strip's first row, and the rows (from, to) of it that are kept; together they are the whole."""
        done = 0
        while done < self.rows:
            start = min(max(done - self.margin, 0), self.rows - self.strip_rows)
            end = start + self.strip_rows
            kept = end if end == self.rows else end - self.margin
            yield start, done, kept
            done = kept


@dataclass(frozen=True, slots=True)
class StripsFacts:
    """What strips.json says."""

    stages: tuple[StageFacts, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    held_bytes: int  # larger maps lie in a file


class Strips:
    """The stages of one graph, run in turn."""

    def __init__(
        self,
        folder: Path,
        facts: StripsFacts,
        open_part: Callable[[Path], Any],
        *,
        head: Chain | None = None,
        tail: Chain | None = None,
    ) -> None:
        """open_part: opens one file as an InferenceSession. head, tail: what runs whole before and after."""
        return_large_blocks()
        self._folder, self._facts, self._open = folder, facts, open_part
        self._head, self._tail = head, tail
        self._stages = Placement()  # of those that have run
        self._placed: set[str] = set()

    @property
    def placement(self) -> Placement:
        """Where the nodes of what has run so far run."""
        ends = [end.placement for end in (self._head, self._tail) if end is not None]
        return sum(ends, start=self._stages)

    def get_inputs(self) -> tuple[Port, ...]:
        return self._facts.inputs

    def get_outputs(self) -> tuple[Port, ...]:
        return self._facts.outputs

    def run(self, output_names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Every output, or those named, in order. What no later stage reads is dropped at once."""
        maps = {name: RowStore.of(array) for name, array in feed.items() if array.ndim == 4}
        stores = RowStores(self._folder.parent, self._facts.held_bytes)
        names = [port.name for port in self._facts.outputs] if output_names is None else output_names
        with stores.files_closed():
            self._run_stages(feed, maps, stores)
            made = {} if self._tail is None else _run_tail(self._tail, feed, maps)
            return [made[name] if name in made else maps[name].whole() for name in names]

    def _run_stages(self, feed: Mapping[str, Any], maps: dict[str, RowStore], stores: RowStores) -> None:
        """Put into `maps` every output that they give, and all that the tail reads."""
        wanted = {port.name for port in self._facts.outputs}
        read_at_last = set() if self._tail is None else {port.name for port in self._tail.get_inputs()}
        if self._head is not None:
            made = self._head.run(None, feed)
            for output in reversed(self._head.get_outputs()):  # the last one first: each goes once it is stored
                maps[output.name] = _stored(made.pop(), stores, in_memory=output.name in wanted)
        moments: dict[str, Moments] = {}
        stages = self._facts.stages
        for index, stage in enumerate(stages):
            for norm in stage.norms:
                if norm.source not in moments:
                    moments[norm.source] = Moments.of_map(maps[norm.source])
            for port in stage.gives:
                dtype = np.dtype(port.dtype)
                maps[port.name] = stores.empty(port.shape, dtype, in_memory=port.name in wanted)
            following = stages[(index + 1) % len(stages)]
            moments |= self._run_stage(stage, maps, moments, following.weights)
            read_later = {port.name for later in stages[index + 1 :] for port in later.reads}
            for name in maps.keys() - read_later - wanted - read_at_last:
                stores.give_back(maps.pop(name))

    def _run_stage(
        self,
        stage: StageFacts,
        maps: Mapping[str, RowStore],
        moments: Mapping[str, Moments],
        next_weights: Sequence[str],
    ) -> dict[str, Moments]:
        """Run one stage over all strips; fills the maps that it gives, and returns their statistics."""
        session = self._open(self._folder / stage.file)
        prefetch(self._folder / name for name in next_weights)
        given: dict[str, NDArray[Any]] = {}
        for norm in stage.norms:
            given[norm.mean], given[norm.inverse] = moments[norm.source].normal(norm.groups, norm.epsilon)
        blocks = {port.name: port.block(stage.strip_rows) for port in stage.reads}
        seen = {port.name: Moments() for port in stage.gives if port.seen}
        names = [name for port in stage.gives for name in (port.name, *port.seen)]
        for start, first, last in stage.strips():
            for port in stage.reads:
                rows = (start * port.scale, (start + stage.strip_rows) * port.scale)
                given[port.name] = maps[port.name].read(*rows, blocks[port.name])
            made = dict(zip(names, session.run(names, given), strict=True))
            for port in stage.gives:
                kept = slice((first - start) * port.scale, (last - start) * port.scale)
                maps[port.name].write(first * port.scale, made[port.name][:, :, kept])
                if port.seen:
                    means, squares = (made[name][:, :, kept, 0] for name in port.seen)
                    seen[port.name].add(means, squares, port.shape[3])
            del made
        if stage.file not in self._placed:
            self._placed.add(stage.file)
            self._stages += Placement.of(session)
        return seen


def _run_tail(tail: Chain, feed: Mapping[str, Any], maps: Mapping[str, RowStore]) -> dict[str, Any]:
    """What runs whole at the end, on maps that are small by then; every output by its name."""
    names = [port.name for port in tail.get_inputs()]
    read = {name: feed[name] if name in feed else maps[name].whole() for name in names}
    outputs = [port.name for port in tail.get_outputs()]
    return dict(zip(outputs, tail.run(outputs, read), strict=True))


def _stored(array: NDArray[Any], stores: RowStores, *, in_memory: bool) -> RowStore:
    if in_memory or not stores.is_large(array.shape, array.dtype):
        return RowStore.of(array)
    store = stores.empty(array.shape, array.dtype)
    store.write(0, array)
    return store


def write_strips(folder: Path, facts: StripsFacts) -> None:
    """Write strips.json."""
    (folder / STRIPS_NAME).write_text(json.dumps(asdict(facts), indent=1), encoding="utf-8")


def read_strips(folder: Path) -> StripsFacts | None:
    """What a build's folder says of strips; None where its graph does not run so. BuildError for what can't be read."""
    path = folder / STRIPS_NAME
    if not path.is_file():
        return None
    try:
        return strict_json.read(StripsFacts, strict_json.parse(read_cached(path)))
    except (OSError, ValueError) as error:
        raise BuildError(f"{path} cannot be read: {error}", fix="clear the build: tintype cache clear") from None
