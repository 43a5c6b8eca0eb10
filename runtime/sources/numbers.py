"""Numbers of tensors as a .safetensors file has them, as float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

READABLE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # BF16 is the upper half of a float32


def floats_of(data: bytes, dtype: str) -> NDArray[np.float32]:
    """The numbers that these bytes are, of one of READABLE's types. What float32 doesn't hold is infinite."""
    numbers = np.frombuffer(data, READABLE[dtype])
    if dtype == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)
