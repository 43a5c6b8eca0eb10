"""How much real denoising an export gets: for its gates, and for the calibration of int8.

A quick parity judges each graph on real inputs of a small size, a full one on those of whole pictures. Calibration is
the same for both: it is a part of quantization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tintype.bundle.parity import PARITY_KINDS
from tintype.errors import ExportError, near_names
from tintype.export.calls import DEFAULT_PROMPTS, TrajectoryPlan
from tintype.export.checkpoint import Checkpoint

LARGE_UNET_BYTES = 512 * 2**20
TRIAL_SEEDS = 500  # from the plan's seed on, as far from those of calibration as from the gates'
QUICK_LATENT_SIZE = 32  # a side, in latent cells, at most
QUICK_STEPS, QUICK_CALLS = 4, 3  # a walk of a quick parity, and the UNet's calls that are judged
# At most this long for measuring what each layer's quantization costs; calls of a quick parity take a fraction.
DAMAGE_SECONDS = {"quick": 150.0, "full": 1200.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much real denoising the gates and the calibration get; None fits the checkpoint's size and the parity."""

    steps: int | None = None
    calibration_prompts: int | None = None
    gate_prompts: int | None = None
    gate_calls: int | None = None
    latent_size: int | None = None  # a side, in latent cells
    damage_seconds: float | None = None  # at most this long for measuring what each layer's quantization costs


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """How calibration and gates walk; gates of a full parity walk as calibration does."""

    parity: str  # quick or full
    calibration: TrajectoryPlan
    gates: TrajectoryPlan
    damage_seconds: float

    @property
    def trials(self) -> TrajectoryPlan | None:
        """A further walk whose calls int8 layers are tried on, where gates are smaller than what calibrates."""
        if self.gates.latent_size == self.calibration.latent_size:
            return None
        return replace(self.gates, calibration_prompts=1, seed=self.gates.seed + TRIAL_SEEDS)


def export_plan(
    checkpoint: Checkpoint, effort: Effort, prompts: Sequence[str] | None, guidance_scale: float, parity: str
) -> ExportPlan:
    """What the caller fixed; else what fits. Raises ExportError for a parity that isn't known, and for no effort."""
    if parity not in PARITY_KINDS:
        raise ExportError(f"parity {parity!r} isn't one that is known", fix=near_names(parity, PARITY_KINDS))
    calibration = trajectory_plan(checkpoint, effort, prompts, guidance_scale)
    gates = calibration
    if parity == "quick":
        multiple = checkpoint.latent_multiple
        size = min(calibration.latent_size, max(1, QUICK_LATENT_SIZE // multiple) * multiple)
        quick = {"steps": QUICK_STEPS, "gate_prompts": 1, "gate_calls": QUICK_CALLS}
        unsaid = {field: value for field, value in quick.items() if getattr(effort, field) is None}
        gates = replace(calibration, latent_size=size, **unsaid)  # type: ignore[arg-type]
    seconds = DAMAGE_SECONDS[parity] if effort.damage_seconds is None else effort.damage_seconds
    return ExportPlan(parity, calibration, gates, seconds)


def trajectory_plan(
    checkpoint: Checkpoint, effort: Effort, prompts: Sequence[str] | None, guidance_scale: float
) -> TrajectoryPlan:
    """What the caller fixed; else much for a small UNet, and for one of SD's size what 2 cores do in minutes."""
    large = checkpoint.fp32_bytes("unet") > LARGE_UNET_BYTES
    usual = {"steps": 8, "calibration_prompts": 1, "gate_prompts": 1, "gate_calls": 3} if large else {}
    chosen = {field: getattr(effort, field) for field in ("steps", "calibration_prompts", "gate_prompts", "gate_calls")}
    fixed = {field: value for field, value in chosen.items() if value is not None}
    size = effort.latent_size if effort.latent_size is not None else checkpoint.latent_size
    size = max(1, size // checkpoint.latent_multiple) * checkpoint.latent_multiple
    texts = DEFAULT_PROMPTS if prompts is None else tuple(prompts)
    return TrajectoryPlan(texts, size, guidance_scale=guidance_scale, **{**usual, **fixed})
