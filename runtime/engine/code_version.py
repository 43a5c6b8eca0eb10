"""A digest of the code that makes builds and reads them: a build made by other code is another build.

It covers every module of the kernels and the engine, as nearly all of them are in reach of the child process that
builds, and a list kept by hand forgets one. Comments, docstrings and empty lines don't count, so that a build outlives
them. What is read at each start are bytes; the rest is kept in the cache, by their digest.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from tintype import strict_json
from tintype.engine import cache

PACKAGES = ("tintype.kernels", "tintype.engine")
KEPT = 8  # versions that one cache remembers: more than share it
_BEGINS_STATEMENT = (tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


@dataclass(frozen=True, slots=True)
class _Kept:
    versions: dict[str, str]  # by the digest of all bytes


@functools.cache
def lowering_version() -> str:
    """12 hexadecimal digits, the same for the same code whatever Python runs it."""
    sources = read_sources(resources.files(package) for package in PACKAGES)
    digest = hashlib.sha256()
    for name, source in sources.items():
        digest.update(f"{name}\0{len(source)}\0".encode() + source)
    raw, path = digest.hexdigest()[:24], cache.cache_folder() / "costs" / "lowering.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = strict_json.read(_Kept, strict_json.parse(path.read_bytes())).versions
    if raw not in known:
        known = {**dict([*known.items()][1 - KEPT :]), raw: version_of(sources)}
        with contextlib.suppress(OSError):  # a cache that cannot be written is told where a build is made
            cache.write_whole(path, strict_json.dump(_Kept(known)))
    return known[raw]


def read_sources(packages: Iterable[Traversable]) -> dict[str, bytes]:
    """The modules of packages, and what they read, by name, from folders or from within an archive."""
    return {
        f"{package.name}/{file.name}": file.read_bytes()
        for package in packages
        for file in sorted(package.iterdir(), key=lambda entry: entry.name)
        if file.name.endswith((".py", ".json"))
    }


def version_of(sources: Mapping[str, bytes]) -> str:
    """12 hexadecimal digits that tell the code of modules from other code."""
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        code = code_of(source) if name.endswith(".py") else source.decode()
        digest.update(f"{name}\0{code}\0".encode())
    return digest.hexdigest()[:12]


def code_of(source: bytes) -> str:
    """A module's text without comments, empty lines and statements that are one string, as docstrings are.

    Text, not tokens or a syntax tree, whose form differs from one Python to the next.
    """
    lines = io.TextIOWrapper(io.BytesIO(source), encoding="utf-8").read().splitlines(keepends=True)
    tokens = [token for token in tokenize.tokenize(io.BytesIO(source).readline) if token.type != tokenize.NL]
    code = [token for token in tokens if token.type != tokenize.COMMENT]
    cut = [token for token in tokens if token.type == tokenize.COMMENT]
    for before, token, after in zip(code, code[1:], code[2:], strict=False):
        alone = before.type in _BEGINS_STATEMENT and after.type in (tokenize.NEWLINE, tokenize.ENDMARKER)
        if token.type == tokenize.STRING and alone:
            cut.append(token)
    for token in cut:
        (first, start), (last, end) = token.start, token.end
        rest = lines[last - 1][end:]
        for number in range(first - 1, last):
            lines[number] = ("" if number > first - 1 else lines[number][:start]) + (rest if number == last - 1 else "")
    within = {number for token in code if token not in cut for number in range(token.start[0], token.end[0])}
    rows = ((line, number in within) for number, line in enumerate(lines, 1))
    return "".join(line if in_string else f"{line.rstrip()}\n" for line, in_string in rows if in_string or line.strip())
