"""What the tests of the kernels of 8-bit integers need of a processor."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from tintype.engine import resolve_provider
from tintype.engine.device.abilities import has_ability
from tintype.engine.device.native import kernel_sets
from tintype.kernels.native.library import INTEGERS

OF_BYTES = frozenset({"avxvnni", "avx512vnni", "avx512bf16", "dotprod", "i8mm"})


@pytest.fixture
def able(library: None) -> None:
    if not has_ability(resolve_provider("cpu"), INTEGERS):
        pytest.skip("this processor adds up no products of four bytes")


@pytest.fixture
def sets(
    able: None, instructions: Callable[[onnx.ModelProto], list[onnx.ModelProto]]
) -> Callable[[onnx.ModelProto], list[onnx.ModelProto]]:
    """The sets that have such products."""
    names = kernel_sets()
    assert OF_BYTES & set(names)
    return lambda model: [each for name, each in zip(names, instructions(model), strict=True) if name in OF_BYTES]
