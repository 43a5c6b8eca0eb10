"""Model shapes that are measured with random weights: what a checkpoint's config.json files would say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tintype.sources.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, Family, tokenizer_of

Config = dict[str, Any]

CLIP: Config = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
_VAE: Config = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "sample_size": 512, "scaling_factor": 0.18215,
}  # fmt: skip
_CLIP_L: Config = {
    **CLIP, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
_BETAS: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_EULER: Config = {"_class_name": "EulerDiscreteScheduler", **_BETAS, "prediction_type": "epsilon"}
# As published checkpoints have it; it calls the UNet once more than it has steps.
_PNDM: Config = {**_BETAS, "_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A kind of checkpoint: its components' configs, its scheduler's, and what a usual picture of it is."""

    configs: Mapping[str, Config]
    scheduler: Config
    side: int  # pixels of a usual picture, each side
    steps: int
    guidance_scale: float
    sampler: str = "euler"

    @property
    def family(self) -> Family:
        return STABLE_DIFFUSION_XL if "text_encoder_2" in self.configs else STABLE_DIFFUSION

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Folders, by the names of their text encoders."""
        return tuple(map(tokenizer_of, self.family.text_encoders))

    @property
    def index(self) -> Config:
        """model_index.json, as diffusers writes it."""
        library = dict.fromkeys(self.family.text_encoders, "transformers")
        return {
            "_class_name": self.family.pipelines[0],
            **{name: [library.get(name, "diffusers"), kind] for name, kind in self.family.components.items()},
            **{name: ["transformers", "CLIPTokenizer"] for name in self.tokenizers},
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
        }

    def with_depth(self, depth: int) -> Shape:
        """The same with at most so many transformer layers a block; 10 is SDXL's own."""
        layers = self.configs["unet"].get("transformer_layers_per_block", 1)
        if isinstance(layers, list):
            layers = [min(each, depth) for each in layers]
        return self.with_configs({"unet": {"transformer_layers_per_block": layers}})

    def with_configs(self, changes: Mapping[str, Config]) -> Shape:
        """The same with other settings of some components."""
        configs = {name: {**config, **changes.get(name, {})} for name, config in self.configs.items()}
        return dataclasses.replace(self, configs=configs)


SD15 = Shape(
    configs={
        "text_encoder": _CLIP_L,
        "unet": {
            "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "attention_head_dim": 8, "cross_attention_dim": 768,
        },
        "vae": _VAE,
    },
    scheduler=_PNDM, side=512, steps=50, guidance_scale=7.5,
)  # fmt: skip

# Stable Diffusion 2.1's, distilled to one step.
SD_TURBO = dataclasses.replace(
    SD15.with_configs(
        {
            "text_encoder": {
                "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
                "hidden_act": "gelu", "projection_dim": 512,
            },
            "unet": {
                "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True,
            },
        }
    ),
    scheduler={**_EULER, "timestep_spacing": "trailing"}, steps=1, guidance_scale=0.0,
)  # fmt: skip

SDXL = Shape(
    configs={
        "text_encoder": {**_CLIP_L, "projection_dim": 768},
        "text_encoder_2": {
            **CLIP, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
            "hidden_act": "gelu", "projection_dim": 1280,
        },
        "unet": {
            "sample_size": 128, "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    },
    scheduler={**_EULER, "timestep_spacing": "leading"}, side=1024, steps=30, guidance_scale=5.0,
)  # fmt: skip

SDXL_TURBO = dataclasses.replace(
    SDXL.with_configs({"unet": {"sample_size": 64}, "vae": {"sample_size": 512}}),
    scheduler={**_EULER, "_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
    side=512, steps=4, guidance_scale=0.0, sampler="euler_a",
)  # fmt: skip

# To try a command on any machine: pictures of 64 pixels.
TINY = dataclasses.replace(
    SD15.with_configs(
        {
            "text_encoder": {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            },
            "unet": {
                "sample_size": 8, "block_out_channels": [32, 32, 64, 64], "attention_head_dim": 4,
                "cross_attention_dim": 32, "layers_per_block": 1,
            },
            "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
        }
    ),
    side=64, steps=3,
)  # fmt: skip

SHAPES = {"sd15": SD15, "sd-turbo": SD_TURBO, "sdxl": SDXL, "sdxl-turbo": SDXL_TURBO, "tiny": TINY}
