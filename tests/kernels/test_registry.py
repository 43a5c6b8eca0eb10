"""What holds for every kernel and every lowering."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tintype.kernels.registry import KERNELS_BY_TARGET, TARGETS, TIDYING


@pytest.mark.parametrize("target", TARGETS)
def test_each_kernel_says_what_it_keeps_and_is_listed_once(target):
    kernels = KERNELS_BY_TARGET[target]
    names = [kernel.name for kernel in kernels]
    assert len(set(names)) == len(names)
    for kernel in kernels:
        assert kernel.exactness
        assert set(kernel.targets) <= set(TARGETS)
        assert kernel.__doc__


def test_the_table_of_kernels_has_every_one_and_no_other():
    table = (Path(__file__).parents[2] / "kernels" / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in row.replace("`", "").replace(" ", "").split(",")}
    tried = (*KERNELS_BY_TARGET.values(), TIDYING)
    assert told == {kernel.name for kernels in tried for kernel in kernels}


def test_a_graph_without_matches_is_not_touched(model_of, lowered):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    result = lowered(model_of(nodes, {"x": (TensorProto.FLOAT, [2])}, ["y"], {}), {"x": np.array([-1, 1], np.float32)})
    assert result.report.as_dict() == {}
    assert result.operators == ["Relu"]


def test_kernels_import_nothing_of_ours_and_the_package_alone_nothing_heavy():
    code = (
        "import sys, tintype.kernels; light = set(sys.modules); import tintype.kernels.registry;"
        "print('onnx_ir' in light, {name.split('.')[1] for name in sys.modules if name.startswith('tintype.')})"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert told[0] == "False"
    assert set(ast.literal_eval(told[1])) <= {"kernels", "_version"}
