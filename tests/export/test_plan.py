"""How much real denoising an export gets: what the caller fixed, and what fits the checkpoint otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tintype.errors import ExportError
from tintype.export import Effort
from tintype.export.bundling import trajectory_plan
from tintype.export.checkpoint import Checkpoint, open_checkpoint


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
