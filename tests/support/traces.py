"""Structures of the tests' checkpoints as torch traces them, packed: tracing takes a third of all tests' time.

Each is named by a hash of all that it depends on (see `known_graphs.structure_of`), the exporter's code and libraries
among it: one that no longer fits is not asked for, and traced as ever. `make traces` packs those of a whole run:

    python tests/support/traces.py FOLDER
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import filelock

PACKED = Path(__file__).with_name("traces.zip")
FIRST = (1980, 1, 1, 0, 0, 0)  # the same structures, the same file


def unpack(cache: Path) -> None:
    """Lay the structures into a cache folder, once."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with filelock.FileLock(cache.with_suffix(".traces-lock")):
        if not (cache / "traces").exists() and PACKED.exists():
            with zipfile.ZipFile(PACKED) as packed:
                packed.extractall(cache / "traces")


def pack(folder: Path) -> None:
    """Pack the structures of a folder."""
    with zipfile.ZipFile(PACKED, "w", zipfile.ZIP_LZMA) as packed:
        for path in sorted(folder.glob("*.onnx")):
            packed.writestr(zipfile.ZipInfo(path.name, FIRST), path.read_bytes(), zipfile.ZIP_LZMA)


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
