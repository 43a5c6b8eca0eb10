"""The refiner of Stable Diffusion XL: draws fine detail into a picture; one text encoder, and a score for beauty.

It was trained on the last fifth of the noise levels alone, so that it needs a picture to begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tintype.bundle import Manifest
from tintype.families.base import Branch
from tintype.families.stable_diffusion import is_guided
from tintype.families.stable_diffusion_xl import StableDiffusionXL
from tintype.prompt import Wording
from tintype.request import ResolvedRequest

# What is asked for, and what the negative branch is told, as StableDiffusionXLImg2ImgPipeline of diffusers has them.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


class StableDiffusionXLRefiner(StableDiffusionXL):
    """Guidance and uses are those of its elders; see `Family`."""

    def branches(self, request: ResolvedRequest, manifest: Manifest) -> tuple[Branch, ...]:
        first, *others = super().branches(request, manifest)
        return (replace(first, unwanted=is_guided(request, manifest)), *others)

    def time_ids(self, request: ResolvedRequest, wordings: Sequence[Wording]) -> NDArray[np.float32]:
        """(wordings, 5): original size and crop, in pixels, then the score."""
        size = (float(request.height), float(request.width))
        scores = [NEGATIVE_AESTHETIC_SCORE if wording.unwanted else AESTHETIC_SCORE for wording in wordings]
        return np.array([[*size, 0.0, 0.0, score] for score in scores], np.float32)
