"""How much real denoising an export gets: what the caller fixed, and what fits the checkpoint otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tintype.errors import ExportError
from tintype.export import Effort
from tintype.export.checkpoint import Checkpoint, open_checkpoint
from tintype.export.plans import DAMAGE_SECONDS, export_plan, trajectory_plan


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


def test_trajectories_use_the_guidance_that_pictures_are_made_with(checkpoint: Checkpoint) -> None:
    for scale in (3.0, 0.0):
        assert trajectory_plan(checkpoint, Effort(), None, scale).guidance_scale == scale


def test_latents_have_the_unets_size_in_whole_multiples(checkpoint: Checkpoint) -> None:
    assert trajectory_plan(checkpoint, Effort(), None, 1.0).latent_size == 16
    assert trajectory_plan(checkpoint, Effort(latent_size=7), None, 1.0).latent_size == 6


def test_calibration_and_gates_take_prompts_from_different_ends(checkpoint: Checkpoint) -> None:
    plan = trajectory_plan(checkpoint, Effort(), [str(number) for number in range(20)], 1.0)
    assert not set(plan.calibration) & set(plan.gates)
    assert trajectory_plan(checkpoint, Effort(), ["alone"], 1.0).gates == ["alone"] * 2


@pytest.mark.parametrize("effort", [Effort(steps=0), Effort(gate_calls=-1), Effort(calibration_prompts=0)])
def test_no_effort_at_all_is_refused(checkpoint: Checkpoint, effort: Effort) -> None:
    with pytest.raises(ExportError, match=r"is (0|-1)"):
        trajectory_plan(checkpoint, effort, None, 1.0)


def test_no_prompts_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match="no prompts"):
        trajectory_plan(checkpoint, Effort(), [], 1.0)


def test_a_quick_parity_judges_at_a_small_size_and_calibrates_as_a_full_one(checkpoint: Checkpoint) -> None:
    large = Effort(latent_size=64)
    quick, full = (export_plan(checkpoint, large, None, 7.5, parity) for parity in ("quick", "full"))
    assert quick.calibration == full.calibration == full.gates
    assert (full.trials, full.gates.latent_size) == (None, 64)
    assert (quick.gates.latent_size, quick.gates.gate_prompts, quick.gates.steps) == (32, 1, 4)
    assert quick.damage_seconds < full.damage_seconds == DAMAGE_SECONDS["full"]
    seeds = [*quick.calibration.calibration_seeds, *quick.gates.gate_seeds]
    assert quick.trials is not None
    assert quick.trials.latent_size == 32
    assert not set(quick.trials.calibration_seeds) & set(seeds)  # layers aren't chosen by what judges them


def test_what_a_caller_fixed_counts_in_a_quick_parity_too(checkpoint: Checkpoint) -> None:
    effort = Effort(steps=3, gate_prompts=2, gate_calls=5, latent_size=8, damage_seconds=7.0)
    plan = export_plan(checkpoint, effort, None, 7.5, "quick")
    assert (plan.gates, plan.trials, plan.damage_seconds) == (plan.calibration, None, 7.0)


def test_a_parity_that_is_not_known_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match="quik") as caught:
        export_plan(checkpoint, Effort(), None, 7.5, "quik")
    assert "quick" in caught.value.fix
