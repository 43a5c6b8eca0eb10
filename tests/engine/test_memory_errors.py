"""Whatever ONNX Runtime calls it, no memory is no memory: what asks again in smaller pieces has to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest

from tintype.engine import Session, graph_session
from tintype.errors import BuildError, MemoryBudgetError


@pytest.fixture
def session(bundle) -> Iterator[Session]:
    with graph_session(bundle.graph_path("denoiser")) as opened:
        yield opened


def _failing(text: str) -> NoReturn:
    raise RuntimeError(text)


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code: std::bad_alloc",
        "[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9",
        "CUDA error: out of memory",
    ],
)
def test_a_run_without_memory_is_a_memory_error(session: Session, text: str) -> None:
    with pytest.raises(MemoryBudgetError, match="ran out of memory"):
        session.execute(lambda: _failing(text))


def test_another_failure_is_none(session: Session) -> None:
    with pytest.raises(BuildError, match="wrong shape"):
        session.execute(lambda: _failing("wrong shape"))
