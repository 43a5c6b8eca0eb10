"""The door: its names exist, and opening it costs nothing."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import tintype

HEAVY = ("numpy", "PIL", "tokenizers", "onnxruntime", "onnx", "onnx_ir", "torch", "platformdirs", "psutil", "click")


@pytest.mark.parametrize("name", tintype.__all__)
def test_every_public_name_is_there(name):
    assert getattr(tintype, name) is not None


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="picture"):
        _ = tintype.picture


def test_the_names_of_the_door_and_of_the_table_agree():
    assert set(tintype.__all__) == {*tintype._HOMES, "__version__"}


def test_the_version_is_the_distributions():
    assert tintype.__version__ == importlib.metadata.version("tintype")


def test_importing_tintype_imports_nothing_heavy():
    code = f"import sys, tintype; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_making_a_picture_imports_neither_torch_nor_onnx(tiny_bundle):
    code = (
        "import sys, tintype\n"
        f"tintype.load({str(tiny_bundle)!r}, threads=1).generate('a house', seed=1, num_inference_steps=1)\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'onnx', 'onnx_ir') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
