"""The arena that sessions share: one graph's memory serves the next, and goes back when it is asked to."""

from __future__ import annotations

import subprocess
import sys

from onnx import TensorProto, helper

from tintype.engine.run import arena

USE = """
import numpy as np, onnxruntime, psutil, sys
from tintype.engine.run import arena

MIB = 2**20

def resident():
    return psutil.Process().memory_info().rss / MIB

def opened(shared):
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    if shared:
        arena.use_shared(options)
    return onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

sessions = [opened(sys.argv[2] == "shared") for _ in range(3)]
feed = {"x": np.zeros((1, 2**20), np.float32)}
before = resident()
for session in sessions:
    session.run(None, feed)
used = resident() - before
arena.shrink()
print(round(used), round(resident() - before))
"""


def run(path, how):
    done = subprocess.run([sys.executable, "-c", USE, path, how], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_three_graphs_need_the_memory_of_one_and_give_it_back(tmp_path):
    """Each needs two times 32 MiB in between; its output is one number."""
    nodes = [
        helper.make_node("Expand", ["x", "eight"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0),
    ]
    eight = helper.make_tensor("eight", TensorProto.INT64, [2], [8, 2**20])
    sides = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2**20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    graph = helper.make_graph(nodes, "g", *sides, [eight])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    path = tmp_path / "hungry.onnx"
    path.write_bytes(model.SerializeToString())
    apart, still_there = run(str(path), "apart")
    shared, left = run(str(path), "shared")
    assert still_there == apart  # there is nothing shared to give back
    assert shared <= apart // 2
    assert left <= 4


def test_the_graph_that_shrinks_it_is_one_identity():
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])] for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", *sides)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)], producer_name="")
    assert model.SerializeToString() == arena._IDENTITY
