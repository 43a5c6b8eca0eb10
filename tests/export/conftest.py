"""The int8 bundle of the tiny checkpoint, and a copy of the checkpoint to damage."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import optimum_form
import pytest
from low_precision import int8_export
from one_file import save_folder

__all__ = ["int8_export"]  # the fixture


@pytest.fixture
def checkpoint_copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    return folder


@pytest.fixture(scope="session")
def published(
    tiny_checkpoint: Path, xl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """By one of `one_file.FAMILIES`: a diffusers folder whose config follows from its shapes. Read only."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            plain = xl_checkpoint if family.startswith("xl") else tiny_checkpoint
            made[family] = save_folder(plain, tmp_path_factory.mktemp(family) / "folder", family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def onnx_folder(tiny_checkpoint: Path) -> Path:
    """`tiny_checkpoint` as optimum exports it. Read only."""
    return _saved_once(tiny_checkpoint)


@pytest.fixture(scope="session")
def xl_onnx_folder(xl_checkpoint: Path) -> Path:
    """`xl_checkpoint` as optimum exports it. Read only."""
    return _saved_once(xl_checkpoint)


def _saved_once(checkpoint: Path) -> Path:
    """In pytest's cache, beside the checkpoint."""
    digest = hashlib.sha256(inspect.getsource(optimum_form).encode()).hexdigest()[:16]
    folder = checkpoint.with_name(f"onnx-{checkpoint.name}-{digest}")
    with filelock.FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            scratch = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            optimum_form.save_onnx_folder(checkpoint, scratch)
            scratch.rename(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_bundle(onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle in the cache that is made of `onnx_folder`, by a process that can import nothing of torch's."""
    from tintype.bundle.converted import converted

    nothing = tmp_path_factory.mktemp("without-torch")
    for name in ("torch", "diffusers", "transformers", "onnxscript"):
        (nothing / f"{name}.py").write_text(f"raise ImportError({name!r})")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(nothing))
        return converted(onnx_folder)[0]
