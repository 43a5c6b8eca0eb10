"""The base model as its checkpoint holds it, frozen, and what every training of an adapter measures by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tintype.sampling.scheduler_config import SchedulerConfig

from ..denoiser import SCHEDULER, UNCONDITIONAL_SHARE
from ..recipe import CHECKPOINT
from ..text import embed

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True, slots=True)
class Base:
    """Postcard's own parts in float32; none of them is trained."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scaling_factor: float
    alphas: torch.Tensor  # (1000,)

    @classmethod
    def load(cls) -> Base:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextModel, CLIPTokenizer

        unet = UNet2DConditionModel.from_pretrained(CHECKPOINT / "unet", torch_dtype=torch.float32)
        unet.set_attn_processor(AttnProcessor())  # at these sizes plain attention trains faster on a CPU
        vae = AutoencoderKL.from_pretrained(CHECKPOINT / "vae", torch_dtype=torch.float32)
        encoder = CLIPTextModel.from_pretrained(CHECKPOINT / "text_encoder", dtype=torch.float32)
        return cls(
            unet=unet.to(memory_format=torch.channels_last).requires_grad_(False),
            vae=vae.eval().to(memory_format=torch.channels_last).requires_grad_(False),
            encoder=encoder.eval().requires_grad_(False),
            tokenizer=CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"),
            scaling_factor=float(vae.config.scaling_factor),
            alphas=torch.from_numpy(SchedulerConfig.from_json(SCHEDULER).alphas_cumprod),
        )

    @torch.no_grad()
    def words(self, captions: Sequence[str]) -> torch.Tensor:
        """Their embeddings, (n, 77, width), and behind them the embedding of no words: what trainings choose from."""
        said = [*captions, ""]
        batches = [embed(self.encoder, self.tokenizer, said[i : i + 100]) for i in range(0, len(said), 100)]
        return torch.cat(batches).bfloat16()


def chosen_words(words: torch.Tensor, chosen: NDArray[np.int64], rng: np.random.Generator) -> torch.Tensor:
    """The embeddings of chosen captions; some are dropped, for guidance."""
    dropped = rng.random(len(chosen)) < UNCONDITIONAL_SHARE
    return words[np.where(dropped, len(words) - 1, chosen)].float()
