"""The library: bundles that are found by name, each a folder of its own below one folder.

That is TINTYPE_MODELS, else `models` below the user's data folder. `tintype export SOURCE` without a folder puts its
bundle there. A name from a stranger, such as a record's, stays within: it is one folder's name and no path.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tintype.bundle.manifest import MANIFEST_NAME
from tintype.errors import BundleError, OutputError

OVERLAY_NAME = "overlay.json"  # of a folder that is an overlay, see `bundle.overlay`
_NAME = re.compile(r"\w[\w.+-]{0,99}")


def library_folder() -> Path | None:
    """Where bundles are found by name: TINTYPE_MODELS, else `models` in the user's data folder; it may not be there
    yet. None for a user without a home."""
    chosen = os.environ.get("TINTYPE_MODELS")
    if chosen:
        return Path(chosen)
    import platformdirs

    try:
        return platformdirs.user_data_path("tintype") / "models"
    except (RuntimeError, KeyError):
        return None


def library_place(name: str) -> Path:
    """Where a new bundle of that name belongs. Raises OutputError for a user without a home."""
    folder = library_folder()
    if folder is None:
        raise OutputError("there is no folder for models", fix="name the bundle's folder, or set TINTYPE_MODELS")
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.+")[:100]
    return folder / (plain or "bundle")


def library_bundle(name: str) -> Path | None:
    """The folder of the library's bundle of that name, if there is one; its files are not looked at."""
    if _NAME.fullmatch(name) is None:
        return None
    folder = library_folder()
    place = None if folder is None else folder / name
    return place if place is not None and is_bundle(place) else None


def library_bundles() -> Iterator[tuple[str, Path]]:
    """The library's bundles, by name."""
    folder = library_folder()
    names = []
    if folder is not None:
        with contextlib.suppress(OSError):
            names = sorted(entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name))
    found = ((name, library_bundle(name)) for name in names)
    yield from ((name, place) for name, place in found if place is not None)


def is_overlay(folder: Path) -> bool:
    """Whether a folder has an overlay's facts, whatever they say."""
    try:
        return (folder / OVERLAY_NAME).is_file() and not (folder / MANIFEST_NAME).exists()
    except (OSError, ValueError):
        return False


def is_bundle(folder: Path) -> bool:
    """Whether a folder has a manifest, or is an overlay of one that has, whatever that says."""
    try:
        return any((folder / name).is_file() for name in (MANIFEST_NAME, OVERLAY_NAME))
    except (OSError, ValueError):
        return False


def remove_files(folder: Path, files: Iterable[str]) -> list[str]:
    """Remove a bundle's own files and the folders that are empty then; of a link to one, the link alone.

    files: its facts last, so that what was broken off can be done again. Returns the names of what else lies there,
    which stays. Raises BundleError for what can't be removed.
    """
    try:
        if folder.is_symlink():
            folder.unlink()
            return []
        inside = folder.resolve()
        for name in files:
            path = folder / name
            if path.parent.resolve().is_relative_to(inside):  # a link that leads out of it is nobody's to follow
                path.unlink(missing_ok=True)
        for place, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # not empty
                Path(place).rmdir()
    except OSError as error:
        raise BundleError(
            f"{error.filename or folder} cannot be removed: {error.strerror}", fix="remove it as who may write there"
        ) from None
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
