"""Seeds, and a picture or given noise, -> the latents that a batch begins with, and what becomes of each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents, Samples
from tintype.bundle import Manifest
from tintype.bundle.manifest import TINY_ENCODER
from tintype.graphs.bound import BoundGraphs
from tintype.image.decode import demand_shape
from tintype.image.encode import encode_samples, to_samples
from tintype.sampling import AfterStep, NoiseSource, unchanged
from tintype.stages.context import Context
from tintype.stages.decode import decode
from tintype.uses import GraphUse


@dataclass(frozen=True, slots=True)
class Start:
    latents: Latents  # (pictures, channels, height, width), at the schedule's first noise level
    after_step: AfterStep = unchanged
    # Channels that some models take after the latents, the same at every step: for each branch (1 or pictures, ...,
    # height, width). In an inpainting model they are the mask in latent cells, and the latents of the picture without
    # what it hides; in an editing model the picture's latents, or zeros.
    channels: tuple[Latents, ...] | None = None


def start(ctx: Context, batch: range, noise: NoiseSource) -> Start:
    """What a batch begins with: noise, or a picture with noise laid over it."""
    if ctx.base is not None and ctx.is_refining:
        return Start(_latents_of(ctx.base, batch))
    if ctx.base is not None:
        return _enlarged(ctx, ctx.base, batch, noise)
    manifest, inputs, schedule = ctx.bundle.manifest, ctx.request.inputs, ctx.schedule
    height, width = (side // manifest.vae_scale_factor for side in (ctx.request.height, ctx.request.width))
    if inputs.latents is not None:  # the first numbers of the noise are then for the sampler, as in diffusers
        drawn = inputs.latents[batch.start : batch.stop]
    else:
        drawn = noise.draw((len(batch), manifest.latent_channels, height, width))
        if ctx.coder is not None:
            drawn = ctx.coder.coded(drawn, ctx.request.seeds[batch.start : batch.stop])
    if manifest.is_editing:
        return Start(drawn * np.float32(schedule.initial_scale), channels=editing_channels(ctx, batch))
    if ctx.request.image is None or (inputs.mask is not None and not schedule.skipped):
        begun = drawn * np.float32(schedule.initial_scale)  # of a picture nothing is left inside its mask
    else:
        begun = noised(picture_latents(ctx, batch), drawn, float(schedule.sigmas[0]))
    if inputs.mask is None:
        return Start(begun)
    if manifest.is_inpainting:  # it sees the picture at every step: nothing has to be put back outside the mask
        return Start(begun, channels=inpainting_channels(ctx, inputs.mask))
    from tintype.image.mask import mask_cells  # here and below: no picture from words needs it

    mask = mask_cells(inputs.mask, manifest.vae_scale_factor)
    kept = kept_outside(picture_latents(ctx, batch), mask, drawn, scale_of_last=schedule.scale_of_last)
    return Start(begun, kept)


def _enlarged(ctx: Context, base: Context, batch: range, noise: NoiseSource) -> Start:
    """The smaller pictures of a batch, enlarged, with noise laid over them."""
    from tintype.image.resize import resize_latents, resize_pixels

    manifest, hires = ctx.bundle.manifest, ctx.request.hires
    assert hires is not None  # else there would be no base
    small = _latents_of(base, batch)
    if hires.upscale == "pixel":
        pictures = []
        for one in small:
            large = resize_pixels(decode(base, one[np.newaxis]), ctx.request.width, ctx.request.height)
            pictures.append(_encode(ctx, to_samples(large)))
        latents = np.concatenate(pictures)
    else:
        sides = (side // manifest.vae_scale_factor for side in (ctx.request.height, ctx.request.width))
        latents = resize_latents(small, *sides)
    noise.draw(small.shape)  # what the smaller ones began with
    return Start(noised(latents, noise.draw(latents.shape), float(ctx.schedule.sigmas[0])))


def _latents_of(base: Context, batch: range) -> Latents:
    """What was drawn before, of a batch's pictures."""
    return np.concatenate(base.latents)[[base.denoised.index(picture) for picture in batch]]


def noised(picture: Latents, noise: Latents, sigma: float) -> Latents:
    """A picture's latents at a noise level."""
    return picture + noise * np.float32(sigma)


def kept_outside(picture: Latents, mask: NDArray[np.float32], noise: Latents, *, scale_of_last: float) -> AfterStep:
    """After each step the picture comes back outside the mask, at that step's noise (Lugmayr et al. 2022, formula 8).

    mask: (height, width) in cells, 1 is made new. noise: the batch's, the same at every step. scale_of_last: of the
    sampler's last latents, over those that are decoded.
    """

    def after_step(latents: Latents, sigma: float, left: int) -> Latents:
        original = picture * np.float32(scale_of_last) if left == 0 else noised(picture, noise, sigma)
        return latents * mask + original * (1 - mask)

    return after_step


def picture_latents(ctx: Context, batch: range) -> Latents:
    """The latents of the picture that a batch begins with; of one that is given as pixels they are made once."""
    pixels, given = ctx.request.inputs.pixels, ctx.request.inputs.picture
    if given is not None:
        return given if len(given) == 1 else given[batch.start : batch.stop]
    assert pixels is not None
    if ctx.picture is None:
        ctx.picture = _encode(ctx, to_samples(pixels))
    return ctx.picture


def editing_channels(ctx: Context, batch: range) -> tuple[Latents, ...]:
    """What an editing model is told of the picture, by branch; see `Start`. Nothing scales these latents."""
    latents = picture_latents(ctx, batch) / np.float32(ctx.bundle.manifest.scaling_factor)
    return tuple(latents if branch.sees_picture else np.zeros_like(latents) for branch in ctx.branches)


def inpainting_channels(ctx: Context, mask: NDArray[np.float32]) -> tuple[Latents, ...]:
    """What an inpainting model is told of the picture, made once; see `Start`."""
    from tintype.image.mask import hard_cells, hide

    pixels = ctx.request.inputs.pixels
    assert pixels is not None  # `resolve` demands them
    if ctx.channels is None:
        cells = hard_cells(mask, ctx.bundle.manifest.vae_scale_factor)
        rest = _encode(ctx, hide(to_samples(pixels), mask))
        ctx.channels = (np.concatenate([cells[np.newaxis, np.newaxis], rest], axis=1),) * len(ctx.branches)
    return ctx.channels


def _encode(ctx: Context, samples: Samples) -> Latents:
    with ctx.clock.counting("encode"):
        return encode_picture(ctx.graphs, ctx.encoder, samples, ctx.bundle.manifest)


def encode_picture(graphs: BoundGraphs, use: GraphUse, samples: Samples, manifest: Manifest) -> Latents:
    """Samples, (1, 3, height, width) -> latents, (1, channels, height, width), as the decoder takes them.

    They are the mean of what the VAE's encoder gives; its noise, which it would draw from, is left out.
    """
    tiny = use.ref.role == TINY_ENCODER  # it gives latents as the denoiser takes them
    with graphs.phase(use):
        latents = encode_samples(
            lambda sample: graphs.call(use, {"sample": sample}, who="the VAE encoder")["latent_parameters"],
            samples,
            scaling_factor=1.0 if tiny else manifest.scaling_factor,
            shift_factor=0.0 if tiny else manifest.shift_factor,
        )
    rows, columns = (side // manifest.vae_scale_factor for side in samples.shape[2:])
    demand_shape("the VAE encoder", latents, (len(samples), manifest.latent_channels, rows, columns))
    return latents
