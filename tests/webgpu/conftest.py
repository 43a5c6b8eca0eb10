"""WebGPU for real: on a GPU, or on a software adapter (see `make test-webgpu`).

Skipped where no adapter can be used, unless TINTYPE_REQUIRE_WEBGPU=1 makes that a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tintype.bundle import Bundle, open_bundle
from tintype.engine import Session, Target, ensure_build, open_session, resolve_provider
from tintype.engine.providers import TARGETS, unusable_reason

ROLES = ("text_encoder", "denoiser", "vae_decoder")


@pytest.fixture(scope="session")
def webgpu() -> Target:
    reason = unusable_reason(TARGETS["webgpu"])
    if reason is not None and os.environ.get("TINTYPE_REQUIRE_WEBGPU", "0") == "1":
        pytest.fail(f"WebGPU has to work here, and does not: {reason}")
    if reason is not None:
        pytest.skip(f"WebGPU: {reason}")
    return resolve_provider("webgpu")


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return open_bundle("postcard")


@pytest.fixture(scope="session")
def builds(webgpu: Target, bundle: Bundle) -> dict[str, Path]:
    """The folders of postcard's graphs as they are lowered for WebGPU."""
    return {role: ensure_build(bundle, role, webgpu) for role in ROLES}


@pytest.fixture(scope="session")
def sessions(webgpu: Target, builds: dict[str, Path]) -> Iterator[dict[str, Session]]:
    opened = {role: open_session(folder, webgpu) for role, folder in builds.items()}
    yield opened
    for session in opened.values():
        session.close()
