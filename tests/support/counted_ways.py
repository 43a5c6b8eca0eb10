"""Ways to draw by which a test of what stands beside a model counts calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

# With two calls a step only in `make test-long`: what they count is counted in other ways too.
UNCOUNTED = ("deepest", "merged", "picture", "inpainted")


def counted(ways: Iterable[str]) -> list[Any]:
    """Samplers of one call and of two a step, each with every way whose calls are those of one run."""
    return [
        pytest.param(sampler, way, marks=pytest.mark.long if sampler == "heun" and way in UNCOUNTED else ())
        for sampler in ("euler", "heun")
        for way in ways
        if way != "hires"
    ]
