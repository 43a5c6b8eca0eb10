"""What the tests of the kernels of 8-bit integers need of a processor."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from tintype.engine import resolve_provider
from tintype.engine.device.abilities import has_ability
from tintype.kernels.native.library import INTEGERS


@pytest.fixture
def able(library: None) -> None:
    if not has_ability(resolve_provider("cpu"), INTEGERS):
        pytest.skip("this processor adds up no products of four bytes")


@pytest.fixture
def sets(
    able: None, instructions: Callable[[onnx.ModelProto], list[onnx.ModelProto]]
) -> Callable[[onnx.ModelProto], list[onnx.ModelProto]]:
    """The sets that have such products: the fourth and what comes after it."""
    return lambda model: instructions(model)[3:]
