"""What a build says of itself, in its build.json, and whether its files are still those that it names."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_BUILD_FACTS_BYTES
from tintype.engine.run.chain import PARTS_NAME
from tintype.engine.run.strips import STRIPS_NAME
from tintype.files import read_plain, sha256_of
from tintype.kernels.graph.priors import AS_IS
from tintype.recent import Recent

FACTS_NAME = "build.json"
SETTLED_NS = 2 * 10**9  # no clock of a file system ticks more slowly: what is written next has another time of change
HASHES_KEPT = 4096  # of files, a handful a build: who draws in many sizes in turn opens hundreds


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
class Facts:
    """build.json, as `cache.write_facts` writes it."""

    identity: BuildIdentity
    files: Mapping[str, _FileFacts]
    report: dict[str, Any]

    def __post_init__(self) -> None:
        if not {"model.onnx", PARTS_NAME, STRIPS_NAME} & set(self.files):
            raise strict_json.Misfit("it names no graph")
        strict_json.read(_ReportFacts, self.report, "report")


def read_facts(folder: Path) -> Facts | None:
    """build.json, or None where it is missing or isn't as it should be."""
    try:
        return _facts_in(read_plain(folder / FACTS_NAME, MAX_BUILD_FACTS_BYTES))
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=8)  # who opens a build asks several times
def _facts_in(text: bytes) -> Facts:
    return strict_json.read(Facts, strict_json.parse(text))


_hashed: Recent[tuple[int, ...], str] = Recent(HASHES_KEPT)  # sha256 of files, by all that a write to one changes


def current_sha256(path: Path, status: os.stat_result) -> str:
    """A file's sha256; status is its own, from before. Raises OSError."""
    if os.name != "posix" or time.time_ns() - status.st_ctime_ns < SETTLED_NS:  # st_ctime elsewhere: when it was made
        return sha256_of(path)
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return _hashed.get(key) or _hashed.put(key, sha256_of(path))
