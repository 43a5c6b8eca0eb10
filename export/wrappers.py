"""A role's module as its graph sees it: inputs and outputs by the graph's names, and how each is traced.

Every forward takes its inputs by keyword and gives one tensor or a tuple, in the order of `TracePlan.outputs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tintype.bundle.manifest import CLIP_SKIP
from tintype.export.checkpoint import Checkpoint
from tintype.export.roles import CLIP_LAYERS, COMPONENT_OF, clip_skips
from tintype.export.sources.source import TINY, TINY_VAE
from tintype.export.tracing import TracePlan

if TYPE_CHECKING:
    from torch import Tensor

LEAST_LOG_VARIANCE = -30.0


class TextEncoder(torch.nn.Module):
    """input_ids (batch, 77) -> last_hidden_state (batch, 77, dim), after the final layer norm; then clip_skip.1, ...

    clip_skip.N is the same without the last N layers, the norm again at its end.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.text_model = module

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        encoded = self.text_model(input_ids, output_hidden_states=True)
        norm: Any = getattr(self.text_model, "text_model", self.text_model).final_layer_norm
        skips = range(1, clip_skips(len(encoded.hidden_states) - 1, is_xl=False) + 1)
        return encoded.last_hidden_state, *(norm(encoded.hidden_states[-1 - skip]) for skip in skips)


class PenultimateTextEncoder(torch.nn.Module):
    """input_ids (batch, 77) -> hidden_states (batch, 77, dim), what the last layer but one gives, without a norm; then
    clip_skip.1, ..., the same without N more layers.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.text_model = module

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        states = self.text_model(input_ids, output_hidden_states=True).hidden_states
        return states[-2], *_earlier_states(states)


class ProjectedTextEncoder(torch.nn.Module):
    """input_ids (batch, 77) -> hidden_states and clip_skip.1, ... as above; between them text_embeds
    (batch, projection), the prompt as a whole, of all layers whatever is left out.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.text_model = module

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        encoded = self.text_model(input_ids, output_hidden_states=True)
        return encoded.hidden_states[-2], encoded.text_embeds, *_earlier_states(encoded.hidden_states)


def _earlier_states(states: tuple[Tensor, ...]) -> list[Tensor]:
    """clip_skip.1, ... of the states before and after each layer of XL's text encoders."""
    return [states[-2 - skip] for skip in range(1, clip_skips(len(states) - 1, is_xl=True) + 1)]


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
    layers = int(checkpoint.configs[role].get("num_hidden_layers", CLIP_LAYERS))
    return text_encoder_plan(checkpoint.family.is_xl, role, tokens, layers)


def text_encoder_plan(is_xl: bool, role: str, tokens: int, layers: int) -> TracePlan:
    names = ["hidden_states" if is_xl else "last_hidden_state"]
    if role == "text_encoder_2":
        names.append("text_embeds")
    names += [f"{CLIP_SKIP}{skip}" for skip in range(1, clip_skips(layers, is_xl=is_xl) + 1)]
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
