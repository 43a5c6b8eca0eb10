"""Quantiles of the symmetric Beta distribution, to double precision, in numpy alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_TERMS = 64  # of a series whose terms halve
_ROUNDS = 12  # of Newton's method, which doubles its digits


def beta_quantiles(shares: NDArray[np.float64], shape: float) -> NDArray[np.float64]:
    """Where Beta(shape, shape) has these shares of its mass below. shares: 0 .. 1. shape: above 0, to 1.

    Below the middle the mass is x^shape times a power series in x (Abramowitz & Stegun 26.5.4), and above it mirrored.
    In u = x^shape it is convex and rises, so that Newton's method from above comes down to the root and never past it.
    """
    lower = np.minimum(shares, 1.0 - shares)
    mass = lower * math.gamma(shape) ** 2 / math.gamma(2.0 * shape)
    powers = np.arange(_TERMS)
    coefficients = np.cumprod(np.append(1.0, (powers[1:] - shape) / powers[1:])) / (shape + powers)
    u = np.minimum(shape * mass, 0.5**shape)
    for _ in range(_ROUNDS):
        x = u ** (1.0 / shape)
        below = u * (x[..., None] ** powers @ coefficients)
        u = np.maximum(u - (below - mass) * shape * (1.0 - x) ** (1.0 - shape), 0.0)
    x = u ** (1.0 / shape)
    return np.where(shares <= 0.5, x, 1.0 - x)
