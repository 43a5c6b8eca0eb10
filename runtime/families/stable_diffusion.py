"""Stable Diffusion 1.x and 2.x: one text encoder, whose last state is what the denoiser is told."""

from __future__ import annotations

from collections.abc import Sequence

from tintype.bundle import Manifest
from tintype.bundle.manifest import ENCODER
from tintype.families.base import (
    EMBEDDINGS,
    Branch,
    CallEncoder,
    Conditioning,
    Tokens,
    run_text_encoder,
    with_zeros,
)
from tintype.request import ResolvedRequest
from tintype.uses import DECODE, DENOISE, ENCODE, START, GraphRef, GraphUse


class StableDiffusion:
    """See `Family` for each."""

    def branches(self, request: ResolvedRequest, manifest: Manifest) -> tuple[Branch, ...]:
        positive = Branch("positive", request.prompt)
        if not is_guided(request, manifest):
            return (positive,)
        zeros = manifest.force_zeros_for_empty_prompt and request.negative_prompt == ""
        return (Branch("negative", None if zeros else request.negative_prompt), positive)

    def uses(
        self, request: ResolvedRequest, manifest: Manifest, tokens: Tokens, model_calls: int
    ) -> tuple[GraphUse, ...]:
        branches, batches = len(self.branches(request, manifest)), len(request.batches)
        cells = {name: getattr(request, name) // manifest.vae_scale_factor for name in ("height", "width")}
        encoders = (
            GraphUse(ref=GraphRef(role), phase=ENCODE, dims={"batch": 1}, calls=tokens.prompts * tokens.chunks)
            for role in manifest.text_encoders
        )
        calls = encoder_calls(request, manifest)
        picture = (encoding_use(request.width, request.height, calls),) if calls else ()
        denoiser = GraphUse(
            ref=GraphRef("denoiser"),
            phase=DENOISE,
            dims={"batch": len(request.batches[0]) * branches, **cells, "sequence": tokens.length},
            calls=batches * model_calls,
            opens=batches,
            branches=branches,
        )
        decoder = GraphUse(
            ref=GraphRef("vae_decoder"),
            phase=DECODE,
            dims={"batch": 1, **cells},
            calls=request.count,
            opens=batches,
        )
        return (*encoders, *picture, denoiser, decoder)

    def encode(
        self, request: ResolvedRequest, branches: Sequence[Branch], tokens: Tokens, call: CallEncoder
    ) -> Conditioning:
        (role, prompts), *_ = tokens.encoded.items()
        return {EMBEDDINGS: with_zeros(run_text_encoder(role, prompts, call).states, branches)}


def is_guided(request: ResolvedRequest, manifest: Manifest) -> bool:
    """Whether a request takes two predictions a step.

    1 is off. 0 is the negative prompt alone; but a bundle that by default has no guidance was distilled to do without,
    as SDXL-Turbo was, and there 0 is off too: that is how its users say it.
    """
    distilled = manifest.default_request.guidance_scale in (0.0, 1.0)
    return request.guidance_scale != 1.0 and not (distilled and request.guidance_scale == 0.0)


def encoder_calls(request: ResolvedRequest, manifest: Manifest) -> int:
    """Of the VAE's encoder: for the picture that a request begins with, and for what its mask leaves of it."""
    if request.hires is not None:
        return request.count if request.hires.upscale == "pixel" else 0
    if request.image is None or request.image.latents:
        return 0
    if not manifest.is_inpainting:
        return 1
    return 2 if request.strength < 1.0 else 1  # nothing of the picture itself is in pure noise


def encoding_use(width: int, height: int, calls: int = 1) -> GraphUse:
    """The use of the VAE's encoder that turns pictures of that size, in pixels, into latents."""
    dims = {"batch": 1, "height": height, "width": width}
    return GraphUse(ref=GraphRef(ENCODER), phase=START, dims=dims, calls=calls)
