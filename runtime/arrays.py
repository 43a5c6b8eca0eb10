"""Names for the arrays that pass from one part to another, each with its shape; how near one is to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Latents: TypeAlias = NDArray[np.float32]  # (batch, channels, height, width), in latent cells
Samples: TypeAlias = NDArray[np.float32]  # (batch, 3, height, width), in pixels; -1 is black, 1 is white
Pixels: TypeAlias = NDArray[np.uint8]  # (batch, height, width, 3)
Arrays: TypeAlias = Mapping[str, NDArray[Any]]  # inputs or outputs of a graph, by name

EXACT_DB = 200.0


def psnr_db(reference: NDArray[Any], other: NDArray[Any], span: float | None = None) -> float:
    """How near an array is to its reference, whose own range is the span unless it is given; EXACT_DB where they are
    equal, -inf where `other` isn't finite or nothing has a range."""
    error = float(np.mean(np.square(reference.astype(np.float64) - other)))
    span = float(np.ptp(reference)) if span is None else span
    if error == 0.0:
        return EXACT_DB
    return min(EXACT_DB, 10 * math.log10(span**2 / error)) if span and math.isfinite(error) else -math.inf
