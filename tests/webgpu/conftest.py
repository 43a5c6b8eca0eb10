"""WebGPU for real: on a GPU, or on a software adapter (see `make test-webgpu`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tintype.bundle import Bundle, open_bundle
from tintype.engine import Session, Target, ensure_build, open_session

ROLES = ("text_encoder", "denoiser", "vae_decoder")


@pytest.fixture(scope="session")
def webgpu(usable_target: Callable[[str], Target]) -> Target:
    return usable_target("webgpu")


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
