"""The only door from pixels to a picture: it gets its record here, and nothing passes beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype._version import __version__
from tintype.arrays import Latents, Pixels
from tintype.bundle import Bundle
from tintype.bundle.manifest import DECODERS
from tintype.engine import peak_rss_bytes
from tintype.errors import BlockedError
from tintype.events import Picture
from tintype.graphs.resident import ALL_RESIDENT, Graphs
from tintype.image.decode import to_image, to_unit
from tintype.memory.plan import ExecutionPlan, Plan
from tintype.record.private import Withheld
from tintype.record.provenance import BY_PRIORS, TIMED, Provenance, with_base, with_refiner
from tintype.record.record import Memorisation, MemoryFacts, Record, SafetyFacts, TrustMarkFacts, Watermark
from tintype.stages.context import Context
from tintype.stages.decode import decode, samples_in
from tintype.trust.memorisation import about_memorisation
from tintype.trust.thresholds import judge_score
from tintype.uses import GraphRef

SAFETY = "safety"  # the rule of a BlockedError


def finish(ctx: Context, batch: range, latents: Latents, warnings: Iterable[str]) -> Iterator[Picture]:
    """The pictures of a batch, each decoded when the one before was taken. warnings: about how latents were made."""
    about_latents = tuple(warnings)
    for row, picture in enumerate(batch):
        if ctx.only in (None, picture):
            made = decoded(ctx, picture, latents[row : row + 1])
            if made is not None:
                record = record_of(ctx, picture, (*about_latents, *made.notes))
                yield to_picture(ctx, made, record)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The pixels of one picture, (1, height, width, 3), judged and marked; notes: what its record says of that."""

    pixels: Pixels
    watermark: Watermark | None
    trustmark: TrustMarkFacts | None
    safety: SafetyFacts | None
    notes: tuple[str, ...]


def decoded(ctx: Context, picture: int, latents: Latents) -> Decoded | None:
    """A picture of its latents, (1, channels, height, width); None for one that the safety checker blocks."""
    begun = len(ctx.warnings)
    pixels = with_outside(ctx, decode(ctx, latents))
    safety = judged(ctx, picture, pixels)
    if picture in ctx.blocked:
        return None
    notes = (*ctx.warnings[begun:], *about_pixels(pixels))
    return Decoded(*marked(ctx, pixels), safety, notes)


def judged(ctx: Context, picture: int, pixels: Pixels) -> SafetyFacts | None:
    """What the safety checker makes of a picture; one that it blocks is kept in mind in `ctx.blocked`."""
    if ctx.checker is None:
        return None
    facts = ctx.checker.judge(pixels[0])
    if facts.score >= facts.threshold:
        ctx.blocked[picture] = facts
    return facts


def demand_unblocked(ctx: Context) -> None:
    """Raises BlockedError for the first picture of a run that was blocked, once the others are made."""
    if not ctx.blocked:
        return
    facts = next(iter(ctx.blocked.values()))
    which = "the picture is" if len(ctx.request.seeds) == 1 else f"{len(ctx.blocked)} of the pictures are"
    raise BlockedError(
        f"{which} blocked by the safety checker: a score of {facts.score:g}, and {facts.threshold:g} is the threshold",
        fix="ask for something else, or with another seed; whoever runs this keeps the threshold",
        rule=SAFETY,
        where="picture",
        score=facts.score,
        threshold=facts.threshold,
        pictures=tuple(ctx.blocked),
    )


def about_pixels(pixels: Pixels) -> tuple[str, ...]:
    """A sentence for a picture that shows nothing: the model drew it so, and nothing was put in another's place."""
    return () if pixels.any() else ("every pixel is black, as the model drew it",)


def with_outside(ctx: Context, pixels: Pixels) -> Pixels:
    """The picture that a run began with, byte for byte outside its mask, where that was asked for."""
    original, mask = ctx.request.inputs.pixels, _exact_mask(ctx)
    if original is None or mask is None:
        return pixels
    from tintype.image.mask import keep_outside

    return keep_outside(original[0], pixels[0], mask)[np.newaxis]


def _exact_mask(ctx: Context) -> NDArray[np.float32] | None:
    """The mask outside of which every byte stays; None where none has to."""
    mask = ctx.request.mask
    return None if mask is None or mask.keep_outside != "exact" else ctx.request.inputs.mask


def marked(ctx: Context, pixels: Pixels) -> tuple[Pixels, Watermark | None, TrustMarkFacts | None]:
    """A picture with its watermark, where it was asked for; what has to stay byte for byte has none.

    A TrustMark comes first: it is as strong as it is, while ours is as strong as it takes over what it finds.
    """
    if ctx.marker is None:
        return pixels, None, None
    picture, where, trustmark = pixels[0], _exact_mask(ctx), None
    if ctx.trustmark is not None:
        picture, trustmark = ctx.trustmark.mark(picture, ctx.marker.payload(picture), where)
    picture, watermark = ctx.marker.mark(picture, where)
    if ctx.trustmark is not None and trustmark is not None:
        trustmark = ctx.trustmark.checked(trustmark, picture, ctx.request.inputs.pixels)
    return picture[np.newaxis], watermark, trustmark


def float_pixels(ctx: Context, latents: Latents) -> NDArray[np.float32]:
    """(pictures, height, width, 3), 0 to 1: what `finish` rounds and marks, without what it keeps outside of a mask."""
    samples = np.concatenate(list(samples_in(ctx, latents, ctx.decode_modes[0])))
    return np.ascontiguousarray(to_unit(samples).transpose(0, 2, 3, 1))


def to_picture(ctx: Context, made: Decoded, record: Record) -> Picture:
    """record: what it says of the request, and of how latents were made."""
    known = replace(record, watermark=made.watermark, trustmark=made.trustmark, safety=made.safety, **_by_operator(ctx))
    return Picture(record.picture, to_image(made.pixels[0]), known, ctx.signer)


def record_of(ctx: Context, picture: int, warnings: Iterable[str]) -> Record:
    """The record of one of a run's pictures, the last one that was decoded."""
    memory = None
    if ctx.plan is not None and ctx.plan.budget_bytes is not None:
        memory = MemoryFacts(
            budget_bytes=ctx.plan.budget_bytes,
            planned_peak_bytes=max(plan.most_bytes for plan in _plans(ctx)),
            peak_rss_bytes=peak_rss_bytes(),
            device_bytes=ctx.clock.device_bytes,
        )
    request = ctx.request
    seed, numbers = request.seeds[picture], ctx.bundle.manifest.latent_numbers(request.width, request.height)
    memorisation = memorisation_of(ctx, picture)
    return Record(
        request=request,
        picture=picture,
        made_with=provenance_of(ctx, picture),
        memory=memory,
        deal=ctx.deal,
        withheld=Withheld.of(request.prompt, request.negative_prompt, seed) if request.private else None,
        coded_noise=None if ctx.coder is None else ctx.coder.facts(seed, numbers),
        memorisation=memorisation,
        notes=tuple(dict.fromkeys((*warnings, *about_memorisation(memorisation)))),
        **_by_operator(ctx),
    )


def memorisation_of(ctx: Context, picture: int) -> Memorisation | None:
    """How strongly the words drew a picture; of one that goes on from another, how they drew that."""
    drawn = ctx if ctx.base is None else ctx.base
    batch = next((batch for batch in drawn.norms if picture in batch), None)
    score = None if batch is None else drawn.norms[batch].score(batch.index(picture))
    return None if score is None else judge_score(score, drawn.request, drawn.bundle)


def _by_operator(ctx: Context) -> dict[str, Any]:
    """Fields of a record that whoever runs this decides."""
    return {"policy": ctx.policy, "credentials": None if ctx.signer is None else ctx.signer.certificate.whose}


def _plans(ctx: Context) -> Iterator[Plan]:
    """Those that a run went by: its own, and that of the model that a refiner goes on from."""
    runs = (ctx, ctx.base) if ctx.is_refining else (ctx,)
    yield from (run.plan for run in runs if run is not None and run.plan is not None)


def provenance_of(ctx: Context, picture: int) -> Provenance:
    """What decides the bytes of a picture besides the request; builds are made where they are missing."""
    graphs, plan = ctx.graphs.all, ctx.graphs.plan.with_mode(DECODERS[ctx.request.decoder], ctx.decode_modes[0])
    pictures = next(len(batch) for batch in ctx.request.batches if picture in batch)
    builds, kernels = {}, {}
    for use in ctx.uses_for(pictures):
        facts = graphs.build_facts(use, graphs.options(use, ctx.request.exactness, plan))
        builds[use.name] = facts.id
        if graphs.target.is_host:
            kernels[use.name] = TIMED if facts.timed else BY_PRIORS
    here = provenance(ctx.bundle, graphs, builds, kernels, plan, denoiser=ctx.denoiser)
    if ctx.base is None:
        return here
    before = provenance_of(ctx.base, picture)
    return with_refiner(before, here) if ctx.is_refining else with_base(here, before)


def circumstances(ctx: Context, builds: Mapping[str, str]) -> Provenance:
    """The same as far as it is known before any build is made; these are taken for its builds."""
    here = provenance(ctx.bundle, ctx.graphs.all, builds, denoiser=ctx.denoiser)
    if ctx.base is None or not ctx.is_refining:
        return here
    before = provenance(ctx.base.bundle, ctx.base.graphs.all, builds, denoiser=ctx.base.denoiser)
    return replace(with_refiner(before, here), builds=builds)


def provenance(
    bundle: Bundle,
    graphs: Graphs,
    builds: Mapping[str, str],
    kernels: Mapping[str, str] | None = None,
    plan: ExecutionPlan = ALL_RESIDENT,
    *,
    denoiser: GraphRef,
) -> Provenance:
    """What these builds of a bundle are on this machine."""
    from tintype.engine import ort_version

    return Provenance(
        tintype=__version__,
        onnxruntime=ort_version(),
        bundle=bundle.name,
        bundle_hash=bundle.hash,
        precision=bundle.graph(denoiser.role, denoiser.variant).precision,
        target=graphs.target.name,
        builds=dict(builds),
        threads=graphs.threads,
        modes={name: str(mode) for name, mode in plan.modes.items()},
        split_guidance=plan.split_guidance,
        kernels=kernels or {},
        licence=bundle.manifest.licence,
    )
