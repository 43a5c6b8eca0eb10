"""A graph that runs strip by strip: memory for a few rows of each feature map, however large the picture.

Stands where ONNX Runtime's InferenceSession would. The head runs whole, part by part; then each stage is opened, run
over all strips and dropped. Maps between stages lie in memory while they are small, else in a file without a name,
which goes when the run ends: the system may keep it in its cache, but it is none of this process's memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.engine.chain import Chain, Port, prefetch
from tintype.engine.heap import return_large_blocks
from tintype.engine.moments import Moments
from tintype.engine.placement import Placement
from tintype.engine.row_store import RowStore

STRIPS_NAME = "strips.json"  # in a build's folder, in place of model.onnx
HEAD = "head.onnx"  # the chain in parts.json that runs before the first stage


@dataclass(frozen=True, slots=True)
class StripPort:
    """A map that a stage reads or gives."""

    name: str
    shape: tuple[int, ...]  # whole: batch, channels, height, width
    dtype: str
    scale: int  # its rows for one row of the stage
    seen: tuple[str, ...] = ()  # outputs: mean of each row, and the sum of its squared differences


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
    rows: int  # of the smallest map that it reads
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

    def __init__(self, folder: Path, facts: StripsFacts, head: Chain | None, open_part: Callable[[Path], Any]) -> None:
        """head: what runs whole before. open_part: opens one file as an InferenceSession."""
        return_large_blocks()
        self._folder, self._facts, self._head, self._open = folder, facts, head, open_part
        self._stages = Placement()  # of those that have run
        self._placed: set[str] = set()

    @property
    def placement(self) -> Placement:
        """Where the nodes of what has run so far run."""
        return self._stages if self._head is None else self._head.placement + self._stages

    def get_inputs(self) -> tuple[Port, ...]:
        return self._facts.inputs

    def get_outputs(self) -> tuple[Port, ...]:
        return self._facts.outputs

    def run(self, output_names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Every output, or those named, in order. What no later stage reads is dropped at once."""
        maps = {name: RowStore.of(array) for name, array in feed.items() if array.ndim == 4}
        try:
            self._run_all(feed, maps)
            names = [port.name for port in self._facts.outputs] if output_names is None else output_names
            return [maps[name].whole() for name in names]
        finally:
            for store in maps.values():
                store.close()

    def _run_all(self, feed: Mapping[str, Any], maps: dict[str, RowStore]) -> None:
        """Put every output into `maps`."""
        wanted = {port.name for port in self._facts.outputs}
        if self._head is not None:
            made = self._head.run(None, feed)
            for port in reversed(self._head.get_outputs()):  # the last one first, so that each goes once it is stored
                maps[port.name] = self._stored(made.pop(), port.name in wanted)
        moments: dict[str, Moments] = {}
        for index, stage in enumerate(self._facts.stages):
            for norm in stage.norms:
                if norm.source not in moments:
                    moments[norm.source] = Moments.of_map(maps[norm.source])
            moments |= self._run_stage(index, maps, moments, wanted)
            read_later = {port.name for later in self._facts.stages[index + 1 :] for port in later.reads}
            for name in maps.keys() - read_later - wanted:
                maps.pop(name).close()

    def _run_stage(
        self, index: int, maps: dict[str, RowStore], moments: Mapping[str, Moments], wanted: set[str]
    ) -> dict[str, Moments]:
        """Run one stage over all strips; puts what it gives into `maps`, and returns their statistics."""
        stages = self._facts.stages
        stage = stages[index]
        session = self._open(self._folder / stage.file)
        if index + 1 < len(stages):
            prefetch(self._folder / name for name in stages[index + 1].weights)
        given: dict[str, NDArray[Any]] = {}
        for norm in stage.norms:
            given[norm.mean], given[norm.inverse] = moments[norm.source].normal(norm.groups, norm.epsilon)
        for port in stage.gives:
            maps[port.name] = self._empty(port, port.name in wanted)
        seen = {port.name: Moments() for port in stage.gives if port.seen}
        names = [name for port in stage.gives for name in (port.name, *port.seen)]
        for start, first, last in stage.strips():
            for port in stage.reads:
                rows = (start * port.scale, (start + stage.strip_rows) * port.scale)
                given[port.name] = maps[port.name].read(*rows)
            made = dict(zip(names, session.run(names, given), strict=True))
            for port in stage.gives:
                kept = slice((first - start) * port.scale, (last - start) * port.scale)
                maps[port.name].write(first * port.scale, made[port.name][:, :, kept])
                if port.seen:
                    seen[port.name].add(*(made[name][:, :, kept, 0] for name in port.seen), port.shape[3])
            del made
        if stage.file not in self._placed:
            self._placed.add(stage.file)
            self._stages += Placement.of(session)
        return seen

    def _empty(self, port: StripPort, stays: bool) -> RowStore:
        return RowStore.empty(port.shape, np.dtype(port.dtype), self._place(port.shape, np.dtype(port.dtype), stays))

    def _stored(self, array: NDArray[Any], stays: bool) -> RowStore:
        if self._place(array.shape, array.dtype, stays) is None:
            return RowStore.of(array)
        store = RowStore.empty(array.shape, array.dtype, self._folder.parent)
        store.write(0, array)
        return store

    def _place(self, shape: Sequence[int], dtype: np.dtype[Any], stays: bool) -> Path | None:
        """The folder of a map's file; None for memory."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return None if stays or size <= self._facts.held_bytes else self._folder.parent


def write_strips(folder: Path, facts: StripsFacts) -> None:
    """Write strips.json."""
    (folder / STRIPS_NAME).write_text(json.dumps(asdict(facts), indent=1), encoding="utf-8")


def read_strips(folder: Path) -> StripsFacts | None:
    """What a build's folder says of strips; None where its graph does not run so."""
    path = folder / STRIPS_NAME
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    stages = tuple(
        StageFacts(
            **{
                **stage,
                "weights": tuple(stage["weights"]),
                "reads": tuple(map(_strip_port, stage["reads"])),
                "gives": tuple(map(_strip_port, stage["gives"])),
                "norms": tuple(NormFacts(**norm) for norm in stage["norms"]),
            }
        )
        for stage in stored["stages"]
    )
    ports = (
        tuple(Port(port["name"], port["type"], tuple(port["shape"])) for port in stored[side])
        for side in ("inputs", "outputs")
    )
    return StripsFacts(stages, *ports, held_bytes=int(stored["held_bytes"]))


def _strip_port(stored: Mapping[str, Any]) -> StripPort:
    return StripPort(**{**stored, "shape": tuple(stored["shape"]), "seen": tuple(stored["seen"])})
