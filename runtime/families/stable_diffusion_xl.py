"""Stable Diffusion XL: two text encoders side by side, the second one's whole-prompt embedding, and the sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tintype.bundle import Manifest, PreviewFactors
from tintype.families.base import EMBEDDINGS, CallEncoder, Conditioning, Tokens, run_text_encoder, with_zeros
from tintype.families.stable_diffusion import StableDiffusion, guidance_input
from tintype.prompt import Wording
from tintype.request import ResolvedRequest

# Of XL's VAE; see LATENTS_PREVIEW of its elder.
XL_LATENTS_PREVIEW = PreviewFactors(
    weights=(
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
    ),
    bias=(0.1084, -0.0175, -0.0011),
)


class StableDiffusionXL(StableDiffusion):
    """Branches and uses are those of its elder; see `Family`."""

    preview = XL_LATENTS_PREVIEW

    def encode(
        self,
        request: ResolvedRequest,
        manifest: Manifest,
        wordings: Sequence[Wording],
        tokens: Tokens,
        call: CallEncoder,
    ) -> Conditioning:
        encodings = [run_text_encoder(role, prompts, call) for role, prompts in tokens.encoded.items()]
        states = np.concatenate([encoding.states for encoding in encodings], axis=-1)
        text_embeds = encodings[-1].text_embeds
        assert text_embeds is not None  # the manifest has text_encoder_2 give them
        return {
            EMBEDDINGS: with_zeros(states, wordings),
            "text_embeds": with_zeros(text_embeds, wordings),
            "time_ids": self.time_ids(request, wordings),
            **guidance_input(request, manifest, len(wordings)),
        }

    def time_ids(self, request: ResolvedRequest, wordings: Sequence[Wording]) -> NDArray[np.float32]:
        """(wordings, 6): original size, crop and target size, in pixels.

        The picture is asked for as one that was never cut, as diffusers does.
        """
        size = (float(request.height), float(request.width))
        return np.array([[*size, 0.0, 0.0, *size]] * len(wordings), np.float32)
