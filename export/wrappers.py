"""A role's module as its graph sees it: inputs and outputs by the graph's names, and how each is traced.

Every forward takes its inputs by keyword and gives one tensor or a tuple, in the order of `TracePlan.outputs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tintype.export.checkpoint import TINY, TINY_VAE, Checkpoint
from tintype.export.tracing import TracePlan

if TYPE_CHECKING:
    from torch import Tensor

# Which component's weights a role has.
COMPONENT_OF = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "denoiser": "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "tiny_decoder": TINY_VAE,
    "tiny_encoder": TINY_VAE,
}
LEAST_LOG_VARIANCE = -30.0


class TextEncoder(torch.nn.Module):
    """input_ids (batch, 77) -> last_hidden_state (batch, 77, dim), after the final layer norm."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.text_model = module

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text_model(input_ids).last_hidden_state  # type: ignore[no-any-return]


class PenultimateTextEncoder(torch.nn.Module):
    """input_ids (batch, 77) -> hidden_states (batch, 77, dim), what the last layer but one gives, without a norm."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.text_model = module

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text_model(input_ids, output_hidden_states=True).hidden_states[-2]  # type: ignore[no-any-return]


class ProjectedTextEncoder(torch.nn.Module):
    """input_ids (batch, 77) -> hidden_states as above, and text_embeds (batch, projection), the prompt as a whole."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.text_model = module

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        told = self.text_model(input_ids, output_hidden_states=True)
        return told.hidden_states[-2], told.text_embeds


class Denoiser(torch.nn.Module):
    """sample (batch, C, h, w), timestep (1,), encoder_hidden_states (batch, seq, dim) -> out_sample (batch, C, h, w).

    In an inpainting model sample is (batch, 2C + 1, h, w): latents, a mask, the latents of a masked picture; in an
    editing one (batch, 2C, h, w). One of XL is told of the prompt as a whole, text_embeds (batch, projection), and of
    sizes, time_ids (batch, 6 or 5); a latent consistency model of its guidance scale, timestep_cond (batch, numbers).
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.unet = module

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(  # type: ignore[no-any-return]
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


class VaeDecoder(torch.nn.Module):
    """latent_sample (batch, C, h, w), already divided by scaling_factor -> sample (batch, 3, H, W) in [-1, 1]."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.vae = module

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]  # type: ignore[no-any-return, operator, union-attr]


class VaeEncoder(torch.nn.Module):
    """sample (batch, 3, H, W) in [-1, 1] -> latent_parameters (batch, 2C, h, w): mean, then log variance."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.vae = module

    def forward(self, sample: Tensor) -> Tensor:
        return self.vae.encode(sample, return_dict=False)[0].parameters  # type: ignore[no-any-return, operator, union-attr]


class TinyDecoder(torch.nn.Module):
    """latent_sample (batch, C, h, w), as the denoiser leaves it -> sample (batch, 3, H, W) in [-1, 1]."""

    def __init__(self, module: torch.nn.Module, factor: float) -> None:
        """factor: of the denoiser's latents over the module's own."""
        super().__init__()
        self.vae, self.factor = module, factor

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.vae.decode(latent_sample / self.factor, return_dict=False)[0]  # type: ignore[no-any-return, operator, union-attr]


class TinyEncoder(torch.nn.Module):
    """sample (batch, 3, H, W) in [-1, 1] -> latent_parameters (batch, 2C, h, w), as a `VaeEncoder` gives them.

    Its latents are sure: they stand for the mean, and the log variance is the least that diffusers has.
    """

    def __init__(self, module: torch.nn.Module, factor: float) -> None:
        """factor: of the denoiser's latents over the module's own; 1 leaves scaling to whoever calls."""
        super().__init__()
        self.vae, self.factor = module, factor

    def forward(self, sample: Tensor) -> Tensor:
        latents = self.vae.encode(sample, return_dict=False)[0] * self.factor  # type: ignore[operator, union-attr]
        return torch.cat([latents, torch.full_like(latents, LEAST_LOG_VARIANCE)], dim=1)


def wrap(checkpoint: Checkpoint, role: str, module: torch.nn.Module) -> torch.nn.Module:
    """`module`, which holds the role's weights, behind the graph's names."""
    if COMPONENT_OF[role] == TINY_VAE:
        factor = float(checkpoint.configs[TINY_VAE].get("scaling_factor", 1.0))
        return (TinyEncoder if role == "tiny_encoder" else TinyDecoder)(module, factor).eval()
    if role == "vae_encoder" and checkpoint.vae_class == TINY:
        return TinyEncoder(module, 1.0).eval()
    wrappers: dict[str, type[torch.nn.Module]] = {
        "text_encoder": PenultimateTextEncoder if checkpoint.family.is_xl else TextEncoder,
        "text_encoder_2": ProjectedTextEncoder,
        "denoiser": Denoiser,
        "vae_decoder": VaeDecoder,
        "vae_encoder": VaeEncoder,
    }
    return wrappers[role](module).eval()


def trace_plan(checkpoint: Checkpoint, role: str, tokens: int) -> TracePlan:
    """How a role is traced; tokens: what its text encoder takes at once."""
    if role == "denoiser":
        return denoiser_plan(checkpoint, tokens)
    if role in ("vae_decoder", "tiny_decoder"):
        return vae_decoder_plan(checkpoint.latent_channels)
    if role in ("vae_encoder", "tiny_encoder"):
        return vae_encoder_plan(checkpoint.vae_scale_factor)
    return text_encoder_plan(checkpoint.family.is_xl, role, tokens)


def text_encoder_plan(is_xl: bool, role: str, tokens: int) -> TracePlan:
    names = ["hidden_states" if is_xl else "last_hidden_state"]
    if role == "text_encoder_2":
        names.append("text_embeds")
    ids = torch.zeros(3, tokens, dtype=torch.int64)
    return TracePlan({"input_ids": ids}, {"input_ids": {0: "batch"}}, {name: {0: "batch"} for name in names}, {})


def denoiser_plan(checkpoint: Checkpoint, tokens: int) -> TracePlan:
    """The example is small, oblong and of batch 3, so no dim equals another."""
    multiple = checkpoint.latent_multiple
    width = int(checkpoint.configs["unet"]["cross_attention_dim"])
    inputs = {
        "sample": torch.randn(3, checkpoint.sample_channels, 6 * multiple, 4 * multiple),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(3, tokens, width),
    }
    latent_dims = {0: "batch", 2: "height", 3: "width"}
    dims: dict[str, dict[int, str]] = {
        "sample": latent_dims,
        "timestep": {},
        "encoder_hidden_states": {0: "batch", 1: "sequence"},
    }
    if checkpoint.family.is_xl:
        inputs["text_embeds"] = torch.randn(3, checkpoint.projection_dim)
        inputs["time_ids"] = torch.full((3, checkpoint.family.time_ids), 512.0)
        dims["text_embeds"] = dims["time_ids"] = {0: "batch"}
    if checkpoint.guidance_embedding is not None:
        inputs["timestep_cond"] = torch.randn(3, checkpoint.guidance_embedding)
        dims["timestep_cond"] = {0: "batch"}
    return TracePlan(inputs, dims, {"out_sample": latent_dims}, {"height": multiple, "width": multiple})


def vae_decoder_plan(channels: int) -> TracePlan:
    dims = {0: "batch", 2: "height", 3: "width"}
    latents = torch.randn(3, channels, 12, 10)
    return TracePlan({"latent_sample": latents}, {"latent_sample": dims}, {"sample": {0: "batch"}}, {})


def vae_encoder_plan(factor: int) -> TracePlan:
    dims = {0: "batch", 2: "height", 3: "width"}
    image = torch.randn(3, 3, 12 * factor, 10 * factor)
    multiples = {"height": factor, "width": factor}
    return TracePlan({"sample": image}, {"sample": dims}, {"latent_parameters": {0: "batch"}}, multiples)
