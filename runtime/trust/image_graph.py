"""An operator's graph of one image, as ONNX Runtime alone runs it, and how the pixels of a picture become its input.

The image is float32, (1, height, width, 3) or (1, 3, height, width); how it is prepared stands in FILE.json, else as
open_nsfw's where channels come last, and as ImageNet's where they come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype import strict_json
from tintype.arrays import Pixels
from tintype.bounds import MAX_CONFIG_BYTES
from tintype.errors import RequestError
from tintype.files import read_plain, sha256_of
from tintype.trust.operator_graph import MAX_SIDE, Unfit, run_graph

if TYPE_CHECKING:
    from tintype.engine import PlainGraph

DEFAULT_SIDE = 224  # pixels, where the graph leaves it open


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is done to pixels, 0 to 255: times `scale`, less `mean`, by `std`, by channel in the order of `channels`."""

    channels: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int = 0  # pixels that the picture is stretched to before its middle is cut out; 0: fitted, never stretched

    def __post_init__(self) -> None:
        sane = sorted(self.channels) == sorted("rgb") and len(self.mean) == len(self.std) == 3 and all(self.std)
        if not sane or not 0 <= self.resize <= MAX_SIDE:
            raise strict_json.Misfit(
                "channels are r, g, b in some order; mean and std three numbers, std no 0; resize pixels"
            )


OPEN_NSFW = Preparation(channels="bgr", scale=1.0, mean=(104.0, 117.0, 123.0), resize=256)
IMAGENET = Preparation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLIP = Preparation(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageGraph:
    """An open graph of one image."""

    kind: str  # what errors call it
    sha256: str
    is_last: bool  # channels come last
    side: tuple[int, int]  # height, width
    preparation: Preparation
    graph: PlainGraph = field(compare=False, repr=False)

    def run(self, pixels: Pixels) -> dict[str, NDArray[Any]]:
        """Outputs by name, of one picture, (height, width, 3). Raises NumericError where it can't be run."""
        return run_graph(self.graph, self.inputs(pixels), f"the {self.kind}")

    def inputs(self, pixels: Pixels) -> Mapping[str, NDArray[np.float32]]:
        """The same prepared image for each of its inputs, by name."""
        image = _prepared(pixels, self.side, self.preparation)
        shaped = image if self.is_last else image.transpose(2, 0, 1)
        inputs = {port.name: shaped[np.newaxis] for port in self.graph.inputs}
        return {name: np.ascontiguousarray(value) for name, value in inputs.items()}


def image_graph(
    path: Path, kind: str, graph: PlainGraph, port_name: str | None = None, usual: Preparation | None = None
) -> ImageGraph:
    """port_name: of the input that tells the image's shape; None: it has one alone, and one output.

    usual: how pixels are prepared where no FILE.json says it. Raises RequestError.
    """
    if port_name is None and (len(graph.inputs), len(graph.outputs)) != (1, 1):
        raise unfit(path, kind, f"it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
    port = next(port for port in graph.inputs if port_name in (None, port.name))
    is_image = port.dtype is np.float32 and len(port.shape) == 4
    if not is_image or (port_name is None and 3 not in (port.shape[1], port.shape[3])):  # optimum's are open in all
        raise unfit(path, kind, f"its input {port.name} is no image in float32: {port.shape}")
    is_last = port.shape[3] == 3 and port.shape[1] != 3
    sides = port.shape[1:3] if is_last else port.shape[2:4]
    height, width = (side if isinstance(side, int) else DEFAULT_SIDE for side in sides)
    if not 0 < height <= MAX_SIDE or not 0 < width <= MAX_SIDE:
        raise unfit(path, kind, f"it takes images of {width}x{height} pixels")
    return ImageGraph(
        kind=kind,
        sha256=sha256_of(path),
        is_last=is_last,
        side=(height, width),
        preparation=_preparation(path, kind, usual or (OPEN_NSFW if is_last else IMAGENET)),
        graph=graph,
    )


def unfit(path: Path, kind: str, problem: str) -> RequestError:
    return RequestError(
        f"{path} is no {kind} that is known here: {problem}",
        fix="give an ONNX file of one image and one output; runtime/POLICY.md says which are known",
    )


def unfit_for(kind: str) -> Unfit:
    return lambda path, problem: unfit(path, kind, problem)


def _prepared(pixels: Pixels, side: tuple[int, int], preparation: Preparation) -> NDArray[np.float32]:
    """The middle of a picture, (height, width, 3), as a graph takes it."""
    from PIL import Image

    from tintype.image.fit import fit

    image, (height, width) = Image.fromarray(pixels), side
    if preparation.resize >= max(side):
        whole = image.resize((preparation.resize,) * 2, Image.Resampling.BILINEAR)
        left, top = (preparation.resize - width) // 2, (preparation.resize - height) // 2
        fitted = whole.crop((left, top, left + width, top + height))
    else:
        fitted = fit(image, width, height, "crop", resample=Image.Resampling.BICUBIC)
    values = np.asarray(fitted, np.float32)[..., ["rgb".index(channel) for channel in preparation.channels]]
    scaled = values * np.float32(preparation.scale) - np.asarray(preparation.mean, np.float32)
    return (scaled / np.asarray(preparation.std, np.float32)).astype(np.float32)


def _preparation(path: Path, kind: str, usual: Preparation) -> Preparation:
    """What FILE.json says; the usual one where there is none."""
    beside = path.with_name(path.name + ".json")
    try:
        return strict_json.read(Preparation, strict_json.parse(read_plain(beside, MAX_CONFIG_BYTES)))
    except FileNotFoundError:
        return usual
    except (OSError, ValueError) as error:
        raise unfit(beside, kind, str(error)) from None
