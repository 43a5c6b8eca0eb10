"""What a picture shows, as an operator's own classifier judges it, before it becomes a picture of ours.

Two kinds of ONNX files are known. A classifier has one image in float32, (1, height, width, 3) or (1, 3, height,
width), and one output, the last number of which is the score; how the image is prepared stands in FILE.json, else as
open_nsfw's where channels come last, and as ImageNet's where they come first. Stable Diffusion's safety checker, as
optimum exports it, has `clip_input` and `images` and says `has_nsfw_concepts`; its score is 0 or 1.

A picture whose score reaches the threshold is blocked; never is another put in its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tintype import strict_json
from tintype.arrays import Pixels
from tintype.bounds import MAX_CONFIG_BYTES
from tintype.bundle import Bundle
from tintype.errors import NumericError, RequestError
from tintype.files import read_plain, sha256_of
from tintype.record.record import SafetyFacts
from tintype.trust.operator_graph import MAX_SIDE, open_graph, run_graph

if TYPE_CHECKING:
    from tintype.engine import PlainGraph

SAFETY = "safety"  # the rule of a BlockedError
ROLE, OF_BUNDLE = "safety_checker", "bundle"
DEFAULT_THRESHOLD = 0.5
DEFAULT_SIDE = 224  # pixels, where the graph leaves it open
CLIP_INPUT, IMAGES, CONCEPTS = "clip_input", "images", "has_nsfw_concepts"


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
class SafetyChecker:
    """An open classifier."""

    sha256: str
    threshold: float
    is_diffusion: bool  # it is Stable Diffusion's
    is_last: bool  # channels come last
    side: tuple[int, int]  # height, width
    preparation: Preparation
    graph: PlainGraph = field(compare=False, repr=False)

    def judge(self, pixels: Pixels) -> SafetyFacts:
        """Of one picture, (height, width, 3). Raises NumericError for a score that is no number from 0 to 1."""
        outputs = run_graph(self.graph, self._inputs(pixels), "the safety checker")
        if self.is_diffusion:
            score = float(np.any(outputs[CONCEPTS]))
        else:
            (values,) = outputs.values()
            score = float(values.reshape(-1)[-1])
        if not 0.0 <= score <= 1.0:  # NaN too
            raise NumericError(
                f"the safety checker gave {score:g}, which is no share", fix="give a file whose output is 0 to 1"
            )
        return SafetyFacts(sha256=self.sha256, score=round(score, 4), threshold=self.threshold)

    def _inputs(self, pixels: Pixels) -> Mapping[str, NDArray[np.float32]]:
        image = _prepared(pixels, self.side, self.preparation)
        shaped = image if self.is_last else image.transpose(2, 0, 1)
        inputs = {port.name: shaped[np.newaxis] for port in self.graph.inputs}
        return {name: np.ascontiguousarray(value) for name, value in inputs.items()}


def _prepared(pixels: Pixels, side: tuple[int, int], preparation: Preparation) -> NDArray[np.float32]:
    """The middle of a picture, (height, width, 3), as a classifier takes it."""
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


def open_checker(named: str | os.PathLike[str], bundle: Bundle | None = None, threads: int = 1) -> SafetyChecker:
    """FILE, or FILE=THRESHOLD; the file `bundle` is the one that the bundle has in that role.

    It is open from then on, and was run once, so that a budget that is planned afterwards has what it takes. Raises
    RequestError for what is none, BundleError for a bundle without one.
    """
    path, threshold = _named(named)
    is_own = bundle is not None and str(path) == OF_BUNDLE
    if bundle is not None and is_own:
        path = bundle.graph_path(ROLE)
    graph = open_graph(path, _unfit, threads=threads, may_have_data=is_own)
    try:
        checker = _checker(path, threshold, graph)
        checker.judge(np.zeros((64, 64, 3), np.uint8))
    except NumericError:
        raise
    except (TypeError, ValueError, IndexError) as error:  # its outputs are no numbers, or none at all
        raise _unfit(path, f"what it gives is no score: {error}") from None
    return checker


def _named(named: str | os.PathLike[str]) -> tuple[Path, float]:
    text = os.fspath(named)
    file, equals, number = text.rpartition("=")
    if not equals or Path(text).is_file():
        return Path(text), DEFAULT_THRESHOLD
    try:
        threshold = float(number)
    except ValueError:
        threshold = -1.0
    if not 0.0 < threshold <= 1.0:
        raise RequestError(f"{number[:40]!r} is no threshold of a safety checker", fix="give above 0 to 1: FILE=0.5")
    return Path(file), threshold


def _checker(path: Path, threshold: float, graph: PlainGraph) -> SafetyChecker:
    names = {port.name for port in graph.inputs}
    is_diffusion = names == {CLIP_INPUT, IMAGES} and CONCEPTS in {port.name for port in graph.outputs}
    if not is_diffusion and (len(graph.inputs), len(graph.outputs)) != (1, 1):
        raise _unfit(path, f"it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
    port = next(port for port in graph.inputs if not is_diffusion or port.name == CLIP_INPUT)
    is_image = port.dtype is np.float32 and len(port.shape) == 4
    if not is_image or not (
        is_diffusion or 3 in (port.shape[1], port.shape[3])
    ):  # optimum's are open in all dimensions
        raise _unfit(path, f"its input {port.name} is no image in float32: {port.shape}")
    is_last = port.shape[3] == 3 and port.shape[1] != 3
    sides = port.shape[1:3] if is_last else port.shape[2:4]
    height, width = (side if isinstance(side, int) else DEFAULT_SIDE for side in sides)
    if not 0 < height <= MAX_SIDE or not 0 < width <= MAX_SIDE:
        raise _unfit(path, f"it takes images of {width}x{height} pixels")
    usual = CLIP if is_diffusion else OPEN_NSFW if is_last else IMAGENET
    return SafetyChecker(
        sha256=sha256_of(path),
        threshold=threshold,
        is_diffusion=is_diffusion,
        is_last=is_last,
        side=(height, width),
        preparation=_preparation(path, usual),
        graph=graph,
    )


def _preparation(path: Path, usual: Preparation) -> Preparation:
    """What FILE.json says; the usual one where there is none."""
    beside = path.with_name(path.name + ".json")
    try:
        return strict_json.read(Preparation, strict_json.parse(read_plain(beside, MAX_CONFIG_BYTES)))
    except FileNotFoundError:
        return usual
    except (OSError, ValueError) as error:
        raise _unfit(beside, str(error)) from None


def _unfit(path: Path, problem: str) -> RequestError:
    return RequestError(
        f"{path} is no safety checker that is known here: {problem}",
        fix="give an ONNX file of one image and one score; runtime/POLICY.md says which are known",
    )
