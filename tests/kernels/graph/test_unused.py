"""What nothing reads goes as onnx_ir's own pass takes it away."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.kernels.graph import unused
from tintype.kernels.graph.unused import remove_unused

HEAD = '<ir_version: 9, opset_import: ["" : 20]>'
GRAPHS = {
    "all read": "g (float[2] x) => (float[2] y) { y = Relu (x) }",
    "a chain that ends in nothing": "g (float[2] x) => (float[2] y) { a = Neg (x) b = Abs (a) y = Relu (x) }",
    "weights": (
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> { a = Mul (x, w) y = Add (x, v) }"
    ),
    "an output among several": "g (float[4] x) => (float[2] y) { y, z = Split <axis = 0, num_outputs = 2> (x) }",
    "an optional output": "g (float[2, 4] x, float[4] s) => (float[2, 4] y) { y, mean = LayerNormalization (x, s) }",
    "an input left open": "g (float[2] x) => (float[2] y) { y = Clip (x, , ) }",
    "a training mode": (
        "g (float[1, 2, 3] x, float[2] s) => (float[1, 2, 3] y) "
        "{ y, m, v = BatchNormalization <training_mode = 0> (x, s, s, s, s) }"
    ),
    "a graph inside": (
        "g (float[2] x, bool c) => (float[2] y) { y = If (c) "
        "<then_branch = t () => (float[2] a) { u = Neg (x) a = Abs (x) }, "
        "else_branch = e () => (float[2] b) { b = Neg (x) }> }"
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_left_is_what_the_pass_leaves(name: str) -> None:
    given = onnx.parser.parse_model(HEAD + GRAPHS[name])
    ours, theirs = ir.from_proto(given), ir.from_proto(given)
    remove_unused(ours)
    RemoveUnusedNodesPass()(theirs)
    assert ir.to_proto(ours) == ir.to_proto(theirs)


@pytest.mark.parametrize("name", list(GRAPHS)[:3])
def test_a_plain_graph_is_not_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the pass is called")

    monkeypatch.setattr(unused, "RemoveUnusedNodesPass", refuse)
    model = ir.from_proto(onnx.parser.parse_model(HEAD + GRAPHS[name]))
    remove_unused(model)
    assert len(list(model.graph)) == 1
