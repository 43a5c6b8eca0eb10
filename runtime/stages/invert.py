"""A picture -> the noise that its model would have drawn it from, as far as that can be told: drawing, backwards.

DDIM inversion (Song et al. 2020, section 4.3; Dhariwal & Nichol 2021) along the probability flow, from the picture's
latents up through the noise levels, without words or guidance: whoever has the picture alone knows neither. Each step
is Euler's, solved for where it came from: its slope is that of the noisier end, where the last step's slope leads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tintype.arrays import Latents
from tintype.errors import RequestError
from tintype.request import Request
from tintype.stages.context import Context
from tintype.stages.denoise import Denoiser
from tintype.stages.encode import encode
from tintype.stages.start import picture_latents

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.bundle import Manifest

STEPS = 10  # more find no more signs again (postcard, 5 to 50), as words and guidance are what is missing


def inversion_request(picture: Image, manifest: Manifest) -> Request:
    """What is asked of a bundle to go backwards from a picture. RequestError for one that draws from pictures."""
    if manifest.needs_picture:
        raise RequestError(
            "this model draws pictures from pictures, which have no coded noise", fix="give the model that drew it"
        )
    return Request(
        prompt="",
        negative_prompt="",
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        sampler="euler",
        width=picture.width,
        height=picture.height,
        seed=0,
        image=picture,
        strength=1.0,
        fit="stretch",
        watermark=False,
    )


def starting_noise(ctx: Context) -> Latents:
    """(1, channels, height, width), of about unit variance: what a run's picture seems to begin with."""
    ctx.prepare()
    conditioning = encode(ctx)
    latents = picture_latents(ctx, range(1))
    denoiser = Denoiser(ctx, conditioning, 1)
    sigmas, timesteps = (each[::-1].tolist() for each in (ctx.schedule.sigmas[:-1], ctx.schedule.timesteps))
    with ctx.graphs.phase(*denoiser.uses):
        before, slope = 0.0, None
        for sigma, timestep in zip(sigmas, timesteps, strict=True):
            ahead = latents if slope is None else latents + slope * (sigma - before)
            slope = (ahead - denoiser(ahead, sigma, timestep).guided) / sigma
            latents, before = latents + slope * (sigma - before), sigma
    return latents / ctx.schedule.initial_scale
