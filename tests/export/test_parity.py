"""Laws of nearness, and what the gates let through."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tintype import strict_json
from tintype.arrays import EXACT_DB, psnr_db
from tintype.bundle import Parity
from tintype.errors import ExportError
from tintype.export.parity import (
    GATES_DB,
    Gate,
    GraphReport,
    ParityReport,
    guidance_error,
    judge,
    refuse_failures,
    worst_psnr_db,
)
from tintype.strict_json import Misfit

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("error", "db"), [(0.1, 20.0), (0.01, 40.0), (1e-4, 80.0)])
def test_an_error_of_a_share_of_the_range_has_that_many_decibels(error: float, db: float) -> None:
    reference = np.linspace(-1, 1, 1000, dtype=np.float32)
    signs = np.where(np.arange(1000) % 2 == 0, 1.0, -1.0)
    assert psnr_db(reference, (reference + 2 * error * signs).astype(np.float32)) == pytest.approx(db, abs=0.05)


def test_psnr_does_not_depend_on_scale_or_offset() -> None:
    reference = RANDOM.standard_normal(1000).astype(np.float32)
    other = reference + 0.01 * RANDOM.standard_normal(1000).astype(np.float32)
    assert psnr_db(5 * reference + 3, 5 * other + 3) == pytest.approx(psnr_db(reference, other), abs=0.01)


def test_equal_arrays_are_exact_and_broken_ones_infinitely_far() -> None:
    reference = RANDOM.standard_normal(10).astype(np.float32)
    assert psnr_db(reference, reference.copy()) == EXACT_DB
    assert psnr_db(reference, np.full(10, np.nan, np.float32)) == -math.inf
    assert psnr_db(np.zeros(3, np.float32), np.ones(3, np.float32)) == -math.inf


def test_the_worst_call_counts() -> None:
    reference = RANDOM.standard_normal(100).astype(np.float32)
    near, far = reference + np.float32(1e-4), reference + np.float32(1e-1)
    assert worst_psnr_db([reference, reference], [near, far]) == psnr_db(reference, far)


def test_guidance_error_sees_the_difference_alone() -> None:
    reference = RANDOM.standard_normal((2, 4, 8, 8)).astype(np.float32)
    assert guidance_error([reference], [reference + np.float32(0.5)]) == pytest.approx(0.0, abs=1e-6)
    wrong = reference.copy()
    wrong[1] += np.float32(0.1) * (reference[1] - reference[0])
    assert guidance_error([reference], [wrong]) == pytest.approx(0.1, abs=1e-4)


def test_guidance_error_where_the_prompt_has_no_effect() -> None:
    same = np.ones((2, 1), np.float32)
    assert guidance_error([same], [same]) == 0.0
    assert guidance_error([same], [np.array([[1.0], [2.0]], np.float32)]) == math.inf


def test_gates_are_those_of_the_contract() -> None:
    assert GATES_DB["fp32"]["denoiser"] == 80.0
    assert GATES_DB["fp16"]["denoiser"] == 50.0
    assert Gate.of("denoiser", "int8") == Gate("denoiser", 35.0, 0.10)


def test_an_int8_denoiser_with_a_wrong_difference_fails_however_near_it_is() -> None:
    gate = Gate.of("denoiser", "int8")
    assert gate.passed(36.0, 0.05)
    assert not gate.passed(60.0, 0.10)
    assert not gate.passed(34.9, 0.0)
    assert not gate.passed(math.nan, 0.0)


def test_the_manifests_line_says_on_which_inputs_a_graph_was_judged() -> None:
    reference = np.ones((2, 3), np.float32)
    assert judge(Gate.of("denoiser", "fp32"), [reference], [reference], "quick").kind == "quick"
    older = {"graph": "denoiser", "reference": "torch fp32", "psnr_db": 90.0, "gate_db": 80.0, "passed": True}
    assert strict_json.read(Parity, older).kind is None
    with pytest.raises(Misfit, match="hasty"):
        strict_json.read(Parity, {**older, "kind": "hasty"})


def test_a_graph_that_gives_nan_is_judged_and_can_be_written_down() -> None:
    reference = np.ones((2, 3), np.float32)
    parity = judge(Gate.of("denoiser", "fp32"), [reference], [reference * np.nan])
    assert not parity.passed
    assert math.isfinite(parity.psnr_db)


def test_a_refusal_names_the_graph_and_its_figures() -> None:
    parity = Parity(graph="denoiser", reference="torch fp32", psnr_db=31.26, gate_db=35.0, passed=False)
    report = ParityReport("mine", "int8", (GraphReport("denoiser", "int8", parity, 1),), 0, 0.0)
    with pytest.raises(ExportError, match=r"denoiser reaches 31\.3 dB of 35"):
        refuse_failures(report)
