"""Builds on disk. A build appears whole, by one rename, and is used only while its bytes are as they were written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from tintype import strict_json
from tintype.bounds import MAX_BUILD_FACTS_BYTES
from tintype.engine.run.chain import PARTS_NAME, read_chains
from tintype.engine.run.strips import STRIPS_NAME, read_strips
from tintype.errors import BuildError
from tintype.files import read_plain, sha256_of
from tintype.kernels.graph.priors import AS_IS

FACTS_NAME = "build.json"
BUNDLES = "bundles"  # the folder of bundles that were made of folders of ONNX graphs, see `bundle.converted`
WEIGHTS = "weights"  # the folder of a build's large weights, each named by its sha256 when it is written
NOT_LISTED = {FACTS_NAME, "costs.json"}  # what was measured of a build is written later, and is no part of it
HASH_ALWAYS_BYTES = 64 * 2**20  # files of larger builds are hashed again only when their time of change moved
SWEEP_SECONDS = 600
LEFTOVER_SECONDS = 24 * 3600  # no build takes that long
STALE_SECONDS = 14 * 24 * 3600


@dataclass(frozen=True, slots=True)
class BuildIdentity:
    """All that a build depends on; its digest is the build key."""

    bundle: str
    name: str  # the bundle's name, for people
    role: str
    variant: str
    target: str
    ort: str
    cpu: str
    lowering: str
    shape: str = "any"  # batch=2 height=64 width=64
    plan: str = "balanced"  # how exact, and where its weights lie
    native: str = "none"  # the library of our own operators, by its bytes, and its set of instructions

    @property
    def key(self) -> str:
        """24 hexadecimal digits; the bundle's name is not part of it."""
        facts = {field: value for field, value in asdict(self).items() if field != "name"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One build in the cache."""

    key: str
    path: Path
    identity: BuildIdentity | None  # None when its facts cannot be read
    bytes: int
    whole: bool  # every file is there, at its size
    used_seconds_ago: float


def cache_folder() -> Path:
    """Where builds are kept: TINTYPE_CACHE, else the user's cache folder, else one of the user's own for what is
    temporary: a container's user may have neither a name nor a home."""
    chosen = os.environ.get("TINTYPE_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return platformdirs.user_cache_path("tintype")
    except (RuntimeError, KeyError):
        folder = Path(tempfile.gettempdir(), f"tintype-cache-{os.geteuid()}")
        _make_own(folder)
        return folder


def builds_folder() -> Path:
    """The builds' folder within the cache, made when it is missing, for nobody else to write.

    Raises BuildError where it can't be made, and where others can write it: a build is as good as a program.
    """
    return _own_folder("builds")


def bundles_folder() -> Path:
    """The same for bundles that were made of folders of ONNX graphs."""
    return _own_folder(BUNDLES)


def _own_folder(name: str) -> Path:
    folder = cache_folder() / name
    for each in (folder.parent, folder):
        _make_own(each)
    return folder


def _make_own(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _demand_own(folder)
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder} cannot be made: {error.strerror}",
            fix="set TINTYPE_CACHE to a folder that you may write",
        ) from error


def _demand_own(folder: Path) -> None:
    """BuildError where another user could put a build into a folder. Who may write where is not asked on Windows."""
    if os.name != "posix":
        return
    status = folder.stat()
    if status.st_uid not in (os.geteuid(), 0):
        problem, remedy = "belongs to another user", ""
    elif status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        problem, remedy = "can be written by everybody", f"chmod o-w {shlex.quote(str(folder))}, or "
    elif status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid):
        problem, remedy = "can be written by its group", f"chmod g-w {shlex.quote(str(folder))}, or "
    else:
        return
    raise BuildError(
        f"the cache folder {folder} {problem}, who could change your builds",
        fix=f"{remedy}set TINTYPE_CACHE to a folder of your own",
    )


def _is_private(group: int) -> bool:
    """Whether a group has one user alone, as many systems make one for each."""
    import grp
    import pwd

    try:
        found, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid())
    except KeyError:  # a container's user without a name
        return group == os.geteuid()
    return found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}


def weights_folder() -> Path:
    """Where builds share large weights: each file there is a hard link of one in a build, or is swept away."""
    return cache_folder() / WEIGHTS


def cache_entries() -> list[CacheEntry]:
    """Every build in the cache, the last used first."""
    return sorted(map(_entry, _build_folders()), key=lambda entry: entry.used_seconds_ago)


def clear_cache() -> int:
    """Remove every build, what broken-off ones left, bundles and what was measured; returns the bytes freed.

    Open sessions stay usable on Unix.
    """
    folders = [cache_folder() / name for name in ("builds", "weights", "costs", "traces", BUNDLES)]
    before = bytes_on_disk(folders)
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(OSError):
                discard(path)
    left = bytes_on_disk(folders)
    if left and left == before:
        raise BuildError(f"nothing of {cache_folder()} can be removed", fix="clear it as who may write there")
    return before - left


def remove_builds(bundle: str) -> int:
    """Remove every build of a bundle, by its hash, with what it alone has of the shared weights; the bytes freed."""
    folders = [entry.path for entry in cache_entries() if entry.identity and entry.identity.bundle == bundle]
    shared = {path.stat().st_ino: path for path in weights_folder().glob("*")} if weights_folder().is_dir() else {}
    weights = {file.stat().st_ino for folder in folders for file in folder.rglob("*") if file.is_file()} & set(shared)
    places = [cache_folder() / "builds", weights_folder()]
    before = bytes_on_disk(places)
    for folder in folders:
        discard(folder)
    for number in weights:
        with contextlib.suppress(OSError):
            if shared[number].stat().st_nlink == 1:
                shared[number].unlink()
    return before - bytes_on_disk(places)


def bytes_on_disk(folders: Iterable[Path]) -> int:
    """Bytes of all files below these folders; weights that builds share count once."""
    found = {}
    for folder in folders:
        for name in _files_below(folder):
            with contextlib.suppress(OSError):  # another process may be at work there
                status = (folder / name).stat()
                found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def sweep_weights() -> None:
    """Remove shared weights that no build links to any more, once they are old enough not to be in the making."""
    folder = weights_folder()
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            status = path.stat()
            if status.st_nlink == 1 and time.time() - status.st_ctime > SWEEP_SECONDS:
                path.unlink()


def write_facts(folder: Path, identity: BuildIdentity, report: Mapping[str, Any]) -> None:
    """Write build.json: what the build is, and the size and sha256 of each of its files."""
    files = {}
    for name in sorted(_files_below(folder)):
        if name != FACTS_NAME:
            path = folder / name
            status = path.stat()
            digest = path.name if path.parent.name == WEIGHTS else sha256_of(path)
            files[name] = {"bytes": status.st_size, "sha256": digest, "mtime_ns": status.st_mtime_ns}
    facts = {"identity": asdict(identity), "files": files, "report": dict(report)}
    (folder / FACTS_NAME).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any]:
    """What the lowering told about a build: `kernels`, `choices`, `optimized`, seconds."""
    facts = _read_facts(folder)
    return dict(facts.report) if facts else {}


def damage(folder: Path) -> str | None:
    """What is wrong with a build, or None. Builds of 64 MiB and more are hashed where a time of change moved."""
    facts = _read_facts(folder)
    if facts is None:
        return f"{FACTS_NAME} is missing or unreadable"
    if facts.identity.key != folder.name:
        return "it is the build of something else"
    unlisted = sorted(set(_files_below(folder)) - set(facts.files) - NOT_LISTED)
    if unlisted:
        return f"{unlisted[0]} is none of its files"
    small = sum(expected.bytes for expected in facts.files.values()) < HASH_ALWAYS_BYTES
    for name, expected in facts.files.items():
        path = folder / name
        try:
            status = path.stat()
        except OSError:
            return f"{name} is missing"
        if status.st_size != expected.bytes:
            return f"{name} has {status.st_size:,} bytes in place of {expected.bytes:,}"
        if (small or status.st_mtime_ns != expected.mtime_ns) and sha256_of(path) != expected.sha256:
            return f"{name} has changed bytes"
    try:
        read_chains(folder)
        read_strips(folder)
    except BuildError as error:
        return error.message
    return None


def mark_used(folder: Path) -> None:
    """Remember that a build was used now; a cache that cannot be written is no obstacle."""
    with contextlib.suppress(OSError):
        os.utime(folder / FACTS_NAME)


def discard(path: Path) -> None:
    """Remove a build so that no process can open half of it: renamed first, then deleted."""
    if not path.exists():
        return
    grave = path.with_name(f".gone-{path.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        path.rename(grave)
    except OSError:
        grave = path
    if grave.is_dir():
        shutil.rmtree(grave, ignore_errors=True)
    else:
        grave.unlink(missing_ok=True)


def discard_stale(identity: BuildIdentity) -> None:
    """Remove unused older builds of the same graph: other ONNX Runtime, lowering or operators, idle for two weeks."""
    of_same = (identity.bundle, identity.role, identity.variant, identity.target)
    for path in _build_folders(made_before=time.time() - STALE_SECONDS):
        if path.name == identity.key or _idle_seconds(path) < STALE_SECONDS:
            continue
        facts = _read_facts(path)
        old = facts.identity if facts else None
        if old is not None and (old.bundle, old.role, old.variant, old.target) == of_same:
            discard(path)
    sweep_leftovers()
    sweep_weights()


def sweep_leftovers() -> None:
    """Remove what builds that were broken off left a day ago or longer, as when their process was killed."""
    folder = cache_folder() / "builds"
    for path in (*folder.glob(".partial-*"), *folder.glob(".gone-*")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                discard(path)


def _build_folders(made_before: float | None = None) -> list[Path]:
    """made_before: seconds since 1970; each new build asks for old ones, of thousands maybe."""
    with contextlib.suppress(FileNotFoundError), os.scandir(cache_folder() / "builds") as entries:
        folders = [each for each in entries if each.is_dir() and not each.name.startswith(".")]
        return [Path(each.path) for each in folders if made_before is None or each.stat().st_mtime < made_before]
    return []


def _idle_seconds(path: Path) -> float:
    """Since a build was last used or, where nothing tells that, since it was made."""
    for each in (path / FACTS_NAME, path):
        with contextlib.suppress(OSError):
            return max(0.0, time.time() - each.stat().st_mtime)
    return 0.0  # another process took it away just now


def _entry(path: Path) -> CacheEntry:
    facts = _read_facts(path)
    whole = facts is not None and all(
        (path / name).is_file() and (path / name).stat().st_size == file.bytes for name, file in facts.files.items()
    )
    size = path.stat().st_size if path.is_file() else bytes_on_disk([path])
    return CacheEntry(path.name, path, facts.identity if facts else None, size, whole, _idle_seconds(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileFacts:
    bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _WayFacts:
    seconds: float
    weight_bytes: int
    psnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChoiceFacts:
    layer: str
    chosen: str
    ways: Mapping[str, _WayFacts]
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not {self.chosen, AS_IS} <= set(self.ways) or min(way.seconds for way in self.ways.values()) <= 0:
            raise strict_json.Misfit("a layer's ways lack the one that was chosen, or take no time")


@dataclass(frozen=True, slots=True, kw_only=True)
class _PriorsFacts:
    processor: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReportFacts:
    """What is read of a report; there is more in it."""

    kernels: Mapping[str, int] = field(default_factory=dict)
    choices: tuple[_ChoiceFacts, ...] = ()
    timed: bool = False
    priors: _PriorsFacts | None = None
    others: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int = 0  # of the process that made it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """build.json, as `write_facts` writes it."""

    identity: BuildIdentity
    files: Mapping[str, _FileFacts]
    report: dict[str, Any]

    def __post_init__(self) -> None:
        if not {"model.onnx", PARTS_NAME, STRIPS_NAME} & set(self.files):
            raise strict_json.Misfit("it names no graph")
        strict_json.read(_ReportFacts, self.report, "report")


def _read_facts(folder: Path) -> _Facts | None:
    """build.json, or None where it is missing or isn't as it should be."""
    try:
        return strict_json.read(_Facts, strict_json.parse(read_plain(folder / FACTS_NAME, MAX_BUILD_FACTS_BYTES)))
    except (OSError, ValueError):
        return None


def _files_below(folder: Path) -> Iterator[str]:
    """Names of all that isn't a folder, links included, relative to it."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name).relative_to(folder).as_posix() for name in names)
