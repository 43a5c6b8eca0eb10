"""Files of textual inversion, as A1111 and diffusers write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

WIDTHS = {"text_encoder": 64}  # of the plain checkpoint
XL_WIDTHS = {"clip_l": 32, "clip_g": 48}


def vectors(count: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """As large as a trained model's tokens are told apart by: of another direction than any word."""
    return np.random.default_rng(seed).normal(0, 0.08, (count, width)).astype(np.float32)


def write(path: Path, **tensors: NDArray[np.float32]) -> Path:
    save_file(tensors, path)
    return path
