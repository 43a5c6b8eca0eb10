"""Where a bundle is made: in a folder beside its place, renamed when everything in it is right.

When the body of `placed` fails the place is as it was, and the folder beside is gone, unless graphs in it are finished
and what failed was no gate: then it stays for the next export of the same, and one of another kind to the same place
removes it. Nobody else may write into it: what lies there becomes a bundle.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from tintype.bundle import MANIFEST_NAME
from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint
from tintype.export.partial import BUNDLE, FP32, LOCK, Partial

KEPT_SECONDS = 7 * 86_400.0  # that a broken-off export waits for the next one
_PARTIAL = re.compile(r"\.(.+)\.partial-([0-9a-f]{24})")


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder on the bundle's disk, with the bundle to be and fp32 graphs that quantization reads; what it knows."""

    partial: Partial

    @property
    def folder(self) -> Path:
        return self.partial.folder

    @property
    def bundle(self) -> Path:
        return self.folder / BUNDLE

    @property
    def fp32(self) -> Path:
        return self.folder / FP32


@contextmanager
def placed(bundle: Path, checkpoint: Checkpoint, *, key: str, overwrite: bool) -> Iterator[Scratch]:
    """Scratch folders; at the end `scratch.bundle` becomes `bundle` in one rename.

    key: of the export, see `export_key`: what another one of the same key has finished is there. Raises ExportError
    when the place is taken or can't be written, its disk is full, or the same export goes on there already.
    """
    check_place(bundle, checkpoint, overwrite=overwrite)
    folder = bundle.parent / f".{bundle.name}.partial-{key}"
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        _sweep(bundle, folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        _demand_own(folder)
        with _locked(folder, bundle):
            partial = Partial(folder)
            try:
                yield Scratch(partial)
                _swap(folder / BUNDLE, bundle, folder)
            except BaseException as error:
                if partial.reports and not isinstance(error, ExportError):
                    with contextlib.suppress(OSError):
                        partial.tidy()
                    error.add_note(f"note: {_listed(partial)} finished; the same command goes on from there")
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # with its lock, where a system keeps files that are open
    except OSError as error:
        failure = _unwritable(bundle, error)
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error


def _listed(partial: Partial) -> str:
    return f"{', '.join(partial.reports)} {'is' if len(partial.reports) == 1 else 'are'}"


@contextmanager
def _locked(folder: Path, bundle: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ExportError(
            f"another export to {bundle} is at work", fix="wait for it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _sweep(bundle: Path, own: Path) -> None:
    """Remove what broken-off exports left: of another key for this place, and of any place after a week."""
    for folder in bundle.parent.glob(".*.partial-*"):
        known = _PARTIAL.fullmatch(folder.name)
        if known is None or folder == own or folder.is_symlink() or not folder.is_dir():
            continue
        with contextlib.suppress(OSError, filelock.Timeout):
            _demand_own(folder)
            if known[1] != bundle.name and time.time() - folder.stat().st_mtime < KEPT_SECONDS:
                continue
            with filelock.FileLock(folder / LOCK, blocking=False):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def _demand_own(folder: Path) -> None:
    """OSError for a folder that another user could have put there, or can write into."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, f"{folder.name} is no folder")
    if os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(errno.EPERM, f"{folder.name} is there, and others can write into it")


def check_place(bundle: Path, checkpoint: Checkpoint, *, overwrite: bool) -> None:
    """ExportError when a bundle can't have its place."""
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
        fix = "free some space, or write the bundle to a larger disk"
        return ExportError(f"the disk of {bundle} is full", fix=fix, kind="disk")
    return ExportError(f"{bundle} can't be written: {reason}", fix="choose a folder that you may write to")
