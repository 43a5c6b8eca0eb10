"""How strongly words draw a picture: a model answers a caption that it has by heart more strongly than an ordinary one.

The score of a picture is the mean over its steps of ||conditional - unconditional|| / sqrt(n) (Wen et al. 2024,
"Detecting, Explaining, and Mitigating Memorization in Diffusion Models", section 3), of both predictions as the
denoiser gives them: noise, velocity or the picture itself, whatever the model was trained to give, before guidance
scales or rescales their difference. The norm is over the n values of a picture's latents, so that a score is their root
mean square. Guidance takes both predictions anyway, and the score is no more than a sum over them. The mean over all
steps told memorised pictures better than that over the first or the last half of them, and better than the norms of the
noise that a velocity stands for; models/postcard/README.md has the figures.

It says that the words act as those of a memorised picture do, and not which picture that is, nor that the one that was
drawn is a copy: both are for somebody to look at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents
from tintype.record.record import Memorisation

DIGITS = 6  # of a score, after the point
LIKELY = (
    "the picture may be close to one that the model was trained on: its words draw it more strongly than 99 in 100 "
    "ordinary prompts do"
)


class StepNorms:
    """Of one batch, while it is drawn: what the words change, a number a picture, at each step that is guided."""

    def __init__(self) -> None:
        self._by_step: dict[int, NDArray[np.float64]] = {}

    def observe(self, step: int, difference: Latents) -> None:
        """difference: conditional less unconditional prediction. Of a step with several calls of the denoiser the first
        one counts, which is at the step's own noise level."""
        if step not in self._by_step:
            self._by_step[step] = root_mean_squares(difference)

    def of(self, row: int) -> tuple[float, ...]:
        """One picture's, in the order of the steps."""
        return tuple(float(norms[row]) for _, norms in sorted(self._by_step.items()))

    def score(self, row: int) -> float | None:
        """One picture's mean; None where no step was guided."""
        norms = self.of(row)
        return round(float(np.mean(norms)), DIGITS) if norms else None


def root_mean_squares(difference: Latents) -> NDArray[np.float64]:
    """(pictures, channels, height, width) -> (pictures,): the norm of each over the root of how many values it has."""
    squares = np.square(difference, dtype=np.float64)
    return np.asarray(np.sqrt(squares.mean(axis=tuple(range(1, difference.ndim)))))


def about_memorisation(found: Memorisation | None) -> tuple[str, ...]:
    """A sentence for a picture that is likely to be memorised."""
    return (LIKELY,) if found is not None and found.is_likely else ()
