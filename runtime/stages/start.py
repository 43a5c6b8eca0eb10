"""Seeds -> the latents that a batch begins with."""

from __future__ import annotations

import numpy as np

from tintype.arrays import Latents, Pixels
from tintype.bundle import Manifest
from tintype.graphs.resident import BoundGraphs
from tintype.image.encode import encode_pixels
from tintype.sampling import NoiseSource
from tintype.stages.context import Context
from tintype.uses import GraphUse


def starting_latents(ctx: Context, pictures: int, noise: NoiseSource) -> Latents:
    """(pictures, channels, height, width), at the schedule's first noise level."""
    manifest = ctx.bundle.manifest
    height, width = (side // manifest.vae_scale_factor for side in (ctx.request.height, ctx.request.width))
    drawn = noise.draw((pictures, manifest.latent_channels, height, width))
    return drawn * np.float32(ctx.schedule.initial_scale)


def encode_picture(graphs: BoundGraphs, use: GraphUse, pixels: Pixels, manifest: Manifest) -> Latents:
    """Pixels, (1, height, width, 3) -> latents, (1, channels, height, width), as the decoder takes them.

    They are the mean of what the VAE's encoder gives; its noise, which it would draw from, is left out.
    """
    with graphs.phase(use):
        return encode_pixels(
            lambda sample: graphs.call(use, {"sample": sample}, who="the VAE encoder")["latent_parameters"],
            pixels,
            scaling_factor=manifest.scaling_factor,
            shift_factor=manifest.shift_factor,
        )
