"""Stochastic Adams: an exponential step by a polynomial through several pictures. Pure steps over float32 arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents


def adams_weights(places: Sequence[float], decay_rate: float, simple: bool) -> NDArray[np.float64]:
    """What each picture counts in a step (Xue et al. 2023, arXiv 2309.05019, equations 15 and 18).

    places: of the pictures, in steps from where it begins. decay_rate: (1 + tau^2) h. The integrals of the powers from
    0 to 1, each from the one below it by parts, are what the polynomials that are 1 at one place and 0 at the others
    are made of. simple: of two pictures the line's integral without what is of the third order in h, as the authors
    have it for few steps (the same, appendix D).
    """
    integrals = [-math.expm1(-decay_rate)]
    for power in range(1, len(places)):
        integrals.append(1.0 - power / decay_rate * integrals[-1])
    if simple and len(places) == 2:
        integrals[1] = decay_rate / 2.0
    return np.linalg.solve(np.vander(places, increasing=True).T, np.array(integrals))


def adams_step(
    latents: Latents,
    pictures: Sequence[tuple[float, Latents]],
    sigma: float,
    sigma_next: float,
    tau: float,
    fresh: Latents | None,
    simple: bool = False,
) -> Latents:
    """From sigma to sigma_next above 0: a predictor, or with what was denoised at sigma_next a corrector.

    pictures: (sigma, denoised), as many as the order, the newest last. tau: of the reverse equation's noise, 0 none,
    1 all. fresh: standard normals, the same for both.
    """
    if sigma_next == sigma:
        return latents
    h, squared = math.log(sigma / sigma_next), tau**2
    newest = pictures[-1][1]
    weights = adams_weights([math.log(sigma / at) / h for at, _ in pictures], (1.0 + squared) * h, simple)
    result = newest + (latents - newest) * math.exp(-(1.0 + squared) * h)
    for weight, (_, picture) in zip(weights[:-1], pictures[:-1], strict=True):
        result = result + (picture - newest) * float(weight)
    if fresh is not None and tau > 0.0:
        result = result + fresh * (sigma_next * math.sqrt(-math.expm1(-2.0 * squared * h)))
    return result
