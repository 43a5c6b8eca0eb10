"""One open graph. Same inputs, same build, same thread count: the same bytes."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tintype.engine.device import plugins
from tintype.engine.device.machine import default_threads
from tintype.engine.device.providers import Target, new_session, plain_reason
from tintype.engine.device.remedies import says_no_memory
from tintype.engine.run import arena, cuda
from tintype.engine.run.binding import run_to_device
from tintype.engine.run.bound_run import BoundRun
from tintype.engine.run.chain import Chain, read_chains
from tintype.engine.run.device_session import Constant, DeviceSession, stays_on_device
from tintype.engine.run.pages import can_give_back, demand_mappable
from tintype.engine.run.placement import Placement
from tintype.engine.run.session_options import MODEL, NUMPY_TYPES, ONCE, UNREAD, session_options
from tintype.engine.run.strips import HEAD, TAIL, Strips, read_strips
from tintype.engine.run.switch import Stop, Switch, Switched
from tintype.errors import BuildError, CancelledError, MemoryBudgetError, ProviderError, TintypeError

Answer = TypeVar("Answer")


class Session:
    """A graph ready to run on one target. Use as a context manager, or `close` it.

    A build may hold a second graph for what depends on the prompt alone; `hold` runs it once for many runs.
    """

    def __init__(
        self,
        inner: Any,
        target: Target,
        path: Path,
        placement: Placement,
        threads: int,
        once: Any = None,
        switch: Switch | None = None,
        unread: frozenset[str] = frozenset(),
    ) -> None:
        """once: the session of the build's `once.onnx`, whose outputs are inputs of `inner`. unread: inputs that may be
        given, and that nothing reads.

        switch: that `inner` and `once` run under; None can't be ended.
        """
        self.target = target
        self.path = path
        self._placement = placement
        self.threads = threads
        self.run_seconds = 0.0  # spent inside ONNX Runtime so far
        self._running = threading.Lock()
        self._switch = switch or Switch()
        self._unread = unread
        self._holders = weakref.WeakSet[BoundRun]()  # whose tensors would keep `inner` alive
        ports = [*inner.get_inputs(), *(once.get_inputs() if once is not None else ())]
        self._held_names = tuple(o.name for o in once.get_outputs()) if once is not None else ()
        self.once_names = frozenset(i.name for i in once.get_inputs()) if once is not None else frozenset[str]()
        self._step_names = frozenset(i.name for i in inner.get_inputs()) - set(self._held_names)
        self.input_shapes: dict[str, tuple[int | str | None, ...]] = {
            port.name: tuple(port.shape) for port in ports if port.name not in self._held_names
        }
        self.input_types: dict[str, type] = {
            port.name: NUMPY_TYPES[port.type] for port in ports if port.name in self.input_shapes
        }
        self.output_names: tuple[str, ...] = tuple(o.name for o in inner.get_outputs())
        self.output_shapes = {o.name: tuple(o.shape) for o in inner.get_outputs()}
        self.output_types = {o.name: NUMPY_TYPES[o.type] for o in inner.get_outputs()}
        self._inner: Any = inner
        self._once: Any = once

    @property
    def placement(self) -> Placement:
        """Where nodes run; of a graph in parts, those that have run so far."""
        chains = (each.placement for each in (self._inner, self._once) if isinstance(each, Chain | Strips))
        return sum(chains, self._placement)

    @property
    def device_bytes(self) -> int:
        """What lies in a device's memory for as long as the session is open: weights, held inputs and outputs.

        Activations are not in it, which ONNX Runtime tells nobody; 0 on the processor.
        """
        if self.target.is_host or self._inner is None:
            return 0
        held = sum(holder.device_bytes for holder in self._holders)
        if self.is_in_parts:  # of which one is there at a time
            return held + max(map(_graph_bytes, self.path.parent.glob("*.onnx")), default=0)
        graphs = [self.path, self.path.with_name(ONCE)] if self.path.name == MODEL else [self.path]
        return held + sum(map(_graph_bytes, graphs))

    @property
    def is_in_parts(self) -> bool:
        """Whether the graph runs as parts, one after another."""
        return isinstance(self._inner, Chain | Strips)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.input_shapes)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name. The arrays belong to the caller: a later run does not write into them.

        Raises BuildError for inputs that the graph does not have, and when the graph fails.
        """
        self._demand_open()
        self._known(inputs)
        kept = self.hold({name: value for name, value in inputs.items() if name in self.once_names}, bound=False)
        return kept.run({name: value for name, value in inputs.items() if name not in kept.names})

    def hold(self, inputs: Mapping[str, NDArray[Any]], *, bound: bool | None = None) -> BoundRun:
        """Keep some inputs over many runs; what depends on them alone is computed here, once.

        bound: keep them, and what goes in and out at each run, in tensors that are made once, where the target
        computes; None is wherever that isn't this process's own memory.
        """
        bound = not self.target.is_host if bound is None else bound
        on_device = isinstance(self._inner, DeviceSession)  # which has its own tensors, where CUDA graphs find them
        bound = bound and not on_device and not self.is_in_parts  # whose tensors pass from part to part
        self._demand_open()
        feed = self._read(inputs)
        missing = self.once_names - set(feed)
        if missing:
            raise BuildError(
                f"{self.path.name} needs {', '.join(sorted(missing))}", fix="give every input of the graph"
            )
        given: dict[str, Any] = {name: value for name, value in feed.items() if name in self._step_names}
        once, known = self._once, {name: feed[name] for name in self.once_names}
        if once is not None and bound:
            given |= self.execute(lambda: run_to_device(once, self.target, known))
        elif once is not None:
            given |= dict(zip(self._held_names, self.execute(lambda: once.run(None, known)), strict=True))
        if on_device:
            given = {name: Constant(value) for name, value in given.items()}
        held = BoundRun(self, frozenset(feed), given, on_device=bound)
        self._holders.add(held)
        return held

    def step_feed(self, inputs: Mapping[str, NDArray[Any]], held: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """A run's own inputs, checked: with the held ones they have to be all."""
        self._demand_open()
        feed = self._read(inputs)
        missing = [name for name in self._step_names if name not in feed and name not in held]
        if missing:
            raise BuildError(f"{self.path.name} needs {', '.join(missing)}", fix="give every input of the graph")
        return feed

    def execute(self, run: Callable[[], Answer]) -> Answer:
        """One run, the only one of this session at a time: DirectML allows no second one, others gain nothing by it."""
        with self._running:
            started = time.perf_counter()
            try:
                with self._switch.run():
                    return self.told(run)
            finally:
                self.run_seconds += time.perf_counter() - started

    @contextlib.contextmanager
    def under(self, stop: Stop) -> Iterator[None]:
        """A time in which another thread can end this session's runs by `stop`: they raise CancelledError."""
        self._switch.stop = stop
        try:
            yield
        finally:
            self._switch.stop = None

    def told(self, call: Callable[[], Answer]) -> Answer:
        """A call into ONNX Runtime whose failures are told in our words."""
        try:
            return call()
        except TintypeError:
            raise
        except Exception as error:  # ORT raises its own unrelated classes, one a status code
            if self._switch.is_off:
                raise CancelledError(f"the run of {self.path.name} was ended", fix="begin it again") from None
            if _is_lost(error):
                plugins.mark_lost(self.target.plugin)
            # Without its frames, which would keep ONNX Runtime's session alive as long as somebody keeps the error.
            raise _run_error(self.path, self.target, error) from error.with_traceback(None)

    @property
    def inner(self) -> Any:
        """ONNX Runtime's own session. Raises BuildError when this one is closed."""
        self._demand_open()
        return self._inner

    def _demand_open(self) -> None:
        if self._inner is None:
            raise BuildError(f"the session of {self.path.name} is closed", fix="open it again with open_session")

    def _read(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Those inputs that something reads, checked."""
        self._known(inputs)
        return {name: self._checked(name, value) for name, value in inputs.items() if name not in self._unread}

    def _known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.input_shapes and name not in self._unread:
                known = ", ".join(self.input_shapes)
                raise BuildError(f"{self.path.name} has no input {name!r}", fix=f"its inputs are {known}")

    def close(self) -> None:
        """Give weights, arena and threads back. Closing twice is fine."""
        self._inner = self._once = None
        for holder in self._holders:
            holder.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        array = np.asarray(value, order="C")  # not ascontiguousarray, which makes a scalar a (1,)
        wanted = np.dtype(self.input_types[name])
        if array.dtype != wanted:
            raise BuildError(
                f"{name} of {self.path.name} is {array.dtype}, not {wanted}", fix=f"convert it to {wanted}"
            )
        shape = self.input_shapes[name]
        fits = len(shape) == array.ndim and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise BuildError(f"{name} of {self.path.name} has shape {array.shape}", fix=f"the graph takes {shape}")
        return array


def open_session(
    build: Path,
    target: Target,
    *,
    threads: int | None = None,
    allow_off_target: bool = False,
    optimize: bool = False,
    mapped: bool = False,
    exactness: str = "balanced",
    pinned: bool = False,
    device_bytes: int | None = None,
    standing: bool = False,
) -> Session:
    """Open a build (a folder that `ensure_build` made, or a .onnx file) on `target`.

    threads: worker threads inside an operator; None takes the physical cores that this process may use.
    allow_off_target: let heavy nodes run elsewhere than on the target.
    optimize: let ONNX Runtime optimize the graph while opening. Builds for the processor are optimized already.
    mapped: make no faster copies of weights; standing: segments stay open; see BuildOptions for both.
    exactness, device_bytes: see `cuda.for_session`.
    pinned: the build is for one shape, so that a device may replay its runs.

    Raises BuildError when the graph cannot be opened, ProviderError when the device cannot or a heavy node is off it.
    """
    path = build / MODEL if build.is_dir() else build
    chains = read_chains(path.parent) if path.name == MODEL else {}
    strips = read_strips(path.parent) if path.name == MODEL else None
    if not path.is_file() and not chains and strips is None:
        raise BuildError(f"no graph at {path}", fix="build it again: tintype build BUNDLE")
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise BuildError(f"threads is {threads}", fix="give 1 or more, or leave it out for all physical cores")

    switch = Switch()
    opener = _Opener(target, threads, optimize, mapped, exactness, device_bytes, allow_off_target, switch)
    if strips is not None:
        ends = {end: Chain(path.parent, chains[end], opener.passing) for end in (HEAD, TAIL) if end in chains}
        inner = Strips(path.parent, strips, opener.passing, head=ends.get(HEAD), tail=ends.get(TAIL))
        return Session(inner, target, path, Placement(), threads, switch=switch)
    if chains:
        stays = standing and can_give_back() and target.is_host
        chain = Chain(path.parent, chains[MODEL], opener.open if stays else opener.passing, standing=stays)
        once = Chain(path.parent, chains[ONCE], opener.passing) if ONCE in chains else None
        return Session(chain, target, path, Placement(), threads, once, switch)
    whole, beside = opener.open(path, captures=cuda.wants_capture(target, pinned=pinned)), path.with_name(ONCE)
    apart = opener.open(beside) if path.name == MODEL and beside.is_file() else None
    placement = Placement.of(*(session for session in (whole, apart) if session is not None))
    if not allow_off_target:
        placement.demand(target.provider, path.name)
    told = whole.get_modelmeta().custom_metadata_map.get(UNREAD, "")
    return Session(
        whole, target, path, placement, threads, apart, switch, frozenset(told.split(",")) if told else frozenset()
    )


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens the graphs of one build; see `open_session` for each field."""

    target: Target
    threads: int
    optimize: bool
    mapped: bool
    exactness: str
    device_bytes: int | None
    allow_off_target: bool
    switch: Switch

    def open(self, graph: Path, *, captures: bool = False, shares: bool = True, keeps_tensors: bool = True) -> Any:
        """A graph's session. captures: as a CUDA graph; shares: the arena of all; keeps_tensors: on a device."""
        target = self.target
        try:
            demand_mappable(_graph_files(graph))
        except MemoryError as error:
            raise _open_error(graph, target, error) from error
        # What a device fuses is decided when it opens the graph: such builds are saved as they were lowered.
        optimized = self.optimize or not target.is_host
        told = cuda.for_session(target, exactness=self.exactness, device_bytes=self.device_bytes, captures=captures)
        options = session_options(target, threads=self.threads, optimize=optimized, mapped=self.mapped)
        if target.is_host and shares:
            arena.use_shared(options)
        try:
            inner = Switched(_open(graph, told, options), self.switch)
        except TintypeError as error:
            if captures and "graph capture" in str(error.__cause__):  # a node is on the host: slower, and as right
                return self.open(graph)
            raise
        if not keeps_tensors or not stays_on_device(target):
            return inner
        return DeviceSession(inner, target, types=NUMPY_TYPES, graph_ids=cuda.GraphIds() if captures else None)

    def passing(self, graph: Path) -> Any:
        """A session for one run. It has an arena of its own, which goes with it: some parts have large maps, others
        large weights, and none both. What stays open shares one: the arena of each would stay too."""
        part = self.open(graph, shares=False, keeps_tensors=False)
        if not self.allow_off_target:
            Placement.of(part).demand(self.target.provider, graph.name)
        return part


def _graph_bytes(graph: Path) -> int:
    return sum(file.stat().st_size for file in _graph_files(graph))


def _graph_files(graph: Path) -> list[Path]:
    """A graph's files: its nodes and its weights."""
    return [file for file in (graph, graph.with_name(f"{graph.name}_data")) if file.is_file()]


def _open(path: Path, target: Target, options: Any) -> Any:
    try:
        inner = new_session(str(path), options, target)
    except TintypeError:
        raise
    except Exception as error:  # ORT raises its own unrelated classes, one a status code
        raise _open_error(path, target, error) from error
    if target.provider not in inner.get_providers():
        raise ProviderError(f"{target.provider} was left out when opening {path.name}", fix="choose provider cpu")
    return inner


def _open_error(path: Path, target: Target, error: Exception) -> TintypeError:
    text = _first_line(error)
    if not target.is_host and target.provider.removesuffix("ExecutionProvider").lower() in text.lower():
        return ProviderError(f"{target.provider} cannot open {path.name}: {text}", fix="choose provider cpu")
    if isinstance(error, MemoryError) or says_no_memory(text):
        return MemoryBudgetError(
            f"there is not enough memory to open {path.name}: {text}",
            fix="close other programs, or set a memory budget: tintype plan shows what it takes",
        )
    return BuildError(f"ONNX Runtime cannot open {path}: {text}", fix="clear the build: tintype cache clear")


def _run_error(path: Path, target: Target, error: Exception) -> TintypeError:
    text = _first_line(error)
    if says_no_memory(text):
        return MemoryBudgetError(
            f"{path.name} ran out of memory: {text}", fix="ask for a smaller picture, or fewer at once"
        )
    if not target.is_host and _is_lost(error):
        again = "try again, the device is opened anew" if plugins.is_registered(target.plugin) else "start it again"
        return ProviderError(
            f"the {target.name} device was lost while it ran {path.name}: {plain_reason(error)}",
            fix=f"{again}; if it stays so, update the device's driver, or choose provider cpu",
        )
    return BuildError(f"{path.name} failed on {target.name}: {text}", fix="check the sizes of the inputs")


def _is_lost(error: Exception) -> bool:
    """Whether a device's driver gave it up: as Dawn (WebGPU) says it, or Direct3D by its codes for removed and hung."""
    text = str(error).lower()
    return any(sign in text for sign in ("device] is lost", "device lost", "device_lost", "887a0005", "887a0006"))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
