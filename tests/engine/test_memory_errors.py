"""Whatever ONNX Runtime calls it, no memory is no memory: what asks again in smaller pieces has to know."""

from __future__ import annotations

from pathlib import Path

import pytest

from tintype.engine.providers import TARGETS
from tintype.engine.session import _run_error
from tintype.errors import BuildError, MemoryBudgetError


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code: std::bad_alloc",
        "[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9",
        "CUDA error: out of memory",
    ],
)
def test_a_run_without_memory_is_a_memory_error(text: str) -> None:
    assert isinstance(_run_error(Path("model.onnx"), TARGETS["cpu"], RuntimeError(text)), MemoryBudgetError)


def test_another_failure_is_none() -> None:
    assert isinstance(_run_error(Path("model.onnx"), TARGETS["cpu"], RuntimeError("wrong shape")), BuildError)
