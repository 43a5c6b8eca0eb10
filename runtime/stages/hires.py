"""The smaller pictures that are drawn before, to be enlarged and drawn on."""

from __future__ import annotations

from collections.abc import Iterator

from tintype.events import Step
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
        noise = base.noise(batch)
        for step in denoise(base, conditioning, batch, start(base, batch, noise), noise):
            yield event(base, step, batch, after=after)
