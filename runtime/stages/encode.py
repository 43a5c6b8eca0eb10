"""Words -> what the denoiser is told."""

from __future__ import annotations

from tintype.arrays import Arrays
from tintype.families.base import Conditioning
from tintype.stages.context import Context
from tintype.uses import ENCODE


def encode(ctx: Context) -> Conditioning:
    """What the denoiser is told besides noisy latents: a row a wording."""

    def call(role: str, inputs: Arrays) -> Arrays:
        use, words = ctx.use(role), ctx.request.inputs.words
        if words is not None:
            inputs = {**inputs, **words.input(role, use.embedding_rows)}
        return ctx.graphs.call(use, inputs, who="the text encoder")

    with ctx.clock.counting("encode"), ctx.graphs.phase(*(use for use in ctx.uses if use.phase == ENCODE)):
        return ctx.family.encode(ctx.request, ctx.bundle.manifest, ctx.prompts.wordings, ctx.tokens, call)
