"""What ordinary prompts score, by bundle and by how they are drawn: above the 99th percentile a picture is told of.

A bundle's calibrations are one JSON file, named by its hash, in the cache (`tintype calibrate` writes it) or beside the
embedded bundle. A request is judged only where one covers it; elsewhere its score is recorded and not judged.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_CALIBRATION_PROMPTS
from tintype.bundle import EMBEDDED, Bundle
from tintype.bundle.bundle import embedded_folder
from tintype.files import read_cached, write_text
from tintype.prompt import parse_parts
from tintype.record.record import Memorisation
from tintype.request import ResolvedRequest
from tintype.request.request import MAX_STEPS
from tintype.sampling.guidance import ALONE

FORMAT_VERSION = 1
FOLDER = "memorisation"  # in the cache
SHIPPED = "memorisation.json"  # beside the folder of an embedded bundle
PERCENTILE = 0.99
# How far a request may be from what was calibrated and still be judged by it: models/postcard/README.md has figures.
STEPS_FACTOR = 1.3
GUIDANCE_FACTOR = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The scores of ordinary prompts, in their order, drawn one way."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    sigmas: str | None
    exactness: str
    negative_prompt: str
    clip_skip: int
    prompts: int  # how many there are; there are as many scores once it is complete
    prompts_sha256: str  # of `digest_of`
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        sane = 0 < self.prompts <= MAX_CALIBRATION_PROMPTS and len(self.scores) <= self.prompts
        if not sane or any(score < 0 for score in self.scores):
            raise strict_json.Misfit("a calibration has a score from 0 on for each of its prompts, or for the first")
        if not 0 < self.num_inference_steps <= MAX_STEPS:
            raise strict_json.Misfit(f"a calibration has 1 to {MAX_STEPS:,} steps")

    @property
    def is_complete(self) -> bool:
        return len(self.scores) == self.prompts

    @property
    def threshold(self) -> float:
        """The score that one in a hundred fresh prompts is above: of n scores the quantile at (n + 1) p, unbiased."""
        ordered, position = sorted(self.scores), PERCENTILE * (len(self.scores) + 1)  # numpy would load much for this
        below = min(max(int(position), 1), len(ordered))
        above = min(below + 1, len(ordered))
        share = min(max(position - below, 0.0), 1.0)
        return ordered[below - 1] + share * (ordered[above - 1] - ordered[below - 1])

    @property
    def way(self) -> dict[str, Any]:
        """How its pictures are drawn, by field of a request."""
        return {name: getattr(self, name) for name in WAY}

    def is_of(self, request: ResolvedRequest, prompts_sha256: str) -> bool:
        """Whether it is of these prompts, drawn just so."""
        drawn_so = all(value == getattr(request, name) for name, value in self.way.items())
        return drawn_so and self.prompts_sha256 == prompts_sha256

    def covers(self, request: ResolvedRequest) -> bool:
        """Whether its scores are those of such requests."""
        return (
            all(getattr(self, name) == getattr(request, name) for name in EXACTLY)
            and _is_near(self.num_inference_steps, request.num_inference_steps, STEPS_FACTOR)
            and _is_near(self.guidance_scale, request.guidance_scale, GUIDANCE_FACTOR)
        )

    def distance(self, request: ResolvedRequest) -> float:
        """How far it is from a request that it covers."""
        steps = math.log(self.num_inference_steps / request.num_inference_steps)
        return abs(steps) + abs(math.log(self.guidance_scale / request.guidance_scale))


WAY = (
    "width", "height", "num_inference_steps", "guidance_scale", "sampler", "sigmas", "exactness", "negative_prompt",
    "clip_skip",
)  # fmt: skip


EXACTLY = ("width", "height", "sigmas", "negative_prompt", "clip_skip")  # which have to be those of a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrations:
    """A bundle's."""

    bundle_hash: str
    calibrations: tuple[Calibration, ...] = ()
    format_version: int = FORMAT_VERSION

    def with_one(self, new: Calibration) -> Calibrations:
        """The same with one more, in the place of one that is drawn the same way."""
        others = (each for each in self.calibrations if each.way != new.way)
        return Calibrations(bundle_hash=self.bundle_hash, calibrations=(*others, new))

    def for_request(self, request: ResolvedRequest) -> Calibration | None:
        """The complete one that is nearest to a request."""
        known = [each for each in self.calibrations if each.is_complete and each.covers(request)]
        return min(known, key=lambda each: each.distance(request), default=None)


def calibrations_of(bundle: Bundle) -> Calibrations:
    """What is known of a bundle: the user's own, then what comes with it."""
    own, shipped = read_calibrations(own_place(bundle), bundle), _shipped(bundle)
    return Calibrations(bundle_hash=bundle.hash, calibrations=(*own.calibrations, *shipped.calibrations))


def own_place(bundle: Bundle) -> Path:
    """Where `tintype calibrate` keeps a bundle's."""
    from tintype.engine import cache_folder

    return cache_folder() / FOLDER / f"{bundle.hash}.json"


def read_calibrations(path: Path, bundle: Bundle) -> Calibrations:
    """Those in a file. One that isn't there, is damaged, newer or another bundle's has none."""
    nothing = Calibrations(bundle_hash=bundle.hash)
    try:
        found = strict_json.read(Calibrations, strict_json.parse(read_cached(path)))
    except (OSError, ValueError):
        return nothing
    return found if (found.format_version, found.bundle_hash) == (FORMAT_VERSION, bundle.hash) else nothing


def write_calibrations(path: Path, calibrations: Calibrations) -> None:
    """Whole or not at all. Raises OSError."""
    write_text(path, strict_json.dump(calibrations, indent=None) + "\n")


def _shipped(bundle: Bundle) -> Calibrations:
    if bundle.name not in EMBEDDED:
        return Calibrations(bundle_hash=bundle.hash)
    return read_calibrations(embedded_folder(bundle.name).with_name(SHIPPED), bundle)


def judge_score(score: float, request: ResolvedRequest, bundle: Bundle) -> Memorisation:
    """What a picture's score says, of a request that was drawn with a bundle."""
    reason = why_unlike_ordinary(request)
    known = None if reason else calibrations_of(bundle).for_request(request)
    if known is None:
        return Memorisation(score=score, not_judged=reason or "nothing is calibrated for such requests")
    threshold = round(known.threshold, 6)
    return Memorisation(score=score, threshold=threshold, is_likely=score > threshold)


def why_unlike_ordinary(request: ResolvedRequest) -> str | None:
    """Why a request's score is another quantity than that of ordinary prompts; None where it is the same."""
    if request.image is not None:
        return "it began with a picture"
    if request.refiner_start is not None:
        return "a refiner drew the last steps"
    if request.guidance_interval is not None:
        return "guidance had an interval"
    if request.cache_interval > 1 or request.gate_start is not None:
        return "steps took over what earlier ones computed"
    if request.loras:
        return "LoRAs changed the model"
    if request.control:
        return "ControlNets or T2I-Adapters had a part in it"
    if request.image_prompts:
        return "pictures stood beside its words"
    if request.embeddings:
        return "its words had embeddings of their own"
    if request.token_merging:
        return "tokens were merged"
    if tuple(part.weight for part in parse_parts(request.prompt)) != ALONE:
        return "its prompt has parts"
    return None


def digest_of(prompts: Sequence[str]) -> str:
    """What a calibration calls its prompts."""
    return hashlib.sha256("\n".join(prompts).encode("utf-8", "surrogatepass")).hexdigest()


def _is_near(known: float, asked: float, factor: float) -> bool:
    return known > 0 and asked > 0 and max(known / asked, asked / known) <= factor
