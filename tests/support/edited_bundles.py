"""Copies of bundles whose manifests say something else."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tintype.bundle import manifest_digest


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Path, Callable[[Any], object]], Path]:
    """A copy of a bundle whose manifest was changed as by a hostile hand, past every check of its writer."""

    def copied(bundle: Path, change: Callable[[Any], object]) -> Path:
        folder = Path(shutil.copytree(bundle, tempfile.mkdtemp(dir=tmp_path), dirs_exist_ok=True))
        value = json.loads((folder / "tintype.json").read_text())
        change(value)
        (folder / "tintype.json").write_text(json.dumps({**value, "digest": manifest_digest(value)}))
        return folder

    return copied
