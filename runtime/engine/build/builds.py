"""Canonical graph -> build: lowered and optimized for one machine, made once, in a child process.

The child is where onnx is imported; its memory never counts here. Two processes that start together build once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tintype.engine.build import cache
from tintype.engine.build.child import (
    DISK,
    MEMORY,
    REFUSED,
    UNCUT,
    ChildError,
    answer_in,
    file_lock,
    kind_of,
    run_child,
)
from tintype.engine.build.code_version import lowering_version
from tintype.engine.build.facts import BuildIdentity
from tintype.engine.build.lower import Job
from tintype.engine.build.options import ANY_SHAPE, BuildOptions
from tintype.engine.device.devices import device_identity
from tintype.engine.device.installation import ort_version
from tintype.engine.device.machine import cpu_identity, default_threads
from tintype.engine.device.native import NONE, native_version
from tintype.engine.device.providers import Target
from tintype.engine.run.session import Session, open_session
from tintype.errors import BuildError, RequestError, TintypeError, UncutError
from tintype.uses import GraphRef

Made = TypeVar("Made")


class GraphSource(Protocol):
    """What the engine needs to know of a bundle."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    def graph_path(self, role: str, variant: str = "full") -> Path: ...
    def largest(self, role: str, variant: str = "full") -> Mapping[str, float] | None: ...
    def changed_weights(self, role: str, variant: str = "full") -> Path | None: ...


BYTES_TO_BUILD = 2  # of memory for each byte of a graph's weights
BUILDER_BYTES = 120 * 2**20  # of a process that makes builds, with all that it imports
FULL_BYTES = 2**20  # a disk with less than that free is full


def ensure_build(
    bundle: GraphSource, role: str, target: Target, *, variant: str = "full", options: BuildOptions = ANY_SHAPE
) -> Path:
    """The folder of the build of one graph, made first when it is missing, damaged or of another machine.

    Raises BundleError when the bundle has no such graph, BuildError when it cannot be lowered or written, RequestError
    when it can't be cut as the options want it.
    """
    options = with_kernels_settled(bundle, role, target, variant=variant, options=options)
    identity = identify(bundle, role, target, variant=variant, options=options)
    source = bundle.graph_path(role, variant)
    folder = cache.builds_folder() / identity.key
    if folder.is_dir() and cache.damage(folder) is None:
        cache.mark_used(folder)
        return folder
    with file_lock(folder.with_suffix(".lock")):
        if folder.is_dir():
            if cache.damage(folder) is None:  # another process built it while we waited
                return folder
            cache.discard(folder)
        facts = {"largest": bundle.largest(role, variant), "changed": bundle.changed_weights(role, variant)}
        _build_into(folder, source, target, identity, options, facts)
    cache.discard_stale(identity)
    return folder


def begin_builds(
    bundle: GraphSource, wanted: Iterable[tuple[GraphRef, BuildOptions]], target: Target, *, free_bytes: int
) -> None:
    """Begin those builds that are missing, by graph, in one child process, where there is memory for all at once.

    Whoever wants one calls `ensure_build`, which waits for it. What fails, fails there again, with its error.
    """
    missing = {}
    for ref, options in wanted:
        folder = cache.builds_folder() / build_key(bundle, ref.role, target, variant=ref.variant, options=options)
        if not folder.is_dir():  # one that is damaged is found out where it is opened
            missing[folder] = ref, options
    stored = sum(stored_bytes(bundle.graph_path(ref.role, ref.variant)) for ref, _ in missing.values())
    if len(missing) < 2 or stored * BYTES_TO_BUILD > free_bytes:
        return
    locked = threading.Event()
    # A daemon: a program that ends doesn't wait for it, and the child ends with the program.
    threading.Thread(target=_make_together, args=(bundle, missing, target, locked), daemon=True).start()
    locked.wait()  # or else the caller would build the first one itself


def reckoned_build_bytes(graph: Path) -> int:
    """The most that the process which makes a graph's build is expected to have."""
    return BUILDER_BYTES + BYTES_TO_BUILD * stored_bytes(graph)


def stored_bytes(graph: Path) -> int:
    """A graph's file and those of its weights."""
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))


def _make_together(
    bundle: GraphSource, wanted: Mapping[Path, tuple[GraphRef, BuildOptions]], target: Target, locked: threading.Event
) -> None:
    """Make builds, by their folders, in one child process; locked is set once nobody else can begin one of them."""
    with contextlib.ExitStack() as locks:
        locks.callback(locked.set)
        locks.enter_context(contextlib.suppress(TintypeError, OSError, ChildError))
        jobs: dict[Path, Job] = {}
        for folder in sorted(wanted):  # in one order everywhere: two processes that wait for one another wait for ever
            locks.enter_context(file_lock(folder.with_suffix(".lock")))
            if not folder.is_dir():
                ref, options = wanted[folder]
                made = locks.enter_context(_beside(folder))
                jobs[folder] = Job(
                    source=bundle.graph_path(ref.role, ref.variant),
                    folder=made,
                    target=target,
                    options=options,
                    costs=_costs_path(),
                    weights=cache.weights_folder(),
                    largest=bundle.largest(ref.role, ref.variant),
                    changed=bundle.changed_weights(ref.role, ref.variant),
                )
        locked.set()
        text = json.dumps([job.as_dict() for job in jobs.values()])
        results = run_child("tintype.engine.build.lower", text)["results"] if jobs else []
        for (folder, job), said in zip(jobs.items(), results, strict=True):
            ref, options = wanted[folder]
            identity = identify(bundle, ref.role, target, variant=ref.variant, options=options)
            with contextlib.suppress(ChildError):
                _put_in_place(job.folder, folder, identity, answer_in(said))


def find_build(
    bundle: GraphSource, role: str, target: Target, *, variant: str = "full", options: BuildOptions = ANY_SHAPE
) -> Path | None:
    """The build's folder when it is in the cache and whole, else None; builds nothing."""
    options = with_kernels_settled(bundle, role, target, variant=variant, options=options)
    folder = cache.cache_folder() / "builds" / build_key(bundle, role, target, variant=variant, options=options)
    if not folder.is_dir():
        return None
    cache.builds_folder()  # refused where others could have put it there
    return folder if cache.damage(folder) is None else None


def build_key(
    bundle: GraphSource, role: str, target: Target, *, variant: str = "full", options: BuildOptions = ANY_SHAPE
) -> str:
    """24 hexadecimal digits that name a build; it goes into the record of a picture."""
    options = with_kernels_settled(bundle, role, target, variant=variant, options=options)
    return identify(bundle, role, target, variant=variant, options=options).key


def build_id(folder: Path) -> str:
    """A build's key and the kernels that were chosen for it: two builds of one id give the same bytes."""
    chosen = [choice["chosen"] for choice in cache.read_report(folder).get("choices", ())]
    return f"{folder.name}-{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]}"


def identify(
    bundle: GraphSource, role: str, target: Target, *, variant: str = "full", options: BuildOptions = ANY_SHAPE
) -> BuildIdentity:
    """Everything that a build depends on."""
    options = _settled(options, target)
    return BuildIdentity(
        bundle=bundle.hash,
        name=bundle.name,
        role=role,
        variant=variant,
        target=target.name,
        ort=ort_version(),
        cpu=device_identity(target),
        lowering=lowering_version(),
        shape=options.shape,
        plan=options.plan,
        native=native_version() if target.is_host else NONE,
    )


def open_role(
    bundle: GraphSource,
    role: str,
    target: Target,
    *,
    variant: str = "full",
    options: BuildOptions = ANY_SHAPE,
    threads: int | None = None,
    device_bytes: int | None = None,
) -> Session:
    """A session of a build, as `use_build` has it.

    threads: worker threads of the session; None is those of the options. device_bytes: the most that it may hold in a
    CUDA device's memory; None sets no bound.
    """
    threads = options.threads if threads is None else threads

    def opened(folder: Path) -> Session:
        return open_session(
            folder,
            target,
            threads=threads,
            mapped=options.mapped,
            exactness=options.exactness,
            pinned=bool(options.dims),
            device_bytes=device_bytes,
            standing=options.standing,
        )

    return use_build(bundle, role, target, opened, variant=variant, options=options)


def use_build(
    bundle: GraphSource,
    role: str,
    target: Target,
    use: Callable[[Path], Made],
    *,
    variant: str = "full",
    options: BuildOptions = ANY_SHAPE,
) -> Made:
    """What a use makes of a build's folder; a build that it refuses with a BuildError is made again once.

    Such a build doesn't open, or another process took it away.
    """
    folder = ensure_build(bundle, role, target, variant=variant, options=options)
    try:
        return use(folder)
    except BuildError:
        cache.discard(folder)
        return use(ensure_build(bundle, role, target, variant=variant, options=options))


def lower_into(
    source: Path,
    folder: Path,
    target: Target,
    *,
    lowered: bool = True,
    options: BuildOptions = ANY_SHAPE,
    weights: Path | None = None,
    largest: Mapping[str, float] | None = None,
    changed: Path | None = None,
) -> dict[str, Any]:
    """Run the child that writes `folder`/model.onnx from a canonical graph; returns its report.

    lowered: False only lets ONNX Runtime optimize the graph, which is what a kernel is compared with.
    weights: the folder where builds share large weights, if any. largest: how large the graph's values get, by name,
    where that was measured; else it is found on noise where it matters. changed: see `Job`.
    """
    job = Job(
        source=source,
        folder=folder,
        target=target,
        lowered=lowered,
        options=options,
        costs=_costs_path(),
        weights=weights,
        largest=largest,
        changed=changed,
    )
    try:
        (said,) = run_child("tintype.engine.build.lower", json.dumps([job.as_dict()]))["results"]
        return answer_in(said)
    except ChildError as error:
        if error.kind == REFUSED and error.fix is not None:
            raise RequestError(error.message, fix=error.fix) from None
        message, kind = error.message, error.kind
    least = max(FULL_BYTES, stored_bytes(source))  # of a disk that isn't full: it holds the graph once more
    if kind is None and shutil.disk_usage(folder).free < least:  # ONNX Runtime says only that it could not write
        message, kind = f"no space left on the disk of {folder}", DISK
    message = f"{source} cannot be built for {target.name}: {message}"
    if kind == UNCUT:
        raise UncutError(message, fix=_fix_for(kind))
    raise BuildError(message, fix=_fix_for(kind), kind=kind)


def is_timed(folder: Path) -> bool:
    """Whether the kernels of a build were chosen by timing them on this machine."""
    return cache.read_report(folder).get("timed") is True


def with_kernels_settled(
    bundle: GraphSource, role: str, target: Target, *, variant: str = "full", options: BuildOptions
) -> BuildOptions:
    """The same options, and whether kernels are timed: where that is left open, whether such a build is there."""
    if options.timed is not None:
        return options
    timed = replace(options, timed=True)
    choosable = bool(options.dims) and target.is_host
    there = choosable and find_build(bundle, role, target, variant=variant, options=timed) is not None
    return timed if there else replace(options, timed=False)


def _settled(options: BuildOptions, target: Target) -> BuildOptions:
    """The same options with what they leave open filled in, as far as it decides what is built."""
    threads = (options.threads or default_threads()) if options.dims and target.is_host else None
    return replace(options, threads=threads)


def _costs_path() -> Path:
    """Where the times of kernels are kept: one file for each processor, ONNX Runtime and state of all kernels."""
    facts = "\0".join((cpu_identity(), ort_version(), lowering_version(), native_version()))
    return cache.cache_folder() / "costs" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder for a build that is being made, beside its place. The caller holds the lock.

    It is moved to its place itself, so that a process that is killed then leaves nothing behind.
    """
    # What a killed process left behind; nobody else can be at it, we hold the lock.
    for left in folder.parent.glob(f".partial-{folder.name}-*"):
        cache.discard(left)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".partial-{folder.name}-"))
    try:
        yield made
    finally:
        cache.discard(made)


def _put_in_place(made: Path, folder: Path, identity: BuildIdentity, report: Mapping[str, Any]) -> None:
    """Say what a build is, and move it to its place in one step."""
    cache.write_facts(made, identity, report)
    made.replace(folder)


def _build_into(
    folder: Path,
    source: Path,
    target: Target,
    identity: BuildIdentity,
    options: BuildOptions,
    facts: Mapping[str, Any],
) -> None:
    """Make the build beside its place and move it there. The caller holds the lock."""
    try:
        with _beside(folder) as made:
            weights = cache.weights_folder()
            report = lower_into(source, made, target, options=options, weights=weights, **facts)
            _put_in_place(made, folder, identity, report)
    except OSError as error:
        kind = kind_of(error)
        message = f"the build cannot be written below {folder.parent}: {error}"
        raise BuildError(message, fix=_fix_for(kind), kind=kind) from error


def _fix_for(kind: str | None) -> str:
    if kind == DISK:
        return "free some disk space, clear the cache (tintype cache clear), or set TINTYPE_CACHE to a larger disk"
    if kind == MEMORY:
        return "close other programs and build again: tintype build BUNDLE"
    return "export the bundle again; if that does not help, report this message"
