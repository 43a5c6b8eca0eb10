"""A T2I-Adapter becomes a bundle of its own, judged on pictures of edges, of blotches and of noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tintype.bundle.manifest import FULL, XL
from tintype.bundle.t2i_adapter import AdapterManifest
from tintype.export.calls import Call
from tintype.export.checkpoint import Checkpoint
from tintype.export.one_graph import OneGraph, Stated, export_one_graph
from tintype.export.parity import ParityReport
from tintype.export.sources.t2i_adapter import FULL as FULL_ADAPTER
from tintype.export.sources.t2i_adapter import FULL_XL, LIGHT
from tintype.export.tracing import TracePlan
from tintype.uses import ADAPTER_PICTURE, T2I_ADAPTER, adapter_feature

JUDGED_UNITS = (4, 3)  # height and width of what it is judged on, in the multiples of pixels that it takes


class T2IAdapterGraph(torch.nn.Module):
    """A T2I-Adapter behind its graph's names: a picture (batch, 1 or 3, rows, columns), 0 to 1, to features.

    Rows and columns are multiples of the coarsest feature's cells, so that no mean is over less than a whole cell.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        for part in module.modules():
            if isinstance(part, torch.nn.AvgPool2d):
                part.ceil_mode = False
        self.unet = module  # what the names of weights are known without, see `tracing.plain_name`

    def forward(self, adapter_cond: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.unet(adapter_cond))


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a T2I-Adapter's input and outputs, by its config."""

    kind: str
    channels: int  # of its picture
    features: int
    multiple: int  # of pixels, each side, that its picture has

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        kind, levels = config.get("adapter_type", FULL_ADAPTER), len(config.get("channels", range(4)))
        halvings = {FULL_ADAPTER: levels - 1, FULL_XL: int(levels > 2), LIGHT: levels}[kind]
        return cls(
            kind=kind,
            channels=int(config.get("in_channels", 3)),
            features=levels + (kind == LIGHT),
            multiple=int(config.get("downscale_factor", 8)) * 2**halvings,
        )

    def picture(self, batch: int, units: tuple[int, int]) -> Tensor:
        return torch.rand(batch, self.channels, *(unit * self.multiple for unit in units))

    def trace_plan(self) -> TracePlan:
        """The example is small, oblong and of batch 2, so no dim equals another."""
        return TracePlan(
            {ADAPTER_PICTURE: self.picture(2, (4, 3))},
            {ADAPTER_PICTURE: {0: "batch", 2: "rows", 3: "columns"}},
            {adapter_feature(number): {0: "batch"} for number in range(self.features)},
            {"rows": self.multiple, "columns": self.multiple},
        )


def export_t2i_adapter(checkpoint: Checkpoint, bundle: Path, **options: Any) -> ParityReport:
    """Export a T2I-Adapter to a bundle folder; see `export_one_graph` for the options."""
    shape = Shape.of(checkpoint.configs[T2I_ADAPTER])

    def manifest(stated: Stated) -> AdapterManifest:
        return AdapterManifest(
            name=stated.name,
            licence=stated.licence,
            source=stated.source,
            controls=XL if shape.kind == FULL_XL else "stable-diffusion",
            graphs={T2I_ADAPTER: {FULL: stated.graph}},
            files=stated.files,
            parity=stated.parity,
        )

    kind = OneGraph(
        role=T2I_ADAPTER,
        plan=shape.trace_plan(),
        wrap=T2IAdapterGraph,
        calls=lambda wrapped: _calls(wrapped, shape),
        finish=lambda model: None,
        manifest=manifest,
    )
    return export_one_graph(checkpoint, kind, bundle, **options)


def _calls(module: torch.nn.Module, shape: Shape) -> list[Call]:
    """What the module gives for pictures of edges, of blotches and of noise."""
    generator, found = torch.Generator().manual_seed(7), []
    for coarse in (2, 4, 1):
        picture = torch.rand(shape.picture(1, JUDGED_UNITS).shape, generator=generator)
        small = torch.nn.functional.avg_pool2d(picture, coarse)
        soft = torch.nn.functional.interpolate(small, size=picture.shape[2:], mode="bilinear")
        picture = (soft > 0.6).float() if coarse == 2 else soft
        with torch.inference_mode():
            first, *others = (output.numpy() for output in module(picture))
        found.append(Call({ADAPTER_PICTURE: picture.numpy()}, first, tuple(others)))
    return found
