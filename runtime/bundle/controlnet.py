"""A ControlNet is a bundle of its own, beside the model that it controls: one graph, and a manifest of its kind.

What a `ControlNet` that `open_controlnet` returned holds was checked as every bundle is, before any of it is opened.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tintype.bundle.bundle import bundle_folder, read_manifest_as
from tintype.bundle.listing import check_shown
from tintype.bundle.manifest import (
    XL,
)
from tintype.bundle.one_graph import OneGraphBundle, OneGraphManifest
from tintype.bundle.shapes import times
from tintype.bundle.verify import check_files
from tintype.strict_json import require
from tintype.uses import CONTROLNET, CONTROLNET_PICTURE, MID_RESIDUAL, down_residual

CONTROLLED = ("stable-diffusion", XL)  # families whose denoisers take what a ControlNet gives


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlManifest(OneGraphManifest):
    """The whole of a ControlNet's tintype.json; models/FORMAT.md is the full definition."""

    family: str = CONTROLNET
    controls: str  # the family of the models that it controls
    latent_channels: int
    vae_scale_factor: int  # pixels of its picture per latent cell, each side
    pooled: bool = False  # of its residuals the means over the picture are taken, and they lead the words alone

    def _check(self) -> None:
        check_shown(self.controls)
        require(self.controls in CONTROLLED, f"it controls {self.controls!r}, not one of {', '.join(CONTROLLED)}")
        require(1 <= self.vae_scale_factor <= 128, f"vae_scale_factor {self.vae_scale_factor} is absurd")
        require(1 <= self.latent_channels <= 1024, f"latent_channels {self.latent_channels} is absurd")
        self._check_ports()

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.graph.inputs)

    @property
    def words_width(self) -> int | str:
        """Numbers of a token, as `encoder_hidden_states` has them."""
        return next(port.shape[-1] for port in self.graph.inputs if port.name == "encoder_hidden_states")

    @property
    def residuals(self) -> tuple[int, ...]:
        """Channels of what it adds to each skip connection, the outermost first, and last to the middle."""
        return tuple(int(port.shape[1]) for port in self.graph.outputs)

    def _check_ports(self) -> None:
        inputs = {port.name: port.shape for port in self.graph.inputs}
        needed = {"sample": 4, "encoder_hidden_states": 3, CONTROLNET_PICTURE: 4}
        needed |= {"text_embeds": 2, "time_ids": 2} if self.controls == XL else {}
        for name, rank in needed.items():
            require(name in inputs, f"its graph has no input named {name}")
            require(len(inputs[name]) == rank, f"{name} has {len(inputs[name])} dimensions, not {rank}")
        require(set(inputs) == {*needed, "timestep"}, f"its graph takes {', '.join(inputs)}")
        require(inputs["sample"][1] == self.latent_channels, "its sample has other channels than latent_channels")
        require(inputs[CONTROLNET_PICTURE][1] == 3, f"{CONTROLNET_PICTURE} has not 3 channels")
        require(len(inputs["timestep"]) <= 1, f"timestep is of shape {inputs['timestep']}, and not one number")
        names = [port.name for port in self.graph.outputs]
        known = [*map(down_residual, range(len(names) - 1)), MID_RESIDUAL]
        require(len(names) > 1 and names == known, f"its graph gives {', '.join(names[:4])}, and no residuals")
        for port in self.graph.outputs:
            sound = len(port.shape) == 4 and isinstance(port.shape[1], int)
            require(sound, f"{port.name} is no image of so many channels")
            high, wide = (times(*pair) for pair in zip(("height", "width"), port.shape[2:], strict=True))
            sound = high is not None and high == wide and 0.0 < high <= 1.0
            require(sound, f"{port.name} is {port.shape[2]} by {port.shape[3]}, and no skip connection is")


@dataclass(frozen=True, slots=True)
class ControlNet(OneGraphBundle[ControlManifest]):
    """A ControlNet on disk, checked."""


def open_controlnet(name_or_path: str | os.PathLike[str]) -> ControlNet:
    """Open a ControlNet by its folder, or its name in the library, and check all of it.

    Raises BundleError as `opening.open_bundle` does, and for a bundle that is a model.
    """
    folder = bundle_folder(name_or_path)
    manifest, digest = read_manifest_as(folder, ControlManifest)
    check_files(folder, manifest, digest)
    return ControlNet(folder, manifest, digest)
