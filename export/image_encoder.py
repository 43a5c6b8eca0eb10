"""CLIP's image encoder becomes a bundle of its own, judged on noise, on blotches of colour and on an empty picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tintype.bundle.image_encoder import EMBEDS, PICTURE, STATES, ImageEncoderManifest
from tintype.bundle.manifest import FULL
from tintype.export.calls import Call
from tintype.export.checkpoint import Checkpoint
from tintype.export.one_graph import OneGraph, Stated, export_one_graph
from tintype.export.parity import ParityReport
from tintype.export.sources.image_encoder import mean_and_std, sizes_of
from tintype.export.tracing import TracePlan
from tintype.uses import IMAGE_ENCODER


class ImageEncoder(torch.nn.Module):
    """An image encoder behind its graph's names: pixel_values (batch, 3, side, side) -> image_embeds (batch, numbers),
    and hidden_states (batch, tokens, width) behind the last layer but one.

    Traces know a wrapper by its name (`known_graphs.structure_of`): one whose forward does something else needs
    another.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.unet = module  # what the names of weights are known without, see `tracing.plain_name`

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        made = self.unet(pixel_values, output_hidden_states=True)
        return made.image_embeds, made.hidden_states[-2]


def export_image_encoder(checkpoint: Checkpoint, bundle: Path, **options: Any) -> ParityReport:
    """Export an image encoder to a bundle folder; see `export_one_graph` for the options."""
    side = sizes_of(checkpoint.configs[IMAGE_ENCODER])["image_size"]
    mean, std = mean_and_std(checkpoint.source.location)

    def manifest(stated: Stated) -> ImageEncoderManifest:
        return ImageEncoderManifest(
            name=stated.name,
            licence=stated.licence,
            source=stated.source,
            mean=mean,
            std=std,
            graphs={IMAGE_ENCODER: {FULL: stated.graph}},
            files=stated.files,
            parity=stated.parity,
        )

    kind = OneGraph(
        role=IMAGE_ENCODER,
        plan=TracePlan(
            {PICTURE: torch.randn(2, 3, side, side)},
            {PICTURE: {0: "batch"}},
            {EMBEDS: {0: "batch"}, STATES: {0: "batch"}},
            {},
        ),
        wrap=ImageEncoder,
        calls=lambda wrapped: _calls(wrapped, side),
        finish=lambda model: None,
        manifest=manifest,
    )
    return export_one_graph(checkpoint, kind, bundle, **options)


def _calls(module: torch.nn.Module, side: int) -> list[Call]:
    """What the module gives for noise, blotches large and small, and zeros, which stand for no picture."""
    generator, found = torch.Generator().manual_seed(7), []
    for coarse in (1, 4, 16, 0):
        small = torch.randn(1, 3, *(-(-side // max(1, coarse)),) * 2, generator=generator)
        pixels = torch.nn.functional.interpolate(small, size=(side, side), mode="bilinear")
        pixels = pixels if coarse else torch.zeros_like(pixels)
        with torch.inference_mode():
            embeds, states = module(pixel_values=pixels)
        found.append(Call({PICTURE: pixels.numpy()}, embeds.numpy(), (states.numpy(),)))
    return found
