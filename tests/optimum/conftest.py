"""What optimum makes of the tests' checkpoints, once a run; without optimum-onnx these tests are skipped.

See `make test-optimum`, whose environment has it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

TASKS = {"inpainting-checkpoint": "inpainting"}  # text-to-image for every other one


@pytest.fixture(scope="session", autouse=True)
def _optimum() -> None:
    try:
        version("optimum-onnx")
    except PackageNotFoundError:
        if os.environ.get("TINTYPE_REQUIRE_OPTIMUM", "0") == "1":
            pytest.fail("optimum-onnx has to be here, and is not")
        pytest.skip("optimum-onnx is not installed here: make test-optimum")
    with warnings.catch_warnings():  # of its imports and its exporter's, which say much
        warnings.simplefilter("ignore")
        from optimum.onnxruntime import ORTDiffusionPipeline, ORTStableDiffusionPipeline  # noqa: F401


@pytest.fixture(scope="session")
def exported(tiny_checkpoint: Path, _optimum: None) -> Callable[[str], Path]:
    """By the name of a checkpoint's folder: what optimum's own exporter writes of it, in pytest's cache. Read only."""

    def export(name: str) -> Path:
        import filelock
        from optimum.exporters.onnx import main_export

        folder = tiny_checkpoint.with_name(f"optimum-{version('optimum-onnx')}-{name}")
        with filelock.FileLock(folder.with_suffix(".lock")), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not (folder / "model_index.json").is_file():
                task = TASKS.get(name, "text-to-image")
                logging.getLogger("optimum").setLevel(logging.ERROR)
                main_export(str(tiny_checkpoint.with_name(name)), output=folder, task=task, do_validation=False)
                logging.getLogger("optimum").setLevel(logging.WARNING)
        return folder

    return export
