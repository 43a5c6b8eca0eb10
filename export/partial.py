"""What an export has finished so far, on disk, so that one which was broken off goes on where it was.

A graph counts as finished when it passed its gate and its line stands in `finished.json` with the size and sha256 of
every file that it needs, among them what its component left for the next ones. All of these are checked before they
are believed; anything else in the folder is of a graph that has to be made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype import strict_json
from tintype.bundle import FileFacts
from tintype.export.checkpoint import Checkpoint
from tintype.export.parity import GraphReport
from tintype.files import read_cached, sha256_of, write_text
from tintype.strict_json import Misfit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FINISHED, LOCK = "finished.json", "lock"
BUNDLE, FP32, INPUTS = "bundle", "fp32", "inputs"  # folders: the bundle to be, graphs that quantization reads, ...
LIBRARIES = (
    "tintype", "numpy", "torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "diffusers", "transformers",
    "tokenizers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FinishedGraph:
    """One line: how near the graph came, and its files by path in the folder."""

    report: GraphReport
    files: Mapping[str, FileFacts]


@dataclass(frozen=True, slots=True)
class _Lines:
    graphs: Mapping[str, FinishedGraph] = field(default_factory=dict)  # by role


class Partial:
    """The graphs that are finished in a folder; whoever has it has the folder's lock."""

    def __init__(self, folder: Path) -> None:
        """Look at what is there: what isn't whole goes, so that the folder holds finished graphs alone."""
        self.folder = folder
        self._graphs = {role: graph for role, graph in _read(folder).items() if _is_whole(folder, graph.files)}
        self.tidy()
        for inner in (BUNDLE, FP32, INPUTS):
            (folder / inner).mkdir(mode=0o755, exist_ok=True)

    def tidy(self) -> None:
        """Remove what no finished graph needs. Raises OSError."""
        known = {FINISHED, LOCK, *(name for graph in self._graphs.values() for name in graph.files)}
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder comes before it
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # there is something in it
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in known:
                path.unlink()

    @property
    def reports(self) -> Mapping[str, GraphReport]:
        """Of the graphs that are finished, by role."""
        return {role: graph.report for role, graph in self._graphs.items()}

    def keep(self, role: str, report: GraphReport, files: Iterable[Path]) -> None:
        """A graph is finished: these files of the folder are all that it needs. Raises OSError."""
        facts = {
            path.relative_to(self.folder).as_posix(): FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
            for path in files
        }
        self._graphs[role] = FinishedGraph(report, facts)
        write_text(self.folder / FINISHED, strict_json.dump(_Lines(self._graphs)))

    def inputs_of(self, component: str) -> Path:
        """The file of what a component leaves for the next ones, once it is written."""
        return self.folder / INPUTS / f"{component}.safetensors"

    def write_inputs(self, component: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep what a component leaves for the next ones. Raises OSError."""
        from safetensors.numpy import save_file

        save_file(dict(arrays), self.inputs_of(component))

    def read_inputs(self, component: str) -> dict[str, NDArray[np.generic]]:
        """That, of a component that has a finished graph."""
        from safetensors.numpy import load_file

        return load_file(self.inputs_of(component))


def export_key(checkpoint: Checkpoint, choices: Mapping[str, Any]) -> str:
    """24 hexadecimal digits: of all that finished graphs depend on. Weights count as files: path, size and time.

    choices: precision and whatever else the user chose that graphs depend on.
    """
    source = checkpoint.source
    files = {path for paths in source.weights.values() for path in paths}
    files |= {path for graph in source.graphs.values() for path in graph.files}
    for place in source.tokenizers.values():
        files |= {path for path in place.folder.iterdir() if path.is_file()}
    facts = {
        "files": sorted(_identity(path) for path in files),
        "configs": [source.index, source.configs, {name: place.pad_token for name, place in source.tokenizers.items()}],
        "choices": choices,
        "code": _code_digest(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _identity(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # onnxruntime goes by several names
        return None


def _code_digest() -> str:
    """Of the exporter itself and of what lowers graphs to judge them."""
    from tintype.engine.build.code_version import bytes_digest, lowering_version, read_sources

    return lowering_version() + bytes_digest(read_sources([resources.files("tintype.export")]))


def _read(folder: Path) -> Mapping[str, FinishedGraph]:
    try:
        return strict_json.read(_Lines, strict_json.parse(read_cached(folder / FINISHED))).graphs
    except (OSError, Misfit, ValueError):
        return {}


def _is_whole(folder: Path, files: Mapping[str, FileFacts], digest: Callable[[Path], str] = sha256_of) -> bool:
    try:
        return bool(files) and all(
            (folder / name).stat().st_size == facts.bytes and digest(folder / name) == facts.sha256
            for name, facts in files.items()
        )
    except (OSError, ValueError):
        return False
