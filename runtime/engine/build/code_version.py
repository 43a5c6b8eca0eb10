"""A digest of the code that makes builds and reads them: a build made by other code is another build.

It covers every module of the kernels and the engine, as nearly all of them are in reach of the child process that
builds, and a list kept by hand forgets one. Comments, docstrings and empty lines don't count, so that a build outlives
them. What is read at each start are bytes; the rest is kept in the cache, by their digest.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from tintype import strict_json
from tintype.engine.build import cache
from tintype.files import read_cached, write_cached

PACKAGES = ("tintype.kernels", "tintype.engine")
KEPT = 8  # versions that one cache remembers: more than share it


@dataclass(frozen=True, slots=True)
class _Kept:
    versions: dict[str, str]  # by the digest of all bytes


@functools.cache
def lowering_version() -> str:
    """12 hexadecimal digits, the same for the same code whatever Python runs it."""
    sources = read_sources(resources.files(package) for package in PACKAGES)
    raw, path = bytes_digest(sources)[:24], cache.cache_folder() / "costs" / "lowering.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = strict_json.read(_Kept, strict_json.parse(read_cached(path))).versions
    if raw not in known:
        known = {**dict([*known.items()][1 - KEPT :]), raw: version_of(sources)}
        write_cached(path, strict_json.dump(_Kept(known)))
    return known[raw]


def read_sources(packages: Iterable[Traversable]) -> dict[str, bytes]:
    """The modules of packages, and what they read, by their paths, from folders or from within an archive."""
    sources = {}
    for package in packages:
        for entry in sorted(package.iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith((".py", ".json")):
                sources[f"{package.name}/{entry.name}"] = entry.read_bytes()
            elif entry.is_dir():
                sources |= {f"{package.name}/{name}": source for name, source in read_sources([entry]).items()}
    return sources


def bytes_digest(sources: Mapping[str, bytes]) -> str:
    """sha256, in hexadecimal digits, of files by their names."""
    digest = hashlib.sha256()
    for name, source in sources.items():
        digest.update(f"{name}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def version_of(sources: Mapping[str, bytes]) -> str:
    """12 hexadecimal digits that tell the code of modules from other code."""
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(name.encode() + b"\0" + (code_of(source) if name.endswith(".py") else source) + b"\0")
    return digest.hexdigest()[:12]


# A string, or a comment; what begins within a string is neither. Strings of three quotes come first.
_TOKEN = re.compile(
    rb'''[rRbBuUfF]{0,2}(?P<string>"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"'''
    rb"""|'(?:\\.|[^'\\\n])*')|(?P<comment>#[^\n]*)""",
    re.DOTALL,
)


def code_of(source: bytes) -> bytes:
    """A module's text without comments, empty lines, and strings of three quotes that are statements (docstrings).

    By its text, not by tokens or a syntax tree: those take ten times as long, and differ from one Python to the next.
    """
    source, strings = source.replace(b"\r\n", b"\n"), []

    def placeholder(token: re.Match[bytes]) -> bytes:
        text, line = token[0], source[source.rfind(b"\n", 0, token.start()) + 1 : token.start()]
        alone = (
            text.endswith((b'"""', b"'''")) and not line.strip() and source[token.end() :].lstrip(b" \t")[:1] in b"\n#"
        )
        if token["comment"] or alone:
            return b""
        strings.append(text)
        return b"\0"

    lines = (line.rstrip() for line in _TOKEN.sub(placeholder, source).split(b"\n"))
    code = b"\n".join(line for line in lines if line)
    return b"\0".join((code, *strings))
