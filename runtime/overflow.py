"""Nothing that isn't finite goes on: a graph that overflows is run again in float32, and if that fails, it is an error.

Graphs round to float16 or to 8 bits in `balanced` builds only, so that `exact` is the one to run again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tintype.conditioning import Read
from tintype.errors import NumericError

if TYPE_CHECKING:
    from tintype.engine import BuildOptions, Session

Answer = TypeVar("Answer")
Note = Callable[[str], None]  # takes a sentence for the record


def finite(array: NDArray[Any], whose: str) -> NDArray[Any]:
    """The array; NumericError when there is NaN or infinity in it."""
    if not np.isfinite(array).all():
        raise NumericError(
            f"{whose} gave NaN or infinity",
            fix="try guidance nearer to 7 or another sampler; if it stays so, export the checkpoint again in fp32",
        )
    return array


def finite_reading(reading: Read) -> Read:
    """The same for what a text encoder read."""
    for array in (reading.states, reading.text_embeds):
        if array is not None:
            finite(array, "the text encoder")
    return reading


def float_options(options: BuildOptions) -> BuildOptions | None:
    """The build of the same graph that rounds nothing; None when it is that one."""
    return None if options.exactness == "exact" else dataclasses.replace(options, exactness="exact", timed=None)


def again_in_float(
    stage: Callable[[str, BuildOptions], AbstractContextManager[Session]],
    role: str,
    options: BuildOptions,
    compute: Callable[[Session], Answer],
    note: Note,
) -> Answer:
    """What `compute` gives on a role's graph; where that isn't finite, on the same graph in float32, which is noted.

    Raises NumericError when that isn't finite either.
    """
    try:
        with stage(role, options) as session:
            return compute(session)
    except NumericError:
        exact = float_options(options)
        if exact is None:
            raise
    with stage(role, exact) as session:
        answer = compute(session)
    note(f"{role} was run again in float32: it had given NaN or infinity")
    return answer
