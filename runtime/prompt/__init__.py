"""Words -> token ids and weights: numpy and tokenizers alone, no model.

`encode_prompt` gives what a text encoder takes; `weigh` puts the weights on what it gave.
"""

from __future__ import annotations

from tintype.prompt.chunks import EncodedPrompt, encode_prompt, pad_chunks
from tintype.prompt.tokenizer import PromptTokenizer
from tintype.prompt.weights import Fragment, parse_weights, weigh

__all__ = ["EncodedPrompt", "Fragment", "PromptTokenizer", "encode_prompt", "pad_chunks", "parse_weights", "weigh"]
