"""What a manifest of any kind lists: paths that stay inside, names that can be shown, no more than makes sense."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tintype.bounds import MAX_FILES, MAX_GRAPHS
from tintype.strict_json import require


def check_shown(*texts: str) -> None:
    """Misfit for a text that is printed on terminals and says nothing there, or too much."""
    for text in texts:
        require(0 < len(text) <= 200 and text.isprintable(), f"{text[:60]!r} is no name to show")


def check_listed(
    files: Mapping[str, object],
    referred: Sequence[str],
    graphs: Mapping[str, Mapping[str, object]],
    parity: Sequence[object],
) -> None:
    """Misfit unless a list of files holds what the manifest refers to, and none of its lists is absurd."""
    require(0 < len(files) <= MAX_FILES, f"files lists {len(files):,} files")
    for path in files:
        check_relative_path(path)
    for path in referred:
        check_relative_path(path)
        require(path in files, f"{path!r} is referred to but is not in the list of files")
    count = sum(len(variants) for variants in graphs.values())
    require(count <= MAX_GRAPHS, f"it has {count:,} graphs; {MAX_GRAPHS} are the most")
    require(len(parity) <= MAX_GRAPHS, f"parity lists {len(parity):,} graphs; {MAX_GRAPHS} are the most")


def check_relative_path(path: str) -> None:
    """Misfit unless `path` is a plain relative path with forward slashes that stays below where it starts."""
    plain = re.fullmatch(r'[^\x00-\x1f\\:*?"<>|]{1,1000}', path) is not None
    stays = all(part not in ("", ".", "..") for part in path.split("/"))
    require(plain and stays, f"the path {path[:200]!r} may point outside the bundle")
