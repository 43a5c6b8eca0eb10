"""Stable Diffusion XL: two text encoders side by side, the second one's whole-prompt embedding, and the sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tintype.families.base import EMBEDDINGS, CallEncoder, Conditioning, Tokens, run_text_encoder, with_zeros
from tintype.families.stable_diffusion import StableDiffusion
from tintype.prompt import Wording
from tintype.request import ResolvedRequest


class StableDiffusionXL(StableDiffusion):
    """Branches and uses are those of its elder; see `Family`."""

    def encode(
        self, request: ResolvedRequest, wordings: Sequence[Wording], tokens: Tokens, call: CallEncoder
    ) -> Conditioning:
        encodings = [run_text_encoder(role, prompts, call) for role, prompts in tokens.encoded.items()]
        states = np.concatenate([encoding.states for encoding in encodings], axis=-1)
        text_embeds = encodings[-1].text_embeds
        assert text_embeds is not None  # the manifest has text_encoder_2 give them
        # Original size, crop and target size: the picture is asked for as one that was never cut, as diffusers does.
        size = (float(request.height), float(request.width))
        return {
            EMBEDDINGS: with_zeros(states, wordings),
            "text_embeds": with_zeros(text_embeds, wordings),
            "time_ids": np.array([[*size, 0.0, 0.0, *size]] * len(wordings), np.float32),
        }
