"""SECURITY.md says what the code does: every bound in its table is the constant's, and every constant is in it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import deadline
import pytest

from tintype import bounds

PAGE = (Path(__file__).parents[2] / "runtime/SECURITY.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\|[^|]*\|[^|]*\| ([\d,]+) \|[^|]*\| `([\w.]+)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("stated", "constant"), ROWS, ids=[constant for _, constant in ROWS])
def test_a_bound_is_the_constant_that_the_code_goes_by(stated: str, constant: str) -> None:
    module, _, name = constant.rpartition(".")
    assert getattr(importlib.import_module(f"tintype.{module}"), name) == int(stated.replace(",", ""))


def test_every_row_of_the_table_is_read() -> None:
    assert len(ROWS) == len([line for line in PAGE.splitlines() if line.startswith("|")]) - 2


def test_every_bound_of_a_door_is_in_the_table() -> None:
    names = {f"bounds.{name}" for name in vars(bounds) if name.startswith("MAX_")}
    assert names <= {constant for _, constant in ROWS}


def test_the_tests_wait_as_long_as_the_page_says() -> None:
    assert f"after {deadline.SECONDS:g} seconds" in PAGE.replace("\n", " ")
