"""What is drawn before: smaller pictures, to be enlarged and drawn on, or latents that a refiner goes on from."""

from __future__ import annotations

from collections.abc import Iterator

from tintype.events import Step
from tintype.stages.context import Context
from tintype.stages.decode import event
from tintype.stages.denoise import denoise
from tintype.stages.encode import encode
from tintype.stages.start import start


def base_steps(ctx: Context, base: Context) -> Iterator[Step]:
    """The steps of all that is drawn before a run's pictures, whose latents are then those of `base`.

    Where there is a budget, two models have it one after the other.
    """
    base.only = ctx.only
    if base.evicts and ctx.is_refining:
        ctx.graphs.all.close()
    base.prepare()
    conditioning = encode(base)
    after = len(ctx.batches) * ctx.schedule.total
    for batch in base.batches:
        noise = base.noises[batch] = base.noise(batch)
        for step in denoise(base, conditioning, batch, start(base, batch, noise), noise):
            yield event(base, step, batch, after=after, decodes=ctx if ctx.is_refining else None)
    if base.evicts and ctx.is_refining:
        base.graphs.all.close()
