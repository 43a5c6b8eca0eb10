"""Where a bundle is made: in a folder beside its place, renamed when everything in it is right.

When the body of `placed` fails, for whatever reason, the folder beside is gone and the place is as it was.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tintype.bundle import MANIFEST_NAME
from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint

ROOM_FACTOR = 2.2  # fp32 graphs, and the quantized ones beside them until those have passed


@dataclass(frozen=True, slots=True)
class Scratch:
    """Two folders on the bundle's disk: the bundle to be, and fp32 graphs that quantization reads."""

    bundle: Path
    fp32: Path


@contextmanager
def placed(bundle: Path, checkpoint: Checkpoint, *, overwrite: bool) -> Iterator[Scratch]:
    """Scratch folders; at the end `scratch.bundle` becomes `bundle` in one rename.

    Raises ExportError when the place is taken, can't be written or its disk is too full.
    """
    _check_place(bundle, checkpoint, overwrite=overwrite)
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=bundle.parent, prefix=f".{bundle.name}.partial-"))
    except OSError as error:
        raise _unwritable(bundle, error) from error
    try:
        _check_room(scratch, checkpoint)
        folders = Scratch(scratch / "bundle", scratch / "fp32")
        folders.bundle.mkdir(mode=0o755)
        folders.fp32.mkdir()
        yield folders
        _swap(folders.bundle, bundle, scratch)
    except OSError as error:
        raise _unwritable(bundle, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_place(bundle: Path, checkpoint: Checkpoint, *, overwrite: bool) -> None:
    place = checkpoint.source.location.resolve()
    if bundle.resolve().is_relative_to(place):
        raise ExportError(f"{bundle} lies inside the checkpoint", fix="write the bundle to a folder of its own")
    if place.is_relative_to(bundle.resolve()):
        raise ExportError(f"{bundle} holds the checkpoint itself", fix="write the bundle to a folder of its own")
    if bundle.is_dir():
        is_bundle = (bundle / MANIFEST_NAME).is_file()
        if any(bundle.iterdir()) and not (overwrite and is_bundle):
            what = "is a bundle already" if is_bundle else "is a folder with other things in it"
            fix = "say --overwrite, or choose another folder" if is_bundle else "choose another folder"
            raise ExportError(f"{bundle} {what}", fix=fix)
    elif bundle.exists():
        raise ExportError(f"{bundle} is a file", fix="a bundle is a folder: choose another name")


def _check_room(scratch: Path, checkpoint: Checkpoint) -> None:
    needed = int(sum(map(checkpoint.fp32_bytes, checkpoint.components)) * ROOM_FACTOR)
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise ExportError(
            f"{scratch.parent} has {free / 2**30:.1f} GiB free; this export needs about {needed / 2**30:.1f} GiB",
            fix="free some space, or write the bundle to a larger disk",
        )


def _swap(made: Path, bundle: Path, scratch: Path) -> None:
    """Give the bundle its place; one that was there goes only when the new one is in."""
    if bundle.is_dir():
        old = scratch / "old"
        bundle.replace(old)
        try:
            made.replace(bundle)
        except OSError:
            old.replace(bundle)
            raise
    else:
        made.replace(bundle)


def _unwritable(bundle: Path, error: OSError) -> ExportError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExportError(f"the disk of {bundle} is full", fix="free some space, or write the bundle to a larger disk")
    return ExportError(f"{bundle} can't be written: {reason}", fix="choose a folder that you may write to")
