"""InstructPix2Pix: a picture and an instruction; the denoiser takes the picture's latents beside the noisy ones.

Three predictions a step: without words or picture, with the picture alone, and with both (Brooks et al. 2023).
"""

from __future__ import annotations

from tintype.bundle import Manifest
from tintype.families.base import Branch
from tintype.families.stable_diffusion import (
    StableDiffusion,
    interval_of,
    is_guided,
    part_weights,
    positive_branches,
    refuse_interval,
)
from tintype.request import ResolvedRequest
from tintype.sampling import Guidance, PictureGuidance, Unguided


class InstructPix2Pix(StableDiffusion):
    """Words and uses are those of its elder; see `Family`."""

    def branches(self, request: ResolvedRequest, manifest: Manifest) -> tuple[Branch, ...]:
        positive = positive_branches(request)
        if not is_guided(request, manifest):
            return tuple(positive)
        negative = request.negative_prompt
        return (Branch("negative", negative, sees_picture=False), Branch("picture", negative), *positive)

    def guidance(self, request: ResolvedRequest, manifest: Manifest) -> Guidance:
        if not is_guided(request, manifest):
            refuse_interval(request, manifest)
            return Unguided(part_weights(request))
        assert request.image_guidance_scale is not None  # `resolve` gives it to models of this kind
        return PictureGuidance(
            weights=part_weights(request),
            scale=request.guidance_scale,
            picture_scale=request.image_guidance_scale,
            rescale=request.guidance_rescale,
            interval=interval_of(request),
        )
