"""Stable Diffusion 1.x and 2.x: one text encoder, whose last state is what the denoiser is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tintype.bundle import Manifest
from tintype.bundle.manifest import DECODER, ENCODER
from tintype.errors import RequestError
from tintype.families.base import (
    EMBEDDINGS,
    Branch,
    CallEncoder,
    Conditioning,
    Tokens,
    run_text_encoder,
    with_zeros,
)
from tintype.prompt import Wording, parse_parts
from tintype.request import ResolvedRequest
from tintype.sampling import PARAMETRIZATIONS, ClassifierFreeGuidance, Guidance, Interval, Schedule, Unguided
from tintype.uses import DECODE, DENOISE, ENCODE, START, GraphRef, GraphUse


class StableDiffusion:
    """See `Family` for each."""

    parametrizations = PARAMETRIZATIONS

    def branches(self, request: ResolvedRequest, manifest: Manifest) -> tuple[Branch, ...]:
        parts = enumerate(parse_parts(request.prompt), 1)
        skip = request.clip_skip  # of the prompt alone, as in diffusers
        positive = [Branch(f"positive {number}", part.text, part.weight, skip) for number, part in parts]
        if not is_guided(request, manifest):
            return tuple(positive)
        zeros = manifest.force_zeros_for_empty_prompt and request.negative_prompt == ""
        return (Branch("negative", None if zeros else request.negative_prompt), *positive)

    def guidance(self, request: ResolvedRequest, manifest: Manifest) -> Guidance:
        interval = request.guidance_interval
        weights = tuple(part.weight for part in parse_parts(request.prompt))
        if is_guided(request, manifest):
            return ClassifierFreeGuidance(
                weights=weights,
                scale=request.guidance_scale,
                rescale=request.guidance_rescale,
                interval=Interval() if interval is None else Interval.parse(interval),
            )
        if interval is not None:
            raise RequestError(
                f"guidance_interval is given, and a guidance_scale of {request.guidance_scale:g} is none",
                fix="leave guidance_interval out, or give another guidance_scale",
            )
        return Unguided(weights)

    def uses(
        self, request: ResolvedRequest, manifest: Manifest, tokens: Tokens, schedule: Schedule
    ) -> tuple[GraphUse, ...]:
        cells = {name: getattr(request, name) // manifest.vae_scale_factor for name in ("height", "width")}
        encoders = (
            GraphUse(ref=GraphRef(role), phase=ENCODE, dims={"batch": 1}, calls=tokens.prompts * tokens.chunks)
            for role in manifest.text_encoders
        )
        calls = encoder_calls(request, manifest)
        picture = (encoding_use(request.width, request.height, calls),) if calls else ()
        denoiser = denoiser_uses(
            request, self.guidance(request, manifest), schedule, {**cells, "sequence": tokens.length}
        )
        decoder = GraphUse(
            ref=GraphRef(DECODER),
            phase=DECODE,
            dims={"batch": 1, **cells},
            calls=request.count,
            opens=len(request.batches),
        )
        return (*encoders, *picture, *denoiser, decoder)

    def encode(
        self, request: ResolvedRequest, wordings: Sequence[Wording], tokens: Tokens, call: CallEncoder
    ) -> Conditioning:
        (role, prompts), *_ = tokens.encoded.items()
        return {EMBEDDINGS: with_zeros(run_text_encoder(role, prompts, call).states, wordings)}


def denoiser_uses(
    request: ResolvedRequest, guidance: Guidance, schedule: Schedule, dims: Mapping[str, int]
) -> tuple[GraphUse, ...]:
    """A use for each number of branches that a step may take, the most first. dims: all but the batch."""
    calls = Counter[int]()
    for index in range(schedule.total):
        calls[len(guidance.active(schedule.progress(index)))] += schedule.calls_in(index)
    batches = request.batches
    return tuple(
        GraphUse(
            ref=GraphRef("denoiser"),
            phase=DENOISE,
            dims={"batch": len(batches[0]) * branches, **dims},
            calls=len(batches) * calls[branches],
            opens=len(batches),
            branches=branches,
            unguided=branches < max(calls),
        )
        for branches in sorted(calls, reverse=True)
    )


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
