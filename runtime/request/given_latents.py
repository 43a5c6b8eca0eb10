"""Latents that a request brings as an array, or as numpy's file of one: noise to begin with, or a picture's own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype.bounds import MAX_LATENTS_BYTES, MAX_NOISE_HEADER_BYTES
from tintype.errors import RequestError
from tintype.files import open_plain
from tintype.request.fields import GivenLatents

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tintype.arrays import Latents


def check_latents(given: Latents, shape: tuple[int, int, int, int]) -> None:
    """RequestError where given noise isn't for a request's pictures, or can't be noise of unit variance."""
    if given.shape != shape:
        raise RequestError(
            f"the latents are {dims(given.shape)}, this request's are {dims(shape)}",
            fix="give noise of that shape: pictures, channels, and a cell for every few pixels",
        )


def open_latents(source: GivenLatents) -> Latents:
    import numpy as np

    fix = "give float32 noise as numpy saves it: (pictures, channels, height, width), in latent cells"
    given = _read_array(Path(source), fix) if isinstance(source, str | os.PathLike) else source
    if not isinstance(given, np.ndarray) or given.ndim != 4 or given.dtype.kind != "f" or 0 in given.shape:
        raise RequestError("the latents are no array of four dimensions of floats", fix=fix)
    with np.errstate(over="ignore"):  # what float32 doesn't hold is refused
        latents = np.array(given, np.float32, order="C")  # the caller may write into its own
    if not np.isfinite(latents).all():
        raise RequestError("the latents hold NaN or infinity", fix=fix)
    return latents


def _read_array(path: Path, fix: str) -> NDArray[Any]:
    import warnings

    import numpy as np

    try:
        with open_plain(path, MAX_LATENTS_BYTES) as file:
            np.lib.format.read_magic(file)  # neither a pickle nor an archive
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd headers
            array: NDArray[Any] = np.load(  # mapped: no more memory than the file has
                path, mmap_mode="r", allow_pickle=False, max_header_size=MAX_NOISE_HEADER_BYTES
            )
            return array
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}", fix=fix) from None
    except OSError as error:
        raise RequestError(f"{path} holds no latents: {error.strerror or error}", fix=fix) from None
    except Exception as error:  # a hostile header makes numpy raise almost anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(f"{path} holds no latents: {reason}", fix=fix) from None


def array_hash(array: NDArray[Any]) -> str:
    head = f"{array.dtype.str} {array.shape}\n"
    return hashlib.sha256(head.encode() + array.tobytes()).hexdigest()


def dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
