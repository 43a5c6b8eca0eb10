"""A graph that overflows is run again by a wider one, the record can say so, and it stays there.

On CUDA the narrow graph is float16 and the wide one float32. A processor keeps float32 between float16 nodes, so here
the narrow one is a float32 graph that overflows from 1.8 on.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tintype.engine import open_session

BIG = 1e19


def write(path, narrow):
    """y = x * x * factor, by way of x * x * 1e38 if narrow."""
    scale = BIG if narrow else 1.0
    constants = [numpy_helper.from_array(np.array(scale, np.float32), "scale")]
    steps = (("Mul", "x", "scale"), ("Mul", "v0", "v0"), ("Div", "v1", "scale"), ("Div", "v2", "scale"))
    nodes = [helper.make_node(kind, [a, b], [f"v{index}"]) for index, (kind, a, b) in enumerate(steps)]
    nodes.append(helper.make_node("Mul", ["v3", "factor"], ["y"]))
    shapes = {"x": ["n"], "factor": []}
    told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "g", told, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


@pytest.fixture
def opened(tmp_path, cpu):
    narrow, wide = write(tmp_path / "narrow.onnx", True), write(tmp_path / "wide.onnx", False)
    wider = []

    def again():
        wider.append(open_session(wide, cpu))
        return wider[-1]

    with open_session(narrow, cpu, again=again) as session:
        yield session, wider


FACTOR = np.array(2.0, np.float32)


def test_a_run_that_does_not_overflow_is_the_narrow_graphs(opened):
    session, wider = opened
    x = np.array([1.0, 0.1], np.float32)
    (y,) = session.run({"x": x, "factor": FACTOR}).values()
    np.testing.assert_allclose(y, x * x * 2, rtol=1e-5)
    assert (session.overflowed, wider) == (False, [])


def test_a_run_that_overflows_is_done_again_and_so_are_all_after_it(opened):
    session, wider = opened
    held = session.hold({"factor": FACTOR})
    for x in ([1.0, 3.0], [0.1, 0.2]):
        x = np.array(x, np.float32)
        (y,) = held.run({"x": x}).values()
        np.testing.assert_array_equal(y, x * x * 2)
    assert session.overflowed
    assert len(wider) == 1
    assert session.run_seconds > 0


def test_closing_closes_both(opened):
    session, wider = opened
    session.run({"x": np.array([3.0], np.float32), "factor": FACTOR})
    session.close()
    assert wider[0]._inner is None


def test_without_another_build_infinity_is_given_as_it_is(tmp_path, cpu):
    with open_session(write(tmp_path / "g.onnx", True), cpu) as session:
        (y,) = session.run({"x": np.array([3.0], np.float32), "factor": FACTOR}).values()
    assert np.isinf(y).all()
