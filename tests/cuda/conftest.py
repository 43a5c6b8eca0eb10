"""CUDA for real, on an NVIDIA GPU (see `make test-cuda`).

Skipped where none can be used, unless TINTYPE_REQUIRE_CUDA=1 makes that a failure. Nobody has run these tests yet.
"""

from __future__ import annotations

import os

import pytest

from tintype.bundle import Bundle, open_bundle
from tintype.engine import Target, resolve_provider
from tintype.engine.providers import TARGETS, unusable_reason


@pytest.fixture(scope="session")
def cuda() -> Target:
    reason = unusable_reason(TARGETS["cuda"])
    if reason is not None and os.environ.get("TINTYPE_REQUIRE_CUDA", "0") == "1":
        pytest.fail(f"CUDA has to work here, and does not: {reason}")
    if reason is not None:
        pytest.skip(f"CUDA: {reason}")
    return resolve_provider("cuda")


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return open_bundle("postcard")
