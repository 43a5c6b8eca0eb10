"""Words -> token ids and weights: numpy and tokenizers alone, no model.

`parse_parts` gives the prompts that are drawn together, `edited_prompts` what each says at which step, `encode_prompt`
what a text encoder takes; `weigh` puts the weights on what it gave.
"""

from __future__ import annotations

from tintype.prompt.added_words import AddedWords, padded_rows
from tintype.prompt.chunks import EncodedPrompt, encode_prompt, pad_chunks
from tintype.prompt.editing import EditedPrompts, StepCount, Wording, edited_prompts
from tintype.prompt.parts import Part, parse_parts
from tintype.prompt.tokenizer import PromptTokenizer
from tintype.prompt.weights import Fragment, parse_weights, weigh

__all__ = [
    "AddedWords",
    "EditedPrompts",
    "EncodedPrompt",
    "Fragment",
    "Part",
    "PromptTokenizer",
    "StepCount",
    "Wording",
    "edited_prompts",
    "encode_prompt",
    "pad_chunks",
    "padded_rows",
    "parse_parts",
    "parse_weights",
    "weigh",
]
