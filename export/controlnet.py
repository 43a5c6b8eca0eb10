"""A ControlNet becomes a bundle of its own, judged on noisy latents at several noise levels, words of unit variance and
pictures of edges and of blotches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tintype.bundle.controlnet import ControlManifest
from tintype.bundle.manifest import FULL, XL
from tintype.export.calls import Call
from tintype.export.checkpoint import Checkpoint
from tintype.export.one_graph import OneGraph, Stated, export_one_graph
from tintype.export.parity import ParityReport
from tintype.export.timestep import take_scalar_timestep
from tintype.export.tracing import TracePlan
from tintype.uses import CONTROLNET, CONTROLNET_PICTURE, MID_RESIDUAL, down_residual

TOKENS, TIME_IDS, POOLED_WIDTH = 77, 6, 1280
TIMES = (981.0, 501.0, 21.0)  # noise levels that it is judged at
JUDGED_UNITS = (4, 3)  # height and width of what it is judged on, in the multiples of latents that it takes


class ControlNet(torch.nn.Module):
    """A ControlNet behind its graph's names, its residuals in the order of `residual_names`.

    sample (batch, C, h, w), timestep (1,), encoder_hidden_states (batch, seq, dim) as a denoiser's; controlnet_cond
    (batch, 3, H, W), 0 to 1. Traces know a wrapper by its name (`known_graphs.structure_of`): one whose forward does
    something else needs another.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.unet = module  # what the names of weights are known without, see `tracing.plain_name`

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        down, middle = self.unet(
            sample, timestep, encoder_hidden_states, controlnet_cond, added_cond_kwargs=added, return_dict=False
        )
        return (*down, middle)


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a ControlNet's inputs and outputs, by its config."""

    channels: int  # of latents
    cell: int  # pixels of its picture for each of theirs, each side
    multiple: int  # of their sides
    words: int  # numbers of a token
    pooled: int | None  # of the prompt as a whole; None where it isn't told of that
    residuals: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        levels = len(config.get("block_out_channels", (320, 640, 1280, 1280)))
        layers = int(config.get("layers_per_block", 2))
        is_xl = config.get("addition_embed_type") == "text_time"
        sizes = TIME_IDS * int(config.get("addition_time_embed_dim") or 0)
        return cls(
            channels=int(config.get("in_channels", 4)),
            cell=2 ** (len(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)) - 1),
            multiple=2 ** (levels - 1),
            words=int(config.get("cross_attention_dim", POOLED_WIDTH)),
            pooled=int(config["projection_class_embeddings_input_dim"]) - sizes if is_xl else None,
            residuals=levels * (layers + 1) + 1,
        )

    @property
    def residual_names(self) -> list[str]:
        return [*map(down_residual, range(self.residuals - 1)), MID_RESIDUAL]

    def inputs(self, batch: int, units: tuple[int, int]) -> dict[str, Tensor]:
        """Noise, and a time in the middle. units: height and width in multiples of latents."""
        height, width = (unit * self.multiple for unit in units)
        found = {
            "sample": torch.randn(batch, self.channels, height, width),
            "timestep": torch.tensor([500.0]),
            "encoder_hidden_states": torch.randn(batch, TOKENS, self.words),
            CONTROLNET_PICTURE: torch.rand(batch, 3, height * self.cell, width * self.cell),
        }
        if self.pooled is not None:
            found["text_embeds"] = torch.randn(batch, self.pooled)
            found["time_ids"] = torch.full((batch, TIME_IDS), 512.0)
        return found

    def trace_plan(self) -> TracePlan:
        """The example is small, oblong and of batch 3, so no dim equals another."""
        inputs = self.inputs(3, (6, 4))
        dims: dict[str, dict[int, str]] = {name: {0: "batch"} for name in inputs}
        dims["sample"] = {0: "batch", 2: "height", 3: "width"}
        dims["timestep"] = {}
        dims["encoder_hidden_states"] = {0: "batch", 1: "sequence"}
        dims[CONTROLNET_PICTURE] = {0: "batch", 2: "rows", 3: "columns"}
        outputs = {name: {0: "batch"} for name in self.residual_names}
        return TracePlan(inputs, dims, outputs, {"height": self.multiple, "width": self.multiple})


def export_controlnet(checkpoint: Checkpoint, bundle: Path, **options: Any) -> ParityReport:
    """Export a ControlNet to a bundle folder; see `export_one_graph` for the options."""
    config = checkpoint.configs[CONTROLNET]
    shape = Shape.of(config)

    def manifest(stated: Stated) -> ControlManifest:
        return ControlManifest(
            name=stated.name,
            licence=stated.licence,
            source=stated.source,
            controls="stable-diffusion" if shape.pooled is None else XL,
            latent_channels=shape.channels,
            vae_scale_factor=shape.cell,
            pooled=bool(config.get("global_pool_conditions", False)),
            graphs={CONTROLNET: {FULL: stated.graph}},
            files=stated.files,
            parity=stated.parity,
        )

    kind = OneGraph(
        role=CONTROLNET,
        plan=shape.trace_plan(),
        wrap=lambda module: ControlNet(_unpooled(module)),
        calls=lambda wrapped: _calls(wrapped, shape),
        finish=take_scalar_timestep,
        manifest=manifest,
    )
    return export_one_graph(checkpoint, kind, bundle, **options)


def _unpooled(module: Any) -> torch.nn.Module:
    """The module without the mean over its residuals, which whoever runs its graph takes."""
    module.register_to_config(global_pool_conditions=False)
    return module  # type: ignore[no-any-return]


def _calls(module: torch.nn.Module, shape: Shape) -> list[Call]:
    """What the module gives for noise at several levels, and a picture of edges or of blotches."""
    generator, found = torch.Generator().manual_seed(7), []
    for time_, coarse in zip(TIMES, (2, 4, 8), strict=True):
        inputs = shape.inputs(2, JUDGED_UNITS)
        for name, value in inputs.items():
            if name not in ("timestep", "time_ids"):
                inputs[name] = torch.randn(value.shape, generator=generator)
        cond = inputs[CONTROLNET_PICTURE]
        small = torch.nn.functional.avg_pool2d(cond, coarse) * coarse
        soft = torch.nn.functional.interpolate(small, size=cond.shape[2:], mode="bilinear")
        inputs[CONTROLNET_PICTURE] = (soft > 1.0).float() if coarse == 4 else (soft * 0.25 + 0.5).clamp(0, 1)
        inputs["timestep"] = torch.tensor([time_])
        with torch.inference_mode():
            outputs = module(**inputs)
        feed: dict[str, NDArray[Any]] = {name: value.numpy() for name, value in inputs.items()}
        feed["timestep"] = np.array(time_, np.float32)
        first, *others = (output.numpy() for output in outputs)
        found.append(Call(feed, first, tuple(others)))
    return found
