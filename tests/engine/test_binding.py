"""TensorBinding tensors: made once, written in place, the same results as a plain run."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.engine import open_session
from tintype.engine.device.providers import load_onnxruntime, new_session
from tintype.engine.run.binding import TensorBinding, empty_tensor
from tintype.errors import BuildError, MemoryBudgetError

SHAPE = (2, 4, 32)
INPUTS = {"x": (SHAPE, np.float32), "scale": ((), np.float32)}
OUTPUTS = {"y": (SHAPE, np.float32)}


@pytest.fixture
def bound(bundle, cpu):
    inner = new_session(str(bundle.graph_path("denoiser")), load_onnxruntime().SessionOptions(), cpu)
    with TensorBinding(inner, cpu, INPUTS, OUTPUTS) as bound:
        yield bound


def test_a_bound_run_gives_what_a_plain_run_gives_at_every_step(bound, bundle, cpu, feed):
    bound.write("scale", feed["scale"])
    with open_session(bundle.graph_path("denoiser"), cpu, optimize=True) as session:
        for step in range(3):
            x = feed["x"] + np.float32(step)
            bound.write("x", x)
            bound.run()
            np.testing.assert_allclose(bound.read("y"), session.run({"x": x, "scale": feed["scale"]})["y"], atol=1e-6)


def test_an_address_stays_and_what_was_read_is_the_callers(bound, feed):
    addresses = {name: bound.value(name).data_ptr() for name in ("x", "scale", "y")}
    bound.write("scale", feed["scale"])
    bound.write("x", feed["x"])
    bound.run()
    first = bound.read("y")
    kept = first.copy()
    bound.write("x", feed["x"] * 3)
    bound.run()
    np.testing.assert_array_equal(first, kept)
    assert {name: bound.value(name).data_ptr() for name in addresses} == addresses


def test_an_output_can_be_an_input_where_it_lies(bound, cpu, feed):
    bound.write("scale", feed["scale"])
    bound.write("x", feed["x"])
    bound.run()
    once = bound.read("y")
    bound.adopt("x", bound.value("y"))
    other = empty_tensor(cpu, SHAPE, np.float32)
    other.update_inplace(once)
    bound.adopt("x", other)
    bound.run()
    twice = bound.read("y")
    bound.write("x", once)
    bound.run()
    np.testing.assert_array_equal(bound.read("y"), twice)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("x", np.zeros((2, 4, 31), np.float32)),
        ("x", np.zeros(SHAPE, np.float64)),
        ("scale", np.zeros(1, np.float32)),
        ("nothing", np.zeros(1, np.float32)),
    ],
    ids=["shape", "type", "rank", "name"],
)
def test_what_does_not_fit_is_an_error_and_not_written(bound, name, array):
    with pytest.raises(BuildError, match=name):
        bound.write(name, array)


def test_bytes_are_counted_where_they_lie(bound):
    assert bound.host_bytes == 2 * 4 * int(np.prod(SHAPE)) + 4
    assert bound.device_bytes == 0
    bound.close()
    bound.close()
    assert bound.host_bytes == 0
    with pytest.raises(BuildError, match="closed"):
        bound.run()


def test_no_room_is_an_error_about_memory(bundle, cpu):
    inner = new_session(str(bundle.graph_path("denoiser")), load_onnxruntime().SessionOptions(), cpu)
    with pytest.raises(MemoryBudgetError, match="no room for x"):
        TensorBinding(inner, cpu, {"x": ((2**30, 2**12, 32), np.float32)}, {})
