"""Words, and pictures beside them, -> what the denoiser is told."""

from __future__ import annotations

from tintype.arrays import Arrays
from tintype.families.base import Conditioning
from tintype.stages.context import Context
from tintype.stages.image_prompts import look
from tintype.uses import ENCODE


def encode(ctx: Context) -> Conditioning:
    """What the denoiser is told besides noisy latents: a row a wording. What it sees of pictures is then `ctx.seen`."""
    if ctx.seen is None:
        ctx.seen = look(ctx)

    def call(role: str, inputs: Arrays) -> Arrays:
        use, words = ctx.use(role), ctx.request.inputs.words
        more = {} if words is None else words.input(role, use.embedding_rows)
        with ctx.graphs.cancellable():
            adapted = ctx.loras.inputs(role)
        again = not more and not adapted  # the same words with another seed
        return ctx.graphs.call(use, {**inputs, **more, **adapted}, who="the text encoder", again=again)

    encoders = [use for use in ctx.uses if use.phase == ENCODE]
    try:
        with ctx.clock.counting("encode"), ctx.graphs.phase(*encoders):
            return ctx.family.encode(ctx.request, ctx.bundle.manifest, ctx.prompts.wordings, ctx.tokens, call)
    finally:
        ctx.loras.release(*(use.ref.role for use in encoders))
