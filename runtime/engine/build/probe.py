"""What a build costs on this machine: opened and run in a process of its own, so that its memory is seen alone.

`measured_costs` runs it once for a build and keeps the answer beside the build. The child process is
`python -m tintype.engine.build.probe`.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tintype import strict_json
from tintype.costs import Costs, GraphFacts
from tintype.engine.build.child import MEMORY, ChildError, answer_parent, run_child
from tintype.engine.build.options import BuildOptions
from tintype.engine.device.device_memory import device_bytes
from tintype.engine.device.disturbance import DISTURBED, Reading, is_calm, others_share
from tintype.engine.device.process_memory import peak_rss_bytes
from tintype.engine.device.providers import TARGETS, Target, computes_on_processor, load_onnxruntime, unusable_reason
from tintype.engine.run import arena
from tintype.engine.run.heap import return_large_blocks, trim
from tintype.engine.run.session import Session, open_session
from tintype.errors import BuildError, MemoryBudgetError
from tintype.files import read_cached, write_cached

COSTS_NAME = "costs.json"
_FORMAT = 7
CALLS = 2  # the first one also brings the weights into memory
MORE_CALLS = 3  # while other programs are busy
LOOK_SECONDS = 0.02
MOST_SECONDS = 1800.0  # against a graph that never ends; the largest we know takes minutes
MOST_IDS = 256  # token ids that every vocabulary has
_LIBRARY = re.compile(r"\.(so|dll|dylib|pyd)(\.[0-9.]+)?$", re.IGNORECASE)


def measured_costs(
    folder: Path, target: Target, options: BuildOptions, threads: int, *, facts: GraphFacts | None = None
) -> Costs:
    """The costs of a build for one shape; measured the first time, which takes as long as two calls.

    facts: of its graph; None where it lies in this process's memory and takes no inner values.

    Raises BuildError when the build fails, MemoryBudgetError when the machine hasn't the memory for it.
    """
    stored, key = folder / COSTS_NAME, _key(options, threads)
    known = known_costs(folder, options, threads)
    if known is not None:
        return known
    working, taken = (0, 0) if facts is None else (facts.live_bytes, facts.taken_bytes)
    costs = _probe(folder, target, options, threads, working)
    costs = replace(costs, held_bytes=costs.held_bytes + taken)
    rows = {name: asdict(value) for name, value in {**_stored(stored), key: costs}.items()}
    write_cached(stored, json.dumps({"format": _FORMAT, "costs": rows}, indent=1))
    return costs


def known_costs(folder: Path, options: BuildOptions, threads: int) -> Costs | None:
    """What was measured before; measures nothing.

    What was timed while other programs were busy no longer counts once they are not.
    """
    known = _stored(folder / COSTS_NAME).get(_key(options, threads))
    return None if known is not None and known.disturbed and is_calm() else known


def _key(options: BuildOptions, threads: int) -> str:
    """What a build's costs depend on besides the build."""
    return f"threads={threads}{' standing' * options.standing}"


def random_inputs(session: Session) -> dict[str, NDArray[Any]]:
    """Inputs of a session whose shapes are numbers: noise of unit variance, small ids."""
    random = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for name, shape in session.input_shapes.items():
        sizes = tuple(size if isinstance(size, int) else 1 for size in shape)
        kind = np.dtype(session.input_types[name])
        drawn = random.standard_normal(sizes, np.float32) if kind.kind == "f" else random.integers(0, MOST_IDS, sizes)
        made[name] = drawn.astype(kind)
    return made


def probe(folder: Path, target: Target, options: BuildOptions, threads: int, working_bytes: int = 0) -> Costs:
    """Open and run a build here. Only a process that did nothing else can tell its peak."""
    load_onnxruntime()
    return_large_blocks()  # as a process with a budget does
    unusable_reason(target)  # runs one node on a device, which brings its libraries and what any graph needs there
    process = psutil.Process()
    device = _DeviceMeter(target, working_bytes)
    device.watch()
    before, code_before, own_before = process.memory_info().rss, _code_bytes(process), _own_bytes(process)
    started = time.perf_counter()
    with open_session(
        folder,
        target,
        threads=threads,
        mapped=options.mapped,
        standing=options.standing,
        exactness=options.exactness,
        pinned=True,
    ) as session:
        opened = time.perf_counter()
        inputs = random_inputs(session)
        trim()
        own_open = _own_bytes(process) + device.taken(session)
        holding = time.perf_counter()
        held = session.hold({name: array for name, array in inputs.items() if name in session.once_names})
        held_seconds = time.perf_counter() - holding
        trim()
        held_bytes = max(0, _own_bytes(process) + device.taken(session) - own_open) if held.names else 0
        rest = {name: array for name, array in inputs.items() if name not in session.once_names}
        calls = _time_calls(lambda: held.run(rest), lambda: peak_rss_bytes() - before + device.most(session))
        device.stop()
        there, stays = device.most(session), device.stays(session)
        peak = peak_rss_bytes() - before + there
        used = process.memory_info().rss
        arena.shrink()  # what is in it while a graph runs is everybody's, and counted once
        arena_bytes = max(0, used - process.memory_info().rss)
        costs = Costs(
            peak_bytes=peak,
            resident_bytes=process.memory_info().rss - before - (_code_bytes(process) - code_before) + stays,
            copied_bytes=_own_bytes(process) - own_before + stays,
            open_seconds=opened - started,
            held_bytes=held_bytes,
            held_seconds=held_seconds,
            call_seconds=min(calls.seconds),
            first_seconds=calls.seconds[0] - min(calls.seconds),
            first_peak_bytes=calls.first_peak_bytes,
            arena_bytes=min(arena_bytes, peak),
            device_bytes=there,
            device_resident_bytes=stays,
            device_base_bytes=device.base_bytes,
            device_told=device.told,
            disturbed=calls.disturbed,
        )
    if target.is_host:
        return costs
    trim()
    here = max(0, process.memory_info().rss - before - (_code_bytes(process) - code_before))
    return _without_left(costs, here, device.left())


def _without_left(costs: Costs, here: int, there: int) -> Costs:
    """Costs without what stays when the graph is closed, in the process and in all on the device.

    A device's library keeps buffers and programs for whoever comes next: as an arena that never shrinks.
    """
    there = min(there, costs.device_resident_bytes)
    left = min(here + there, costs.resident_bytes)
    return replace(
        costs,
        resident_bytes=costs.resident_bytes - left,
        device_resident_bytes=costs.device_resident_bytes - there,
        arena_bytes=left,
        left_bytes=left,
    )


@dataclass(frozen=True, slots=True)
class _Calls:
    seconds: list[float]
    first_peak_bytes: int
    disturbed: bool


def _time_calls(call: Callable[[], object], peak_bytes: Callable[[], int]) -> _Calls:
    """Time calls until there are enough, and one that no other program disturbed."""
    seconds: list[float] = []
    first_peak = calm = 0
    while len(seconds) < CALLS or (calm == 0 and len(seconds) < CALLS + MORE_CALLS):
        before = Reading.now()
        call()
        after = Reading.now()
        first_peak = first_peak or peak_bytes()
        seconds.append(after.wall_seconds - before.wall_seconds)
        calm += len(seconds) > 1 and (others_share(before, after) or 0.0) <= DISTURBED
    return _Calls(seconds, first_peak, calm == 0)


class _DeviceMeter:
    """What this process has in a device's own memory beyond what it had at first.

    A graph in parts has the most while it runs, so that a thread looks all the time. Where no driver tells, it is what
    the session knows of, and what the caller takes its activations to be.
    """

    def __init__(self, target: Target, working_bytes: int) -> None:
        self._target, self._working = target, working_bytes
        found = device_bytes(target)
        self.told, self.base_bytes = found is not None, found or 0
        self._most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def watch(self) -> None:
        if self.told and not computes_on_processor(self._target):
            self._thread.start()

    def stop(self) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    def taken(self, session: Session) -> int:
        """Now."""
        if not self.told:
            return session.device_bytes
        self._most = max(self._most, found := self._beyond_base())
        return found

    def most(self, session: Session) -> int:
        """Until now, once the session has run."""
        return max(self._most, self.taken(session)) if self.told else session.device_bytes + self._working

    def stays(self, session: Session) -> int:
        """Between runs: an arena there gives nothing back while its session is open, and parts close theirs."""
        if self.told:
            return self.taken(session)
        return 0 if session.is_in_parts else self.most(session)

    def left(self) -> int:
        """Now, when no session is open."""
        return self._beyond_base() if self.told else 0

    def _beyond_base(self) -> int:
        return max(0, (device_bytes(self._target) or 0) - self.base_bytes)

    def _look(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self._most = max(self._most, self._beyond_base())


def _code_bytes(process: psutil.Process) -> int:
    """What of shared libraries is in memory: graphs that are open together share them. 0 where nobody tells."""
    try:
        maps: Any = process.memory_maps()
    except (psutil.Error, AttributeError, OSError):
        return 0
    return sum(int(entry.rss) for entry in maps if _LIBRARY.search(entry.path))


def _own_bytes(process: psutil.Process) -> int:
    """Memory that belongs to this process alone and no file stands behind."""
    info: Any = process.memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def _probe(folder: Path, target: Target, options: BuildOptions, threads: int, working_bytes: int) -> Costs:
    held = {"mapped": options.mapped, "standing": options.standing, "exactness": options.exactness}
    job = {"folder": str(folder.resolve()), "target": target.name, "threads": threads, "held": held}
    job["working_bytes"] = working_bytes
    try:
        return Costs(**run_child("tintype.engine.build.probe", json.dumps(job), MOST_SECONDS))
    except ChildError as error:
        if error.kind == MEMORY:
            raise MemoryBudgetError(
                f"this machine has not the memory to run {folder.name} once", fix="close other programs"
            ) from None
        raise BuildError(
            f"{folder.name} cannot be measured: {error.message}", fix="clear the cache: tintype cache clear"
        ) from None


def _stored(path: Path) -> dict[str, Costs]:
    try:
        stored = strict_json.parse(read_cached(path))
        if stored["format"] != _FORMAT:
            return {}
        return {key: strict_json.read(Costs, value) for key, value in stored["costs"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def main() -> int:
    """Measure the build that stdin names; answers with its costs."""
    return answer_parent(_answer)


def _answer(text: str) -> dict[str, Any]:
    job = json.loads(text)
    options = BuildOptions(**job["held"])
    costs = probe(Path(job["folder"]), TARGETS[job["target"]], options, job["threads"], job["working_bytes"])
    return asdict(costs)


if __name__ == "__main__":
    sys.exit(main())
