"""What is told of LoRAs and embeddings before a run."""

from __future__ import annotations

from collections.abc import Iterator

from tintype.request import ResolvedRequest


def about_adapters(request: ResolvedRequest) -> Iterator[str]:
    """A sentence where a LoRA decided steps and guidance, and for each word of its own that no prompt has."""
    if request.inputs.loras:
        from tintype.adapters.few_steps import about_few_steps

        yield from about_few_steps(request.inputs.loras)
    if request.inputs.words is not None:
        for word in request.inputs.words.unused_in(request.prompt, request.negative_prompt):
            yield f"the embedding {word!r} stands in no prompt"
