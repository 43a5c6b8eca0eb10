"""What a child process finds out about a graph, once: kept in the cache by a hash of all that it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tintype import strict_json
from tintype.engine.build.cache import cache_folder
from tintype.engine.build.child import GRAPH_SECONDS, MEMORY, REFUSED, ChildError, run_child
from tintype.engine.build.code_version import lowering_version
from tintype.errors import BuildError, RequestError
from tintype.files import read_cached, write_cached

Found = TypeVar("Found")


def found_once(
    kind: type[Found],
    name: str,
    facts: Sequence[str],
    module: str,
    job: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    failed: str,
    environment: Mapping[str, str] | None = None,
) -> Found:
    """What the module answers to the job, as a dataclass. facts: what the job depends on, beside our code. job: or what
    gives it, where it takes something to make. environment: that the child has beside ours.

    Raises RequestError where the child refuses the job for what was asked, BuildError, beginning with `failed`, for
    every other failure.
    """
    key = hashlib.sha256("\0".join((*facts, lowering_version())).encode()).hexdigest()[:24]
    place = cache_folder() / "costs" / f"{name}-{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return strict_json.read(kind, strict_json.parse(read_cached(place)))
    try:
        found = run_child(module, json.dumps(job() if callable(job) else job), GRAPH_SECONDS, environment)
    except ChildError as error:
        if error.kind == REFUSED and error.fix is not None:
            raise RequestError(error.message, fix=error.fix) from None
        fix = "close other programs" if error.kind == MEMORY else "export the bundle again"
        raise BuildError(f"{failed}: {error.message}", fix=fix, kind=error.kind) from None
    write_cached(place, json.dumps(found))
    return strict_json.read(kind, found)
