"""What parts of the checkpoint leave for the next ones while they are exported, in memory and as arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray

from tintype.bundle import PreviewFactors
from tintype.export.calls import Call
from tintype.export.trajectories import PictureChannels

Arrays = Mapping[str, NDArray[Any]]


@dataclass(slots=True)
class CalibrationData:
    """Calls by role, latents of the walks' ends, and what some models take beside latents."""

    gate_calls: dict[str, list[Call]] = field(default_factory=dict)  # what graphs are judged on
    trial_calls: dict[str, list[Call]] = field(default_factory=dict)  # others, to choose int8 layers by
    gate_latents: list[torch.Tensor] = field(default_factory=list)
    calibration_latents: list[torch.Tensor] = field(default_factory=list)
    pictures: PictureChannels = field(default_factory=dict)  # of the walks of a model that takes them
    previews: dict[str, PreviewFactors] = field(default_factory=dict)  # of the VAE's decoder

    def arrays_of(self, component: str) -> dict[str, NDArray[Any]]:
        """What a component leaves: a text encoder its calls, a UNet latents, a VAE nothing."""
        found: dict[str, NDArray[Any]] = {}
        if component == "unet":
            for kind, latents in (("gate", self.gate_latents), ("calibration", self.calibration_latents)):
                found |= {f"{kind}.{index}": tensor.numpy() for index, tensor in enumerate(latents)}
        elif component.startswith("text_encoder"):
            for kind, calls in (("gate", self.gate_calls), ("trial", self.trial_calls)):
                (call,) = calls[component]
                found |= {f"{kind}.feed.{name}": array for name, array in call.feed.items()}
                found |= {f"{kind}.reference.{index}": array for index, array in enumerate(call.references)}
        return found

    def restore(self, component: str, arrays: Arrays) -> None:
        """Take what `arrays_of` gave when the component was at work. Raises KeyError for other arrays."""
        if component == "unet":
            self.gate_latents = [torch.from_numpy(array) for array in _list_of(arrays, "gate.")]
            self.calibration_latents = [torch.from_numpy(array) for array in _list_of(arrays, "calibration.")]
        elif component.startswith("text_encoder"):
            for kind, calls in (("gate", self.gate_calls), ("trial", self.trial_calls)):
                start = f"{kind}.feed."
                feed = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
                first, *others = _list_of(arrays, f"{kind}.reference.")
                calls[component] = [Call(feed, first, tuple(others))]


def _list_of(arrays: Arrays, start: str) -> list[NDArray[Any]]:
    count = sum(name.startswith(start) for name in arrays)
    return [arrays[f"{start}{index}"] for index in range(count)]
