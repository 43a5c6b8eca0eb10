"""The library of operators that comes with the package (`kernels/native`), as ONNX Runtime loads it.

Which one it is, and which set of instructions it uses, goes into the key of every build for the processor: a build is
made anew where the library is another one, or has gone.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

from tintype.engine.device.installation import load_onnxruntime
from tintype.kernels.native import library

NONE = "none"


def register(options: Any) -> None:
    """Let a session know the operators, where there are any."""
    if native_problem() is None:
        options.register_custom_ops_library(str(_found()))


def native_version() -> str:
    """The library by a digest of its bytes and the set of instructions that it uses here, which a processor's name need
    not tell; `none` where there is none that can be used."""
    path, sets = _found(), kernel_sets()
    return NONE if path is None or not sets else f"{library.digest(path)} {sets[-1]}"


def native_problem() -> str | None:
    """Why there are no native kernels here; None when there are."""
    return _first_use()[0]


@functools.cache
def kernel_sets() -> tuple[str, ...]:
    """The sets of instructions that the kernels were compiled for and this processor has, the plainest first.

    The last one is used. Empty where there are no native kernels.
    """
    path = _found()
    if path is None or native_problem() is not None:
        return ()
    import ctypes

    name_of = ctypes.CDLL(str(path)).TintypeInstructions
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_int]
    names = itertools.takewhile(lambda name: name is not None, map(name_of, itertools.count()))
    return tuple(name.decode() for name in names)


@functools.cache
def _first_use() -> tuple[str | None, Any]:
    """The library is asked to register its operators; what went wrong, or options that keep it loaded from then on."""
    path = _found()
    if path is None:
        return library.reason_missing(), None
    options = load_onnxruntime().SessionOptions()
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ORT raises its own unrelated classes: another architecture, a folder without execution
        return f"{path.name} cannot be loaded: {str(error).strip().splitlines()[0]}", None
    return None, options


@functools.cache
def _found() -> Path | None:
    return library.library()
