"""A LoRA as a user says it, and as a record keeps it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tintype.adapters.names import DENOISER
from tintype.strict_json import require

MAX_WEIGHT = 100.0
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
PART = r"(?:text|unet|mid|(?:down|up)(?:\.\d{1,2})?)"
PARTS = rf"{PART}={NUMBER}(?:,{PART}={NUMBER})*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """start, stop: shares of the steps between which it counts; a text encoder, which has none, has it throughout.
    parts: by part of the model what the weight is multiplied with there: text, unet, down, mid, up, down.0, up.3, ...
    """

    file: str | os.PathLike[str]
    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFacts:
    """What a record keeps of one; see `Lora`."""

    name: str  # of its file, without its ending
    sha256: str
    weight: float
    start: float = 0.0
    stop: float = 1.0
    parts: str | None = None  # as on the command line: down=0.5,text=0

    def __post_init__(self) -> None:
        numbers = (self.weight, self.start, self.stop)
        require(all(map(math.isfinite, numbers)) and abs(self.weight) <= MAX_WEIGHT, "a LoRA's weight is absurd")
        require(0.0 <= self.start < self.stop <= 1.0, "a LoRA's start and stop are no part of the way")
        require(re.fullmatch("[0-9a-f]{64}", self.sha256) is not None, "sha256 should be 64 hexadecimal digits")
        require(0 < len(self.name) <= 255 and self.name.isprintable(), "a LoRA's name is no name to show")
        require(self.parts is None or re.fullmatch(PARTS, self.parts) is not None, "a LoRA's parts are none")

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing at any step."""
        return self.weight == 0.0

    def factor(self, role: str, layer: str) -> float:
        """What its weight is multiplied with in a layer: by the part that names it most closely."""
        factors = parse_parts(self.parts)
        if role != DENOISER:
            return factors.get("text", 1.0)
        block, _, rest = layer.partition("_block")
        number = rest.removeprefix("s.").partition(".")[0]
        return next((factors[part] for part in (f"{block}.{number}", block, "unet") if part in factors), 1.0)

    def weight_at(self, progress: float | None) -> float:
        """At a step that begins at this share of the way; None: where there are no steps."""
        return self.weight if progress is None or self.start <= progress < self.stop else 0.0


def parse_parts(text: str | None) -> dict[str, float]:
    """down=0.5,text=0 -> by part; a part that comes twice counts as it comes last."""
    return {} if text is None else {part: float(number) for part, number in (p.split("=") for p in text.split(","))}
