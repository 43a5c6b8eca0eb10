"""Decoding that doesn't give up: whole, then in smaller and smaller pieces, and the latents are never lost.

The pieces are strips, which are the same picture; for a decoder that cannot be cut they are tiles, which nearly are.
What was tried last stays in the record, because it decides the bytes; a record is decoded as it says and not otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tintype import sampling
from tintype.arrays import Latents, Pixels, Samples
from tintype.bundle.manifest import TINY_DECODER
from tintype.errors import CancelledError, MemoryBudgetError, TintypeError, UncutError
from tintype.events import Step
from tintype.image.decode import decode_samples, to_image, to_pixels
from tintype.image.tiles import Tiling
from tintype.memory.mode import Mode, Strips, Tiles
from tintype.stages.context import Context
from tintype.uses import GraphRef, GraphUse

if TYPE_CHECKING:
    from PIL.Image import Image

Decode = Callable[[Latents, Mode], Pixels]


def decode(ctx: Context, latents: Latents) -> Pixels:
    """Latents, as the sampler left them -> (pictures, height, width, 3) of 0..255.

    `ctx.decode_modes` then begin with what memory was enough for.
    """
    with ctx.clock.counting("decode"):
        try:
            pixels, mode = decode_with_fallback(
                lambda latents, mode: decode_in(ctx, latents, mode), latents, ctx.decode_modes, ctx.graphs.all.close
            )
        except CancelledError:
            raise
        except TintypeError:
            ctx.graphs.all.close()  # so that there is room to keep the latents
            raise
    ctx.decode_modes = ctx.decode_modes[ctx.decode_modes.index(mode) :]  # what failed once isn't tried again
    ctx.look_at_device()
    return pixels


def decode_in(ctx: Context, latents: Latents, mode: Mode) -> Pixels:
    """The same in one mode, and no other."""
    return np.concatenate([to_pixels(samples) for samples in samples_in(ctx, latents, mode)])


def samples_in(ctx: Context, latents: Latents, mode: Mode, decoder: GraphUse | None = None) -> Iterator[Samples]:
    """Of each picture, (1, 3, height, width), -1 to 1. decoder: None is the request's."""
    manifest, use = ctx.bundle.manifest, decoder or ctx.decoder
    tiny = use.ref.role == TINY_DECODER  # it takes latents as the denoiser leaves them
    graphs = ctx.graphs.held_as(ctx.graphs.plan.with_mode(use.name, mode))
    with graphs.phase(use):
        yield from decode_samples(
            lambda sample: graphs.call(use, {"latent_sample": sample}, who="the VAE decoder")["sample"],
            latents,
            cell=manifest.vae_scale_factor,
            scaling_factor=1.0 if tiny else manifest.scaling_factor,
            shift_factor=0.0 if tiny else manifest.shift_factor,
            tiling=Tiling(mode.cells, mode.overlap) if isinstance(mode, Tiles) else None,
        )


def event(ctx: Context, step: sampling.Step, batch: range, *, after: int = 0, decodes: Context | None = None) -> Step:
    """What a run tells of a sampler's step. after: further steps of the run. decodes: whose decoder shows it."""
    batches, each, shown = ctx.batches, ctx.schedule.steps_taken, decodes or ctx
    before = 0 if ctx.base is None else len(batches) * ctx.base.schedule.steps_taken

    return Step(
        index=before + batches.index(batch) * each + step.index,
        total=before + len(batches) * each + after,
        sigma=step.sigma,
        latents=step.latents.copy(),  # what a caller writes there changes no picture
        denoised=step.denoised.copy(),
        pictures=batch,
        decode=lambda latents: _decoded(shown, latents),
        sketch=lambda latents: _sketched(shown, latents),
    )


def _decoded(ctx: Context, latents: Latents) -> list[Image]:
    return [to_image(picture) for picture in decode_in(ctx, latents, ctx.decode_modes[0])]


def _sketched(ctx: Context, latents: Latents) -> list[Image]:
    """By a tiny decoder, else by linear factors, else as they will be decoded.

    A tiny one that the run itself doesn't use is opened only where there is no budget: it has no place in a plan.
    """
    manifest, known = ctx.bundle.manifest, ctx.decoder
    if known.ref.role == TINY_DECODER:
        return _decoded(ctx, latents)
    if TINY_DECODER in manifest.graphs and not ctx.evicts and ctx.graphs.plan.keep:
        tiny = replace(known, ref=GraphRef(TINY_DECODER))
        samples = samples_in(ctx, latents, ctx.graphs.plan.mode(tiny.name), tiny)
        return [to_image(to_pixels(each)[0]) for each in samples]
    factors = manifest.preview
    if factors is None and manifest.latent_channels == len(ctx.family.preview.weights if ctx.family.preview else ()):
        factors = ctx.family.preview
    if factors is None:
        return _decoded(ctx, latents)
    from tintype.image.preview import linear_images  # nothing else needs it

    return linear_images(latents, factors.weights, factors.bias, manifest.vae_scale_factor)


def decode_with_fallback(
    decode: Decode, latents: Latents, modes: Sequence[Mode], make_room: Callable[[], None]
) -> tuple[Pixels, Mode]:
    """The pictures, and the first of `modes` that memory was enough for. make_room: called before each new try.

    Raises MemoryBudgetError when it was enough for none. Once memory ran out, modes that the decoder doesn't have are
    left out; where it can run in strips, tiles are not tried after them.
    """
    side = max(latents.shape[2:])
    first, *others = modes
    useful = [first, *(mode for mode in others if not isinstance(mode, Tiles) or mode.cells < side)]
    failure: Exception | None = None
    last = first
    for mode in useful:
        if isinstance(mode, Tiles) and isinstance(last, Strips):
            break  # strips ran, and tiles need no less than the smallest of them
        if failure is not None:
            make_room()
        try:
            return decode(latents, mode), mode
        except (MemoryBudgetError, MemoryError) as error:
            failure, last = error, mode
        except UncutError:
            if failure is None:
                raise
    how = "" if last == first else f", even in {last}"
    raise MemoryBudgetError(
        f"there was not enough memory to decode the picture{how}: {_reason(failure)}",
        fix="its latents are kept: save them with Run.save_latents(FILE), close other programs, "
        "then tintype generate --from-latents FILE",
    ) from None


def _reason(error: Exception | None) -> str:
    if isinstance(error, MemoryBudgetError):
        return error.message
    return str(error) or "the system gave none"
