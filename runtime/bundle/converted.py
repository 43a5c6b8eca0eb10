"""Bundles of folders of ONNX graphs and of image encoders' checkpoints, in the cache: made once, by a process of its
own, and anew when a folder changes.

An entry is a folder named by a key: of where that lies, of every file that a bundle is made of (size and time of
change), and of the exporter's code. It holds the bundle and source.json, and is there when both are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.bundle.manifest import MANIFEST_NAME
from tintype.engine.build.cache import BUNDLES, LEFTOVER_SECONDS, bundles_folder, bytes_on_disk, cache_folder, discard
from tintype.engine.build.child import ChildError, file_lock, run_child
from tintype.engine.build.code_version import bytes_digest, read_sources
from tintype.errors import ExportError
from tintype.files import read_cached, write_text
from tintype.sources.folder import CONFIG, INDEX, PREPROCESSOR, find_weights, is_image_encoder
from tintype.sources.onnx_folder import PARTS, read_graphs
from tintype.uses import IMAGE_ENCODER

EXPORTER = "tintype.export.child"  # the module that a bundle is made by
SOURCE_NAME = "source.json"
_CONFIGS = ("tokenizer", "tokenizer_2", "scheduler")  # folders that hold no graph


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedBundle:
    """One bundle in the cache. source: the folder that it was made of."""

    key: str
    path: Path
    source: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """source.json."""

    location: str


def is_converted(folder: Path) -> bool:
    """Whether the bundle of a folder is there. Raises ExportError for what can't be read."""
    return _is_whole(cache_folder() / BUNDLES / key_of(folder))


def converted(folder: Path) -> tuple[Path, list[str]]:
    """The bundle of a folder of ONNX graphs, or of an image encoder's checkpoint, which takes torch, and what to say of
    it where it was made just now.

    Raises ExportError for a folder that can't be taken, BuildError for a cache that can't be used.
    """
    key = key_of(folder)
    place = bundles_folder() / key
    if _is_whole(place):
        return place / "bundle", []
    with file_lock(place.with_name(f"{key}.lock")):
        if _is_whole(place):
            return place / "bundle", []
        demand_torch(folder)
        discard(place)  # what one that was killed left
        place.mkdir(mode=0o700)
        try:
            remarks = _made(folder, place / "bundle")
            write_text(place / SOURCE_NAME, json.dumps({"location": str(folder.resolve())}))
        except BaseException:
            discard(place)
            raise
    _sweep(folder, key)
    return place / "bundle", remarks


def converted_bundles() -> list[ConvertedBundle]:
    """Every bundle in the cache that was made of a folder, by the folder's name."""
    found = []
    for place, source in _entries():
        size = bytes_on_disk([place])
        found.append(ConvertedBundle(key=place.name, path=place / "bundle", source=source.location, bytes=size))
    return sorted(found, key=lambda bundle: bundle.source)


def key_of(folder: Path) -> str:
    """24 hexadecimal digits. Raises ExportError for what can't be read."""
    files = _files_of_encoder(folder) if is_image_encoder(folder) else _files_of_graphs(folder)
    stamps = []
    for path in sorted(files):
        with contextlib.suppress(OSError):  # the exporter says what is missing
            status = path.stat()
            stamps.append([str(path.relative_to(folder)), status.st_size, status.st_mtime_ns])
    facts = {"location": str(folder.resolve()), "files": stamps, "code": _exporter_digest()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _files_of_graphs(folder: Path) -> set[Path]:
    files = {path for graph in read_graphs(folder).values() for path in graph.files}
    files |= {folder / INDEX, *folder.glob("README.md"), *(folder / part / CONFIG for part in PARTS)}
    return files | {path for name in _CONFIGS for path in (folder / name).glob("*") if path.is_file()}


def _files_of_encoder(folder: Path) -> set[Path]:
    return {folder / CONFIG, folder / PREPROCESSOR, *folder.glob("README.md"), *find_weights(folder, IMAGE_ENCODER)}


def demand_torch(folder: Path) -> None:
    """ExportError for a checkpoint where torch isn't there."""
    if is_image_encoder(folder) and find_spec("torch") is None:
        raise ExportError(
            f"{folder} is a checkpoint of an image encoder, and what makes a bundle of it, torch, isn't here",
            fix=f"pip install 'tintype[export]', and draw again; or where torch is: tintype export {folder} BUNDLE",
        )


@functools.cache
def _exporter_digest() -> str:
    """Of the exporter's code, which isn't imported for it."""
    spec = find_spec(EXPORTER.rpartition(".")[0])
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    return bytes_digest(read_sources(map(Path, places)))


def _made(folder: Path, bundle: Path) -> list[str]:
    """Make a bundle in a process of its own; what the exporter remarked."""
    job = {"source": str(folder.resolve()), "bundle": str(bundle), "name": folder.resolve().name}
    try:
        answer: Mapping[str, Any] = run_child(EXPORTER, json.dumps(job))
    except ChildError as error:
        raise ExportError(
            f"no bundle could be made of {folder}: {error.message}",
            fix=f"try it by hand: tintype export {folder} BUNDLE",
        ) from None
    if "refused" in answer:
        raise ExportError(str(answer["refused"]["message"]), fix=str(answer["refused"]["fix"]))
    return [str(remark) for remark in answer["remarks"]]


def _is_whole(place: Path) -> bool:
    return (place / "bundle" / MANIFEST_NAME).is_file() and (place / SOURCE_NAME).is_file()


def _entries() -> Iterator[tuple[Path, _Source]]:
    folder = cache_folder() / BUNDLES
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.is_dir() and not place.name.startswith(".") and _is_whole(place):
            with contextlib.suppress(OSError, ValueError):
                yield place, strict_json.read(_Source, strict_json.parse(read_cached(place / SOURCE_NAME)))


def _sweep(folder: Path, key: str) -> None:
    """Remove older bundles of the same folder, and what processes that were killed left a day ago or longer."""
    for place, source in list(_entries()):
        if source.location == str(folder.resolve()) and place.name != key:
            discard(place)
    for place in (cache_folder() / BUNDLES).iterdir():
        with contextlib.suppress(OSError):
            is_left = place.is_dir() and (place.name.startswith(".") or not _is_whole(place))
            if is_left and time.time() - place.stat().st_mtime > LEFTOVER_SECONDS:
                discard(place)
