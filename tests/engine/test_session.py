"""Sessions: the same bytes for the same inputs, arrays that stay the caller's, and errors that say what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.engine import open_session, run_graph
from tintype.engine.build import lower_into
from tintype.engine.providers import TARGETS
from tintype.errors import BuildError


@pytest.fixture(scope="module")
def build(tmp_path_factory, graph_writer):
    folder = tmp_path_factory.mktemp("session")
    graph_writer(folder / "graph.onnx")
    (folder / "build").mkdir()
    lower_into(folder / "graph.onnx", folder / "build", TARGETS["cpu"])
    return folder / "build"


@pytest.fixture
def session(build, cpu):
    with open_session(build, cpu, threads=2) as opened:
        yield opened


def test_the_same_inputs_give_the_same_bytes(session, feed):
    first = session.run(feed)["y"].tobytes()
    assert all(session.run(feed)["y"].tobytes() == first for _ in range(5))


def test_a_later_run_does_not_write_into_an_earlier_result(session, feed):
    first = session.run(feed)["y"]
    kept = first.copy()
    session.run(feed | {"x": feed["x"] + 1.0})
    np.testing.assert_array_equal(first, kept)


def test_any_batch_and_memory_order(session, feed):
    wide = np.repeat(feed["x"], 2, axis=0)
    once = session.run(feed | {"x": wide})["y"]
    fortran = session.run(feed | {"x": np.asfortranarray(wide)})["y"]
    np.testing.assert_array_equal(once, fortran)
    np.testing.assert_allclose(once[::2], session.run(feed)["y"], atol=1e-6)


def test_names_types_and_placement_are_told(session):
    assert session.input_names == ("x", "scale")
    assert session.output_names == ("y",)
    assert session.input_shapes == {"x": ("batch", 4, 32), "scale": ()}
    assert session.input_types["x"] is np.float32
    assert session.threads == 2
    assert list(session.placement.nodes) == ["CPUExecutionProvider"]
    assert session.placement.count("GroupNormalization") == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": np.zeros((1, 4, 32))}, "float64, not float32"),
        ({"x": np.zeros((1, 5, 32), np.float32)}, "shape (1, 5, 32)"),
        ({"x": np.zeros((4, 32), np.float32)}, "shape (4, 32)"),
        ({"scale": np.zeros(1, np.float32)}, "shape (1,)"),
        ({"z": np.zeros(1, np.float32)}, "no input 'z'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(session, feed, change, told):
    with pytest.raises(BuildError) as caught:
        session.run(feed | change)
    assert told in caught.value.message


def test_a_missing_input_is_named(session, feed):
    with pytest.raises(BuildError, match="needs scale"):
        session.run({"x": feed["x"]})


def test_a_closed_session_says_so(session, feed):
    session.close()
    session.close()
    with pytest.raises(BuildError, match="closed"):
        session.run(feed)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_is_refused(bundle, cpu, threads):
    with pytest.raises(BuildError, match=f"threads is {threads}"):
        open_session(bundle.graph_path("denoiser"), cpu, threads=threads)


def test_a_file_that_is_no_graph_is_refused(tmp_path, cpu):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x08 not a graph")
    with pytest.raises(BuildError, match="cannot open"):
        open_session(broken, cpu)
    with pytest.raises(BuildError, match="no graph at"):
        open_session(tmp_path / "absent.onnx", cpu)


def test_the_lowered_graph_agrees_with_the_canonical_one(bundle, feed):
    path = bundle.graph_path("denoiser")
    lowered, plain = (run_graph(path, feed, lowered=lowered)["y"] for lowered in (True, False))
    np.testing.assert_allclose(lowered, plain, atol=1e-5)
