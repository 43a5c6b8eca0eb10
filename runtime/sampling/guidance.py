"""Guidance: which predictions a step takes, and what becomes of them. Pure: no graphs, no prompts.

Predictions are the model's outputs, (batch, channels, height, width), by the number of their branch; they are combined
before they are turned into pictures, as rescaling isn't the same afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from tintype.arrays import Latents
from tintype.errors import RequestError
from tintype.sampling.step import Denoised

ToDenoised: TypeAlias = Callable[[Latents], Latents]  # a prediction -> the picture that it stands for

NEGATIVE, POSITIVE = 0, 1  # branches under classifier-free guidance; each part of the prompt after the first follows
NEITHER, PICTURE, BOTH = 0, 1, 2  # those where the denoiser takes a picture too; each further part follows
ALONE = (1.0,)  # the weights of a prompt in one part
LEAST_WEIGHT = 1e-3  # of all parts together, where they are divided by it


class Guidance(Protocol):
    """How the predictions of a request's branches become one."""

    def active(self, progress: float) -> tuple[int, ...]:
        """The branches that a step needs, rising. progress: of the way, before the step: 0 to below 1."""
        ...

    def combine(self, predictions: Mapping[int, Latents], denoised: ToDenoised) -> Denoised:
        """What a step goes by. predictions: of the branches that were active."""
        ...

    def difference(self, predictions: Mapping[int, Latents]) -> Latents | None:
        """What the words change: conditional less unconditional prediction; None where a step has no such two."""
        ...


@dataclass(frozen=True, slots=True)
class Unguided:
    """A branch for each part of the prompt, and nothing to go away from.

    weights: of the parts, by which their mean is taken. Raises RequestError where they have none.
    """

    weights: tuple[float, ...] = ALONE

    def __post_init__(self) -> None:
        _demand_mean(self.weights)

    def active(self, progress: float) -> tuple[int, ...]:
        return tuple(range(len(self.weights)))

    def combine(self, predictions: Mapping[int, Latents], denoised: ToDenoised) -> Denoised:
        parts = [predictions[branch] for branch in range(len(self.weights))]
        return Denoised.unguided(denoised(weighted_mean(parts, self.weights)))

    def difference(self, predictions: Mapping[int, Latents]) -> Latents | None:
        return None


@dataclass(frozen=True, slots=True)
class Interval:
    """Shares of the way from noise to picture: steps that begin at or after `start` and before `stop`."""

    start: float = 0.0
    stop: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Interval:
        """`start,stop`, as in 0.2,0.8. Raises RequestError."""
        number = r"\s*(\d*\.?\d+|\d+\.)\s*"
        shares = re.fullmatch(f"{number},{number}", text[:100], re.ASCII)
        if shares is None or not 0.0 <= float(shares[1]) < float(shares[2]) <= 1.0:
            raise RequestError(
                f"guidance_interval {text[:40]!r} is no part of the way",
                fix="give where it starts and where it stops, 0 to 1, as in 0.2,0.8",
            )
        return cls(float(shares[1]), float(shares[2]))

    def covers(self, progress: float) -> bool:
        return self.start <= progress < self.stop


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierFreeGuidance:
    """The negative prompt's branch, and one for each part of the prompt (Ho & Salimans 2022, Liu et al. 2022).

    rescale: see `rescale_guidance`. interval: outside of it the prompt's branches are all that a step takes, which with
    one is half the work (Kynkäänniemi et al. 2024): at high noise guidance costs variety, and at low noise it does
    little. weights: of the parts, see `compose`; outside of the interval their mean is taken by them. Raises
    RequestError where they have none there.
    """

    scale: float
    rescale: float = 0.0
    interval: Interval = Interval()
    weights: tuple[float, ...] = ALONE

    def __post_init__(self) -> None:
        _demand_mean(self.weights, self.interval)

    def active(self, progress: float) -> tuple[int, ...]:
        parts = range(POSITIVE, POSITIVE + len(self.weights))
        return (NEGATIVE, *parts) if self.interval.covers(progress) else tuple(parts)

    def combine(self, predictions: Mapping[int, Latents], denoised: ToDenoised) -> Denoised:
        parts = [predictions[POSITIVE + number] for number in range(len(self.weights))]
        unconditional = predictions.get(NEGATIVE)
        if unconditional is None:
            return Denoised.unguided(denoised(weighted_mean(parts, self.weights)))
        conditional = compose(parts, self.weights, unconditional)
        guided = guide(conditional, unconditional, self.scale)
        if self.rescale != 0:
            guided = rescale_guidance(guided, conditional, self.rescale)
        return Denoised(denoised(guided), denoised(unconditional))

    def difference(self, predictions: Mapping[int, Latents]) -> Latents | None:
        return _away(predictions, NEGATIVE, POSITIVE, self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureGuidance:
    """Neither words nor picture, the picture alone, and both for each part of the prompt (Brooks et al. 2023).

    rescale, interval, weights: as in `ClassifierFreeGuidance`; the parts lead away from the picture alone.
    """

    scale: float
    picture_scale: float
    rescale: float = 0.0
    interval: Interval = Interval()
    weights: tuple[float, ...] = ALONE

    def __post_init__(self) -> None:
        _demand_mean(self.weights, self.interval)

    def active(self, progress: float) -> tuple[int, ...]:
        parts = range(BOTH, BOTH + len(self.weights))
        return (NEITHER, PICTURE, *parts) if self.interval.covers(progress) else tuple(parts)

    def combine(self, predictions: Mapping[int, Latents], denoised: ToDenoised) -> Denoised:
        parts = [predictions[BOTH + number] for number in range(len(self.weights))]
        if NEITHER not in predictions:
            return Denoised.unguided(denoised(weighted_mean(parts, self.weights)))
        neither, picture = predictions[NEITHER], predictions[PICTURE]
        both = compose(parts, self.weights, picture)
        guided = neither + (picture - neither) * self.picture_scale + (both - picture) * self.scale
        if self.rescale != 0:
            guided = rescale_guidance(guided, both, self.rescale)
        return Denoised(denoised(guided), denoised(neither))

    def difference(self, predictions: Mapping[int, Latents]) -> Latents | None:
        return _away(predictions, PICTURE, BOTH, self.weights)


def compose(parts: Sequence[Latents], weights: Sequence[float], unconditional: Latents) -> Latents:
    """The parts of a prompt as one conditional prediction: u + sum(w_i (c_i - u)) (Liu et al. 2022, equation 11).

    One part of weight 1 is that part itself.
    """
    if tuple(weights) == ALONE:
        return parts[0]
    away = sum((part - unconditional) * np.float32(weight) for part, weight in zip(parts, weights, strict=True))
    return np.asarray(unconditional + away)


def _away(
    predictions: Mapping[int, Latents], unconditional: int, first: int, weights: Sequence[float]
) -> Latents | None:
    """The composed prediction of the parts, of branches from `first` on, less the unconditional one, if it is there."""
    if unconditional not in predictions:
        return None
    parts = [predictions[first + number] for number in range(len(weights))]
    return compose(parts, weights, predictions[unconditional]) - predictions[unconditional]


def weighted_mean(parts: Sequence[Latents], weights: Sequence[float]) -> Latents:
    """What `compose` comes to without an unconditional prediction: the one where the weights' sum is 1."""
    if len(parts) == 1:
        return parts[0]
    total = sum(weights)
    return np.asarray(sum(part * np.float32(weight / total) for part, weight in zip(parts, weights, strict=True)))


def _demand_mean(weights: Sequence[float], interval: Interval | None = None) -> None:
    """RequestError for weights without a mean, where a step goes without guidance. interval: None is no guidance."""
    if interval != Interval() and not sum(weights) >= LEAST_WEIGHT:
        raise RequestError(
            f"the weights of the prompt's parts add up to {sum(weights):g}, and without guidance their mean is taken",
            fix="let them add up to more than 0, or give a guidance_scale and no guidance_interval",
        )


def guide(conditional: Latents, unconditional: Latents, scale: float) -> Latents:
    """Away from the unconditional prediction by `scale` (Ho & Salimans 2022); 1 is the conditional one itself."""
    return unconditional + (conditional - unconditional) * scale


def rescale_guidance(guided: Latents, conditional: Latents, rescale: float) -> Latents:
    """Guided prediction, drawn by `rescale` (0 .. 1) to the conditional one's contrast (Lin et al. 2023, section 3.4).

    Contrast is the standard deviation over each picture's channels and cells. High guidance overexposes; 0.7 is the
    paper's cure. A flat guided prediction has no contrast to draw on and stays as it is.
    """
    axes = tuple(range(1, guided.ndim))
    wanted = np.std(conditional, axis=axes, keepdims=True, ddof=1, dtype=np.float64)
    found = np.std(guided, axis=axes, keepdims=True, ddof=1, dtype=np.float64)
    ratio = np.divide(wanted, found, out=np.ones_like(found), where=found > 0)
    return guided * (rescale * ratio + (1.0 - rescale)).astype(np.float32)
