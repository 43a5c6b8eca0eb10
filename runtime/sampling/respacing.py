"""Noise levels that lie by a rule of their own, not by evenly spaced whole timesteps. Pure functions of float64.

Where diffusers has a rule (karras, exponential, beta) it goes from the first to the last noise level that the sampler
would have had without it. The others have no scheduler there: they are laid over all noise levels of training, as
A1111, ComfyUI and stable-diffusion.cpp lay them. `beta` is that of diffusers and A1111, which spreads sigma; ComfyUI's
spreads timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tintype.sampling.beta import beta_quantiles

Sigmas: TypeAlias = NDArray[np.float64]

BY_TIMESTEP = ("leading", "trailing", "linspace")

_KARRAS_RHO = 7.0
_BETA_SHAPE = 0.6
_BONG_PIVOT, _BONG_SLOPE = 0.6, 0.2  # the slope is that of 40 points
_LINEAR_SHARE = 0.025  # of the noise, gone after the linear half of linear_quadratic

# Eleven noise levels, the ends of ten steps, the first for the noisiest (Sabour et al. 2024, arXiv 2404.14507, as
# published with it). Stable Diffusion 1.5's serve where a family has none of its own, as in A1111.
_AYS_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_AYS_BY_FAMILY = {
    "stable-diffusion-xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


def karras_sigmas(first: float, last: float, count: int) -> Sigmas:
    """Evenly spaced in sigma^(1/7) (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(0.0, 1.0, count)
    high, low = first ** (1 / _KARRAS_RHO), last ** (1 / _KARRAS_RHO)
    return (high + ramp * (low - high)) ** _KARRAS_RHO


def exponential_sigmas(first: float, last: float, count: int) -> Sigmas:
    """Evenly spaced in log sigma."""
    return np.exp(np.linspace(math.log(first), math.log(last), count))


def beta_sigmas(first: float, last: float, count: int) -> Sigmas:
    """Dense at both ends: quantiles of Beta(0.6, 0.6) between them (Lee et al. 2024, arXiv 2407.12173)."""
    return last + beta_quantiles(1.0 - np.linspace(0.0, 1.0, count), _BETA_SHAPE) * (first - last)


def normal_sigmas(training_sigmas: Sigmas, count: int) -> Sigmas:
    """Of evenly spaced timesteps, both ends included; log sigma is interpolated (k-diffusion's get_sigmas)."""
    return _at(training_sigmas, np.linspace(len(training_sigmas) - 1.0, 0.0, count))


def sgm_uniform_sigmas(training_sigmas: Sigmas, count: int) -> Sigmas:
    """Those of one step more, without the last: the last step goes to the picture from further away."""
    return normal_sigmas(training_sigmas, count + 1)[:-1]


def simple_sigmas(training_sigmas: Sigmas, count: int) -> Sigmas:
    """Training's own, evenly counted from the noisiest."""
    counted = (np.arange(count) * (len(training_sigmas) / count)).astype(np.int64)
    return training_sigmas[::-1][counted]


def kl_optimal_sigmas(training_sigmas: Sigmas, count: int) -> Sigmas:
    """Evenly spaced in the arc tangent of sigma: Align Your Steps for pictures of unit variance (its authors)."""
    return np.tan(np.linspace(math.atan(training_sigmas[-1]), math.atan(training_sigmas[0]), count))


def linear_quadratic_sigmas(training_sigmas: Sigmas, count: int) -> Sigmas:
    """A half of small steps, then a quadratic one that begins with their slope (Polyak et al. 2024, Movie Gen).

    2.5 % of the noise goes in the linear half.
    """
    if count == 1:
        return training_sigmas[-1:].copy()
    linear, index = count // 2, np.arange(count, dtype=np.float64)
    slope = _LINEAR_SHARE / linear
    beyond = np.maximum(index - linear, 0.0)
    bend = (1.0 - slope * count) / (count - linear) ** 2  # so that nothing is left after the last step
    return (1.0 - slope * index - bend * beyond**2) * training_sigmas[-1]


def smoothstep_sigmas(training_sigmas: Sigmas, count: int) -> Sigmas:
    """Timesteps by 3 u^2 - 2 u^3, dense at both ends (stable-diffusion.cpp's smoothstep, which rounds them)."""
    u = 1.0 - np.arange(count) / count
    return _at(training_sigmas, u * u * (3.0 - 2.0 * u) * (len(training_sigmas) - 1.0))


def bong_tangent_sigmas(training_sigmas: Sigmas, count: int) -> Sigmas:
    """Two arc tangents, from the noisiest to the middle and on to the least (RES4LYF's, as stable-diffusion.cpp's).

    Each is steepest three fifths of the way along, where they meet. One step begins with all noise here, there in the
    middle.
    """
    low, high = float(training_sigmas[0]), float(training_sigmas[-1])
    if count == 1:
        return training_sigmas[-1:].copy()
    points, middle = count + 2, (low + high) / 2
    pivot = int(points * _BONG_PIVOT)
    slope = _BONG_SLOPE * 40.0 / points
    first = _tangent(slope * (pivot - np.arange(pivot, dtype=np.float64)), high, middle)
    second = _tangent(-slope * np.arange(points - pivot, dtype=np.float64), middle, low)
    return np.concatenate([first[:-1], second[:-1]])


def _tangent(places: Sigmas, first: float, last: float) -> Sigmas:
    """From first to last by the arc tangents of places, falling."""
    bent = np.arctan(places)
    return last + (bent - bent[-1]) / (bent[0] - bent[-1]) * (first - last)


def ays_sigmas(count: int, family: str | None) -> Sigmas:
    """Align Your Steps: what its authors optimized for a model, log-linear between for other counts of steps than 10.

    family: a manifest's.
    """
    table = _AYS_BY_FAMILY.get(family or "", _AYS_SD)
    places = np.linspace(0.0, len(table) - 1.0, count + 1)[:-1]
    return np.exp(np.interp(places, np.arange(len(table)), np.log(table)))


BETWEEN_ENDS: dict[str, Callable[[float, float, int], Sigmas]] = {
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "beta": beta_sigmas,
}
OVER_TRAINING: dict[str, Callable[[Sigmas, int], Sigmas]] = {
    "normal": normal_sigmas,
    "sgm_uniform": sgm_uniform_sigmas,
    "simple": simple_sigmas,
    "kl_optimal": kl_optimal_sigmas,
    "linear_quadratic": linear_quadratic_sigmas,
    "smoothstep": smoothstep_sigmas,
    "bong_tangent": bong_tangent_sigmas,
}
AYS = "ays"
SPACINGS = (*BY_TIMESTEP, *BETWEEN_ENDS, *OVER_TRAINING, AYS)


def _at(training_sigmas: Sigmas, timesteps: NDArray[np.float64]) -> Sigmas:
    return np.exp(np.interp(timesteps, np.arange(len(training_sigmas)), np.log(training_sigmas)))
