"""CUDA for real, on an NVIDIA GPU (see `make test-cuda`). Nobody has run these tests yet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tintype.bundle import Bundle, open_bundle
from tintype.engine import Target


@pytest.fixture(scope="session")
def cuda(usable_target: Callable[[str], Target]) -> Target:
    return usable_target("cuda")


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return open_bundle("postcard")
