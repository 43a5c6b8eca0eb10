"""A graph that runs as several graphs, one open at a time: what they need in memory is the most that one of them needs.

Stands where ONNX Runtime's InferenceSession would. Each part is opened from its mapped file, run and dropped, while the
operating system already reads the next one's weights. Or the parts stay open, which costs some hundred kilobytes each,
and only their weights come and go.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.engine.run.heap import return_large_blocks
from tintype.engine.run.pages import Span, beyond, give_back, mapped_spans
from tintype.engine.run.placement import Placement
from tintype.errors import BuildError
from tintype.files import read_cached

PARTS_NAME = "parts.json"  # in a build's folder, in place of model.onnx
_PIECE = 16 * 2**20  # read ahead where the system can't be asked to


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the whole."""

    name: str
    type: str  # as ONNX Runtime writes it: tensor(float)
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One graph of a chain: its file in the build's folder, and what it reads and gives by name."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]  # the files that hold its weights


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What parts.json says of one chain."""

    parts: tuple[Part, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def write_chains(folder: Path, chains: Mapping[str, ChainFacts]) -> None:
    """Write parts.json: chains by the name of the graph that they stand for (`model.onnx`, `once.onnx`)."""
    stored = {name: asdict(facts) for name, facts in chains.items()}
    (folder / PARTS_NAME).write_text(json.dumps(stored, indent=1), encoding="utf-8")


def read_chains(folder: Path) -> dict[str, ChainFacts]:
    """The chains of a build's folder; none where its graphs are whole. Raises BuildError for what can't be read."""
    path = folder / PARTS_NAME
    if not path.is_file():
        return {}
    try:
        stored = strict_json.parse(read_cached(path))
        if not isinstance(stored, dict):
            raise strict_json.Misfit("it should be an object")
        return {name: strict_json.read(ChainFacts, facts, name) for name, facts in stored.items()}
    except (OSError, ValueError) as error:
        raise BuildError(f"{path} cannot be read: {error}", fix="clear the build: tintype cache clear") from None


@dataclass(frozen=True, slots=True)
class _Standing:
    """A part that stays open, and where its weights are mapped."""

    session: Any
    weights: tuple[Span, ...]


class Chain:
    """The parts of one graph, run in turn."""

    def __init__(
        self, folder: Path, facts: ChainFacts, open_part: Callable[[Path], Any], *, standing: bool = False
    ) -> None:
        """open_part: opens one file as an InferenceSession. standing: parts stay open; see `pages.can_give_back`."""
        return_large_blocks()  # each part's memory goes back before the next one's comes
        self.placement = Placement()  # of the parts that have run
        self._folder = folder
        self._facts = facts
        self._open = open_part
        self._standing: dict[str, _Standing] | None = {} if standing else None
        self._placed: set[str] = set()
        self._last_reader = _last_readers(facts)

    def get_inputs(self) -> tuple[Port, ...]:
        return self._facts.inputs

    def get_outputs(self) -> tuple[Port, ...]:
        return self._facts.outputs

    def run(self, output_names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Every output, or those named, in order. What no later part reads is dropped at once."""
        values = dict(feed)
        parts = self._facts.parts
        for index, part in enumerate(parts):
            session, weights = self._opened(part)
            following = parts[(index + 1) % len(parts)]  # after the last one the first: there is a next call, mostly
            prefetch(self._folder / name for name in following.weights)
            made = session.run(list(part.outputs), {name: values[name] for name in part.inputs})
            give_back(weights)
            if part.file not in self._placed:
                self._placed.add(part.file)
                self.placement += Placement.of(session)
            del session
            for name in part.inputs:
                if self._last_reader[name] == index and name not in feed:
                    del values[name]
            # Copies: an array as it comes keeps all the memory of the session that made it.
            values.update((name, array.copy()) for name, array in zip(part.outputs, made, strict=True))
            del made
        names = [port.name for port in self._facts.outputs] if output_names is None else output_names
        return [values[name] for name in names]

    def _opened(self, part: Part) -> tuple[Any, tuple[Span, ...]]:
        """A part's session, and where the weights lie that have to leave memory after its run."""
        path = self._folder / part.file
        if self._standing is None:
            return self._open(path), ()
        if part.file not in self._standing:
            files = [self._folder / name for name in part.weights]
            before = mapped_spans(files)
            session = self._open(path)
            weights = tuple(beyond(mapped_spans(files), before))
            if files and not weights:  # mapped where they aren't found: what cannot be given back must not stay
                return session, ()
            self._standing[part.file] = _Standing(session, weights)
        known = self._standing[part.file]
        return known.session, known.weights


def prefetch(files: Iterable[Path]) -> None:
    """Have the system read files into its cache meanwhile; they take no memory of this process."""
    if hasattr(os, "posix_fadvise"):
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return
    threading.Thread(target=_read_through, args=(tuple(files),), daemon=True).start()


def _read_through(files: tuple[Path, ...]) -> None:
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(_PIECE):
                pass


def _last_readers(facts: ChainFacts) -> dict[str, int]:
    kept = len(facts.parts)
    last = {name: index for index, part in enumerate(facts.parts) for name in part.inputs}
    return last | {port.name: kept for port in facts.outputs}
