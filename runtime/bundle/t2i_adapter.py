"""A T2I-Adapter is a bundle of its own, beside the model that it controls: one graph, and a manifest of its kind.

It is shown a picture once, before the first step, and gives features of it, each of which the denoiser adds to a value
of that shape at every step (Mou et al. 2023).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tintype.bundle.bundle import bundle_folder, read_manifest_as
from tintype.bundle.controlnet import CONTROLLED
from tintype.bundle.listing import check_shown
from tintype.bundle.one_graph import OneGraphBundle, OneGraphManifest
from tintype.bundle.shapes import Port, times
from tintype.bundle.verify import check_files
from tintype.strict_json import require
from tintype.uses import ADAPTER_PICTURE, T2I_ADAPTER, adapter_feature

MAX_FEATURES, MAX_CELL = 16, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterManifest(OneGraphManifest):
    """The whole of a T2I-Adapter's tintype.json; models/FORMAT.md is the full definition."""

    family: str = T2I_ADAPTER
    controls: str  # the family of the models that it controls

    def _check(self) -> None:
        check_shown(self.controls)
        require(self.controls in CONTROLLED, f"it controls {self.controls!r}, not one of {', '.join(CONTROLLED)}")
        self._check_ports()

    @property
    def picture_channels(self) -> int:
        """3 of an RGB picture, 1 of a grey one."""
        return int(self.graph.inputs[0].shape[1])

    @property
    def features(self) -> tuple[tuple[int, int], ...]:
        """Of what it gives, channels and pixels for each cell, each side."""
        return tuple((int(port.shape[1]), _cell(port, self.graph.inputs[0])) for port in self.graph.outputs)

    def sizes(self, width: int, height: int) -> tuple[tuple[int, int, int], ...]:
        """Channels, height and width of what it gives of a picture of that size in pixels."""
        return tuple((channels, height // cell, width // cell) for channels, cell in self.features)

    def _check_ports(self) -> None:
        ports = self.graph.inputs
        names = [port.name for port in ports]
        require(names == [ADAPTER_PICTURE], f"its graph takes {', '.join(names[:4])}, and not {ADAPTER_PICTURE} alone")
        require(len(ports[0].shape) == 4, f"{ADAPTER_PICTURE} has {len(ports[0].shape)} dimensions, not 4")
        require(ports[0].shape[1] in (1, 3), f"{ADAPTER_PICTURE} has {ports[0].shape[1]} channels, not 1 or 3")
        named = all(isinstance(size, str) for size in (ports[0].shape[0], *ports[0].shape[2:]))
        require(named, f"{ADAPTER_PICTURE} is of one size alone, {ports[0].shape}")
        count = len(self.graph.outputs)
        require(count <= MAX_FEATURES, f"its graph gives {count} features; {MAX_FEATURES} are the most")
        names = [port.name for port in self.graph.outputs]
        require(names == [*map(adapter_feature, range(count))], f"its graph gives {', '.join(names[:4])}")
        for port in self.graph.outputs:
            sound = len(port.shape) == 4 and isinstance(port.shape[1], int) and 0 < port.shape[1] <= 2**16
            require(sound, f"{port.name} is no image of so many channels")
            require(_cell(port, ports[0]) > 0, f"{port.name} is {port.shape[2]} by {port.shape[3]}, and no feature is")


@dataclass(frozen=True, slots=True)
class T2IAdapter(OneGraphBundle[AdapterManifest]):
    """A T2I-Adapter on disk, checked."""


def open_t2i_adapter(name_or_path: str | os.PathLike[str]) -> T2IAdapter:
    """Open a T2I-Adapter by its folder, or its name in the library, and check all of it. Raises BundleError."""
    folder = bundle_folder(name_or_path)
    manifest, digest = read_manifest_as(folder, AdapterManifest)
    check_files(folder, manifest, digest)
    return T2IAdapter(folder, manifest, digest)


def _cell(feature: Port, picture: Port) -> int:
    """Pixels of the picture for each cell of a feature, each side; 0 where it isn't so many whole ones."""
    found = {times(*pair) for pair in zip(picture.shape[2:], feature.shape[2:], strict=True)}
    scale = found.pop() or 0.0
    if found or not 0.0 < scale <= 1.0:
        return 0
    cell = round(1.0 / scale)
    return cell if cell <= MAX_CELL and scale * cell == 1.0 else 0
