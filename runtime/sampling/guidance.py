"""Guidance: which predictions a step takes, and what becomes of them. Pure: no graphs, no prompts.

Predictions are the model's outputs, (batch, channels, height, width), by the number of their branch; they are combined
before they are turned into pictures, as rescaling isn't the same afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from tintype.arrays import Latents
from tintype.errors import RequestError
from tintype.sampling.step import Denoised

ToDenoised: TypeAlias = Callable[[Latents], Latents]  # a prediction -> the picture that it stands for

NEGATIVE, POSITIVE = 0, 1  # branches under classifier-free guidance


class Guidance(Protocol):
    """How the predictions of a request's branches become one."""

    def active(self, progress: float) -> tuple[int, ...]:
        """The branches that a step needs, rising. progress: of the way, before the step: 0 to below 1."""
        ...

    def combine(self, predictions: Mapping[int, Latents], denoised: ToDenoised) -> Denoised:
        """What a step goes by. predictions: of the branches that were active."""
        ...


@dataclass(frozen=True, slots=True)
class Unguided:
    """One branch, and nothing to combine."""

    def active(self, progress: float) -> tuple[int, ...]:
        return (0,)

    def combine(self, predictions: Mapping[int, Latents], denoised: ToDenoised) -> Denoised:
        return Denoised.unguided(denoised(predictions[0]))


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
    """Two branches: the negative prompt's, and the prompt's (Ho & Salimans 2022).

    rescale: see `rescale_guidance`. interval: outside of it the prompt's branch is all that a step takes, which is half
    the work (Kynkäänniemi et al. 2024): at high noise guidance costs variety, and at low noise it does little.
    """

    scale: float
    rescale: float = 0.0
    interval: Interval = Interval()

    def active(self, progress: float) -> tuple[int, ...]:
        return (NEGATIVE, POSITIVE) if self.interval.covers(progress) else (POSITIVE,)

    def combine(self, predictions: Mapping[int, Latents], denoised: ToDenoised) -> Denoised:
        conditional, unconditional = predictions[POSITIVE], predictions.get(NEGATIVE)
        if unconditional is None:
            return Denoised.unguided(denoised(conditional))
        guided = guide(conditional, unconditional, self.scale)
        if self.rescale != 0:
            guided = rescale_guidance(guided, conditional, self.rescale)
        return Denoised(denoised(guided), denoised(unconditional))


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureGuidance:
    """Three branches: neither words nor picture, the picture alone, and both (Brooks et al. 2023, formula 3).

    rescale, interval: as in `ClassifierFreeGuidance`; outside of the interval the third branch is all.
    """

    scale: float
    picture_scale: float
    rescale: float = 0.0
    interval: Interval = Interval()

    def active(self, progress: float) -> tuple[int, ...]:
        return (0, 1, 2) if self.interval.covers(progress) else (2,)

    def combine(self, predictions: Mapping[int, Latents], denoised: ToDenoised) -> Denoised:
        if 0 not in predictions:
            return Denoised.unguided(denoised(predictions[2]))
        neither, picture, both = (predictions[branch] for branch in range(3))
        guided = neither + (picture - neither) * self.picture_scale + (both - picture) * self.scale
        if self.rescale != 0:
            guided = rescale_guidance(guided, both, self.rescale)
        return Denoised(denoised(guided), denoised(neither))


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
