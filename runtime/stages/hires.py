"""The smaller pictures that are drawn before, to be enlarged and drawn on."""

from __future__ import annotations

from collections.abc import Iterator

from tintype.events import Step
from tintype.sampling import noise_source
from tintype.stages.context import Context
from tintype.stages.decode import event
from tintype.stages.denoise import denoise
from tintype.stages.encode import encode
from tintype.stages.start import start


def base_steps(ctx: Context, base: Context) -> Iterator[Step]:
    """The steps of all of a run's smaller pictures, whose latents are then those of `base`."""
    base.only = ctx.only
    base.prepare()
    conditioning = encode(base)
    after = len(ctx.batches) * ctx.schedule.total
    for batch in base.batches:
        noise = noise_source(base.request.noise, base.request.seeds[batch.start : batch.stop])
        for step in denoise(base, conditioning, batch, start(base, batch, noise), noise):
            yield event(base, step, batch, after=after)


def steps_of_base(ctx: Context) -> int:
    return 0 if ctx.base is None else len(ctx.batches) * ctx.base.schedule.total
