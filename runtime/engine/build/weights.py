"""Large weights of builds, each a file of its own that all builds with the same numbers share as a hard link.

A model built for three sizes holds its weights once. Runs in the child process that makes a build.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from tintype.engine.build.cache import WEIGHTS

if TYPE_CHECKING:
    import onnx_ir as ir

SHARED_BYTES = 2**20  # smaller weights stay in the build's own file
_ALIGNMENT = 4096  # of weights in the build's own file: a page, so that each can be mapped where it lies


def share_weights(model: Path, store: Path | None, final: Mapping[str, ir.ExternalTensor] | None = None) -> None:
    """Move the large weights of a saved model into files of their own, linked with those of the same bytes in `store`.

    store: None, or a folder on a file system without hard links, leaves the build with files of its own. final: weights
    that have theirs already, by name, and are inputs of the model so far.
    """
    proto = onnx.load(model, load_external_data=False)
    data = {str(entry.name): _place(entry) for entry in proto.graph.initializer if entry.external_data}
    for name, tensor in (final or {}).items():
        proto.graph.input.remove(next(port for port in proto.graph.input if port.name == name))
        entry = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
        entry.data_location = onnx.TensorProto.EXTERNAL
        _point(entry, f"{WEIGHTS}/{Path(tensor.location).name}", 0, tensor.nbytes)
        proto.graph.initializer.append(entry)
    if not data:
        if final:
            onnx.save(proto, model)
        return
    source = model.with_name(next(iter(data.values()))[0])
    kept = source.with_name(f".{source.name}.kept")
    with source.open("rb") as reader, kept.open("wb") as writer:
        for entry in proto.graph.initializer:
            if str(entry.name) not in data:
                continue
            _, offset, length = data[str(entry.name)]
            reader.seek(offset)
            if length >= SHARED_BYTES:
                place = put(reader.read(length), model.parent / WEIGHTS, store)
                _point(entry, f"{WEIGHTS}/{place.name}", 0, length)
            else:
                writer.write(b"\0" * (-writer.tell() % _ALIGNMENT))
                _point(entry, source.name, writer.tell(), length)
                writer.write(reader.read(length))
    kept.replace(source)
    if source.stat().st_size == 0:
        source.unlink()
    onnx.save(proto, model)


def weight_files(model: Path) -> tuple[str, ...]:
    """The files that hold a saved model's weights, relative to its folder."""
    proto = onnx.load(model, load_external_data=False)
    return tuple(dict.fromkeys(_place(entry)[0] for entry in proto.graph.initializer if entry.external_data))


def put(content: bytes | memoryview, folder: Path, store: Path | None) -> Path:
    """Put a weight into the build's folder of them, under the sha256 of its bytes; returns its place."""
    place = folder / hashlib.sha256(content).hexdigest()
    if place.exists():
        return place
    folder.mkdir(exist_ok=True)
    if store is not None and _holds(store / place.name, content):
        try:
            os.link(store / place.name, place)
        except OSError:
            shutil.copyfile(store / place.name, place)
        return place
    place.write_bytes(content)
    if store is not None:
        _link(place, store / place.name)
    return place


def share(place: Path, store: Path) -> None:
    """Let a build have a weight in common with others that have it already, or will."""
    shared = store / place.name
    with contextlib.suppress(OSError):
        if filecmp.cmp(place, shared, shallow=False):
            _link(shared, place)
            return
    _link(place, shared)


def _link(source: Path, target: Path) -> None:
    """Let a name stand for a file that is there, in place of what else may lie under it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, scratch)
        scratch.replace(target)
    except OSError:
        scratch.unlink(missing_ok=True)  # no hard links here: the build keeps its own


def _holds(path: Path, content: bytes | memoryview) -> bool:
    """Whether a file is there with exactly these bytes; a damaged one is replaced, not linked."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _place(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    facts = {entry.key: entry.value for entry in tensor.external_data}
    return facts["location"], int(facts.get("offset", 0)), int(facts["length"])


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
