"""Pictures and masks that tests begin with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tintype.engine import Session
from tintype.errors import MemoryBudgetError

PROMPT = "a red sailboat on a calm sea at sunset"


def photo(width: int = 64, height: int = 64) -> Image.Image:
    """Soft blotches of colour."""
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    values = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(4)), np.float32)
    return Image.fromarray(np.clip((values - values.mean()) * 5 + 128, 0, 255).astype(np.uint8))


def middle(width: int = 64, height: int = 64) -> Image.Image:
    """A mask, white in the middle, on the borders of latent cells of 4 or 8 pixels."""
    values = np.zeros((height, width), np.uint8)
    values[height // 4 : height - height // 4, width // 4 : width - width // 4] = 255
    return Image.fromarray(values)


def psnr_db(one: Any, other: Any) -> float:
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


@contextlib.contextmanager
def no_memory_to_decode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every decoder runs out of memory."""
    run = Session.run

    def limited(self, inputs):
        if "latent_sample" in inputs:
            raise MemoryBudgetError("model.onnx ran out of memory", fix="less")
        return run(self, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", limited)
        yield
