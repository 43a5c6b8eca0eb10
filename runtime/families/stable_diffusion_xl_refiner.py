"""The refiner of Stable Diffusion XL: draws fine detail into a picture; one text encoder, and a score for beauty.

It was trained on the last fifth of the noise levels alone, so that it needs a picture to begin with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tintype.families.base import Branch
from tintype.families.stable_diffusion_xl import StableDiffusionXL
from tintype.request import ResolvedRequest

# What is asked for, and what the negative branch is told, as StableDiffusionXLImg2ImgPipeline of diffusers has them.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


class StableDiffusionXLRefiner(StableDiffusionXL):
    """Branches, guidance and uses are those of its elders; see `Family`."""

    def time_ids(self, request: ResolvedRequest, branches: Sequence[Branch]) -> NDArray[np.float32]:
        """(branches, 5): original size and crop, in pixels, then the score."""
        size = (float(request.height), float(request.width))
        scores = [NEGATIVE_AESTHETIC_SCORE] * (len(branches) - 1) + [AESTHETIC_SCORE]
        return np.array([[*size, 0.0, 0.0, score] for score in scores], np.float32)
