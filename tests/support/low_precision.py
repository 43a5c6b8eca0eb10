"""The tiny checkpoint exported in lower precisions, each once for all tests. Read only: copy it to change it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from tintype.cli import run

# A bundle's weights, and how exact its pictures are. fp16 in `exact` is only in `make test-long`: on the processor it
# is `balanced` without what that may round, and int8 has both.
PRECISIONS = [
    pytest.param("fp16", "exact", marks=pytest.mark.long),
    ("fp16", "balanced"),
    ("int8", "exact"),
    ("int8", "balanced"),
]


@pytest.fixture(scope="session")
def int8_export(tiny_checkpoint: Path, tiny_bundle: Path) -> tuple[Path, dict[str, Any]]:
    """`tintype export --precision int8 --json`: the bundle and what the command printed.

    Kept beside the fp32 one, for tracing takes its time; another exporter makes it anew.
    """
    folder = tiny_bundle.parent
    bundle, printed = folder / "tiny-int8", folder / "tiny-int8.json"
    with filelock.FileLock(folder / "int8.lock"):
        if not printed.is_file():
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                counted = {"prompt": "a house", "judge": "me", "bundle_hash": "0" * 64, "counts": {"red": 3, "blue": 1}}
                (folder / "skew.json").write_text(json.dumps({"skew": [counted], "machine": "any"}))
                options = ["--precision", "int8", "--json", "--overwrite", "--licence", "Apache-2.0"]
                options += ["--skew", str(folder / "skew.json")]
                code = run(["export", str(tiny_checkpoint), str(bundle), *options])
            assert code == 0, output.getvalue()
            printed.write_text(output.getvalue(), encoding="utf-8")
    return bundle, json.loads(printed.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def fp16_bundle(tiny_checkpoint: Path, export_once: Callable[..., Path]) -> Path:
    """Its gates judge few calls."""
    from tintype.export import Effort

    effort = Effort(steps=2, calibration_prompts=1, gate_prompts=1, gate_calls=1, latent_size=8)
    return export_once("tiny", tiny_checkpoint, precision="fp16", effort=effort)


def bundle_of(request: pytest.FixtureRequest, precision: str) -> Path:
    """The one of `fp16` or `int8`, in a test whose module has both fixtures."""
    if precision == "fp16":
        return Path(request.getfixturevalue("fp16_bundle"))
    return Path(request.getfixturevalue("int8_export")[0])
