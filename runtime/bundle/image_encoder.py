"""An image encoder is a bundle of its own: CLIP's, which looks at the pictures that stand beside the words.

What an `ImageEncoder` that `open_image_encoder` returned holds was checked as every bundle is.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from tintype.bounds import MAX_ENCODED_SIDE, MAX_IMAGE_TOKENS
from tintype.bundle.bundle import bundle_folder, read_manifest_as
from tintype.bundle.one_graph import OneGraphBundle, OneGraphManifest
from tintype.bundle.verify import check_files
from tintype.strict_json import require
from tintype.uses import IMAGE_ENCODER

PICTURE, EMBEDS, STATES = "pixel_values", "image_embeds", "hidden_states"  # its input, and what it gives


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoderManifest(OneGraphManifest):
    """The whole of an image encoder's tintype.json; models/FORMAT.md is the full definition."""

    family: str = IMAGE_ENCODER
    mean: tuple[float, ...]  # of red, green and blue from 0 to 1: what is taken off,
    std: tuple[float, ...]  # and what the rest is divided by

    def _check(self) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            sound = len(numbers) == 3 and all(math.isfinite(number) and 0 <= number <= 1 for number in numbers)
            require(sound, f"{name} is not three numbers from 0 to 1")
        require(min(self.std) >= 1e-3, "std has a number below 0.001")
        self._check_ports()

    @property
    def side(self) -> int:
        """Pixels of the square picture that it looks at."""
        return int(self.graph.inputs[0].shape[2])

    @property
    def embedding(self) -> int:
        """Numbers of a picture as a whole."""
        return int(self.graph.outputs[0].shape[1])

    @property
    def states(self) -> tuple[int, int]:
        """Tokens of a picture, and numbers of each, behind its last layer but one."""
        tokens, width = self.graph.outputs[1].shape[1:]
        return int(tokens), int(width)

    def _check_ports(self) -> None:
        names = [port.name for port in (*self.graph.inputs, *self.graph.outputs)]
        require(names == [PICTURE, EMBEDS, STATES], f"its graph has the inputs and outputs {', '.join(names[:6])}")
        for port, rank in zip((*self.graph.inputs, *self.graph.outputs), (4, 2, 3), strict=True):
            sound = len(port.shape) == rank and all(isinstance(size, int) and size > 0 for size in port.shape[1:])
            require(sound, f"{port.name} is of shape {port.shape}, and not of {rank} dimensions that are numbers")
        _, channels, high, wide = self.graph.inputs[0].shape
        require(channels == 3 and high == wide, f"{PICTURE} is no square picture of 3 channels")
        require(self.side <= MAX_ENCODED_SIDE, f"it looks at {self.side:,} pixels; {MAX_ENCODED_SIDE:,} are the most")
        most = MAX_IMAGE_TOKENS
        require(self.states[0] <= most, f"it gives {self.states[0]:,} tokens; {most:,} are the most")


@dataclass(frozen=True, slots=True)
class ImageEncoder(OneGraphBundle[ImageEncoderManifest]):
    """An image encoder on disk, checked."""


def open_image_encoder(name_or_path: str | os.PathLike[str]) -> ImageEncoder:
    """Open an image encoder by its folder, or its name in the library, and check all of it.

    Raises BundleError as `opening.open_bundle` does, and for a bundle of another kind.
    """
    folder = bundle_folder(name_or_path)
    manifest, digest = read_manifest_as(folder, ImageEncoderManifest)
    check_files(folder, manifest, digest)
    return ImageEncoder(folder, manifest, digest)
