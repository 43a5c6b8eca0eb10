"""Stable Diffusion 1.x and 2.x: one text encoder, whose last state is what the denoiser is told."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tintype.bundle import Manifest, PreviewFactors
from tintype.bundle.manifest import DECODERS, ENCODER, ENCODERS, FAST, FULL, GUIDANCE_INPUT
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
from tintype.families.control import UNWANTED, control_uses, residual_channels
from tintype.families.reuse import cut_of, reuse_of
from tintype.families.t2i_adapter import adapter_uses, feature_sizes
from tintype.prompt import Wording, padded_rows, parse_parts
from tintype.request import ResolvedRequest
from tintype.sampling import PARAMETRIZATIONS, ClassifierFreeGuidance, Guidance, Interval, Schedule, Unguided
from tintype.uses import DECODE, DENOISE, ENCODE, START, GraphRef, GraphUse

# Of the VAE that 1.x and 2.x have: colours by least squares over many pictures, as several tools publish them.
LATENTS_PREVIEW = PreviewFactors(
    weights=((0.3512, 0.2297, 0.3227), (0.325, 0.4974, 0.235), (-0.2829, 0.1762, 0.2721), (-0.212, -0.2616, -0.7177))
)


class StableDiffusion:
    """See `Family` for each."""

    parametrizations = PARAMETRIZATIONS
    preview = LATENTS_PREVIEW

    def branches(self, request: ResolvedRequest, manifest: Manifest) -> tuple[Branch, ...]:
        positive = positive_branches(request)
        if not is_guided(request, manifest):
            return tuple(positive)
        zeros = manifest.force_zeros_for_empty_prompt and request.negative_prompt == ""
        return (Branch(UNWANTED, None if zeros else request.negative_prompt), *positive)

    def guidance(self, request: ResolvedRequest, manifest: Manifest) -> Guidance:
        weights = part_weights(request)
        if is_guided(request, manifest):
            return ClassifierFreeGuidance(
                weights=weights,
                scale=request.guidance_scale,
                rescale=request.guidance_rescale,
                interval=interval_of(request),
            )
        refuse_interval(request, manifest)
        return Unguided(weights)

    def uses(
        self, request: ResolvedRequest, manifest: Manifest, tokens: Tokens, schedule: Schedule
    ) -> tuple[GraphUse, ...]:
        cells = {name: getattr(request, name) // manifest.vae_scale_factor for name in ("height", "width")}
        encoders = (
            GraphUse(
                ref=GraphRef(role),
                phase=ENCODE,
                dims={"batch": 1},
                calls=tokens.prompts * tokens.chunks,
                embedding_rows=padded_rows(request.embedding_rows),
            )
            for role in manifest.text_encoders
        )
        calls = encoder_calls(request, manifest)
        encoder = ENCODERS[request.encoder]
        picture = (encoding_use(request.width, request.height, calls, encoder),) if calls else ()
        guidance, dims = self.guidance(request, manifest), {**cells, "sequence": tokens.length}
        denoiser = denoiser_uses(request, guidance, schedule, dims)
        controls = control_uses(request, self.branches(request, manifest), guidance, schedule, dims)
        decoder = GraphUse(
            ref=GraphRef(DECODERS[request.decoder]),
            phase=DECODE,
            dims={"batch": 1, **cells},
            calls=request.count,
            opens=len(request.batches),
        )
        return (*encoders, *picture, *adapter_uses(request, schedule), *controls, *denoiser, decoder)

    def encode(
        self,
        request: ResolvedRequest,
        manifest: Manifest,
        wordings: Sequence[Wording],
        tokens: Tokens,
        call: CallEncoder,
    ) -> Conditioning:
        (role, prompts), *_ = tokens.encoded.items()
        states = with_zeros(run_text_encoder(role, prompts, call).states, wordings)
        return {EMBEDDINGS: states, **guidance_input(request, manifest, len(wordings))}


def positive_branches(request: ResolvedRequest) -> list[Branch]:
    """A branch for each part of the prompt; of this alone layers are skipped, as in diffusers."""
    parts = enumerate(parse_parts(request.prompt), 1)
    return [Branch(f"positive {number}", part.text, part.weight, request.clip_skip) for number, part in parts]


def part_weights(request: ResolvedRequest) -> tuple[float, ...]:
    """The weight of each part of the prompt."""
    return tuple(part.weight for part in parse_parts(request.prompt))


def denoiser_uses(
    request: ResolvedRequest, guidance: Guidance, schedule: Schedule, dims: Mapping[str, int]
) -> tuple[GraphUse, ...]:
    """A use for each number of branches that a call may take, the most first, and first those of whole calls where
    others take inner values over. dims: all but the batch."""
    calls: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}  # True: of those that take them over
    reuse = reuse_of(request)
    for index in range(schedule.steps_taken):
        progress = schedule.progress(index)
        active = guidance.active(progress)
        for _ in range(schedule.calls_in(index)):
            calls[reuse is not None and reuse.takes(active, progress)][len(active)] += 1
    batches = request.batches
    return tuple(
        GraphUse(
            ref=GraphRef("denoiser", FAST if request.fast else FULL),
            phase=DENOISE,
            dims={"batch": len(batches[0]) * branches, **dims},
            calls=len(batches) * count,
            opens=len(batches),
            branches=branches,
            unguided=branches < max(calls[takes]),
            cut=cut_of(request, takes=takes) if calls[True] else None,
            token_merging=request.token_merging,
            residuals=residual_channels(request),
            features=feature_sizes(request, schedule),
        )
        for takes in calls
        for branches, count in sorted(calls[takes].items(), reverse=True)
    )


def is_guided(request: ResolvedRequest, manifest: Manifest) -> bool:
    """Whether a request takes two predictions a step.

    1 is off. 0 is the negative prompt alone; but a denoiser that by default has no guidance was distilled to do
    without, as SDXL-Turbo was, and there 0 is off too: that is how its users say it. A denoiser that is told the scale
    takes one prediction with any.
    """
    if manifest.guidance_embedding is not None:
        return False
    distilled = manifest.defaults(fast=request.fast).guidance_scale in (0.0, 1.0)
    return request.guidance_scale != 1.0 and not (distilled and request.guidance_scale == 0.0)


def interval_of(request: ResolvedRequest) -> Interval:
    """Where a guided request takes guidance, which a gate ends. Raises RequestError."""
    interval = Interval() if request.guidance_interval is None else Interval.parse(request.guidance_interval)
    gate = request.gate_start
    if gate is None or gate >= interval.stop:
        return interval
    if gate <= interval.start:
        raise RequestError(
            f"guidance begins at {interval.start:g} of the way, and a gate_start of {gate:g} ends it before",
            fix="give a larger gate_start, or a guidance_interval that begins earlier",
        )
    return Interval(interval.start, gate)


def refuse_interval(request: ResolvedRequest, manifest: Manifest) -> None:
    """RequestError where guidance has an interval and isn't there."""
    if request.guidance_interval is None:
        return
    if manifest.guidance_embedding is not None:
        raise RequestError(
            "guidance_interval is given, and this model is told its guidance scale once, for every step",
            fix="leave guidance_interval out",
        )
    raise RequestError(
        f"guidance_interval is given, and a guidance_scale of {request.guidance_scale:g} is none",
        fix="leave guidance_interval out, or give another guidance_scale",
    )


def guidance_input(request: ResolvedRequest, manifest: Manifest, rows: int) -> Conditioning:
    """What a denoiser that was distilled with guidance is told of the scale, so many rows; of others nothing."""
    numbers = manifest.guidance_embedding
    if numbers is None:
        return {}
    return {GUIDANCE_INPUT: np.repeat(guidance_embedding(request.guidance_scale, numbers), rows, axis=0)}


def guidance_embedding(guidance_scale: float, numbers: int) -> NDArray[np.float32]:
    """(1, numbers): 1000 * (scale - 1) by sines, then cosines, of falling frequencies, as timesteps are embedded.

    Luo et al. 2023, section 4.1; diffusers' LatentConsistencyModelPipeline has the factor.
    """
    half = numbers // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0) / (half - 1)))
    angles = np.float32(1000.0 * (guidance_scale - 1.0)) * frequencies
    values = np.concatenate([np.sin(angles), np.cos(angles)])
    return np.pad(values, (0, numbers - 2 * half))[np.newaxis].astype(np.float32)


def encoder_calls(request: ResolvedRequest, manifest: Manifest) -> int:
    """Of the VAE's encoder: for the picture that a request begins with, and for what its mask leaves of it."""
    if request.hires is not None:
        return request.count if request.hires.upscale == "pixel" else 0
    if request.image is None or request.image.latents:
        return 0
    if not manifest.is_inpainting:  # image to image, or an editing model's own input
        return 1
    return 2 if request.strength < 1.0 else 1  # nothing of the picture itself is in pure noise


def encoding_use(width: int, height: int, calls: int = 1, role: str = ENCODER) -> GraphUse:
    """The use of the VAE's encoder that turns pictures of that size, in pixels, into latents."""
    dims = {"batch": 1, "height": height, "width": width}
    return GraphUse(ref=GraphRef(role), phase=START, dims=dims, calls=calls)
