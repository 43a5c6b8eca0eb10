"""What graphs are called with while they are exported, and how far and how often pictures are walked for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.errors import ExportError

GATE_SEEDS = 1000  # from the plan's seed on

Feed = dict[str, NDArray[Any]]  # a graph's inputs by name

DEFAULT_PROMPTS = (
    "a red sailboat on a calm sea at sunset",
    "a portrait of an old fisherman, oil painting",
    "a castle on a green hill, clear noon sky",
    "a bowl of fruit on a wooden table, soft light",
    "snow falling on a small blue house at night",
    "a city skyline in the rain, neon reflections",
    "a close photograph of a cat looking out of a window",
    "a lighthouse above a stormy ocean, dramatic clouds",
    "a hot air balloon over desert dunes at dawn",
    "a bicycle leaning on a brick wall, watercolor",
    "a forest path in autumn with yellow leaves",
    "an astronaut riding a horse, detailed illustration",
)


@dataclass(frozen=True, slots=True)
class TrajectoryPlan:
    """How far and how often trajectories are walked.

    prompts are taken in turn: calibration has the first ones, gates the last. latent_size is a side in latent cells.
    """

    prompts: Sequence[str]
    latent_size: int
    calibration_prompts: int = 6
    gate_prompts: int = 2
    steps: int = 20
    gate_calls: int = 6  # UNet calls on which the denoiser is judged, spread over the steps
    guidance_scale: float = 7.5
    seed: int = 20_240_229

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ExportError("there are no prompts to calibrate with", fix="give one at least, or leave prompts out")
        for name in ("latent_size", "calibration_prompts", "gate_prompts", "steps", "gate_calls"):
            if getattr(self, name) < 1:
                raise ExportError(f"{name} is {getattr(self, name)}", fix="give 1 or more, or leave it out")

    @property
    def calibration_calls(self) -> int:
        """Steps of all calibration prompts, the ends counted too."""
        return self.calibration_prompts * (self.steps + 1)

    @property
    def calibration_seeds(self) -> range:
        return range(self.seed, self.seed + self.calibration_prompts)

    @property
    def gate_seeds(self) -> range:
        return range(self.seed + GATE_SEEDS, self.seed + GATE_SEEDS + self.gate_prompts)

    @property
    def calibration(self) -> list[str]:
        return [self.prompts[index % len(self.prompts)] for index in range(self.calibration_prompts)]

    @property
    def gates(self) -> list[str]:
        return [self.prompts[-1 - index % len(self.prompts)] for index in range(self.gate_prompts)]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a graph: its inputs, and what the model that it was made of gave for them."""

    feed: Feed
    reference: NDArray[np.float32]  # its first output
    others: tuple[NDArray[np.float32], ...] = ()  # the further ones, in order

    @property
    def references(self) -> tuple[NDArray[np.float32], ...]:
        return (self.reference, *self.others)
