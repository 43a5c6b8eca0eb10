"""Sessions: the same bytes for the same inputs, arrays that stay the caller's, and errors that say what is wrong."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tintype.engine import BuildOptions, open_session, run_graph
from tintype.engine.build.builds import lower_into
from tintype.engine.device.providers import TARGETS
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


@pytest.mark.parametrize("bound", [False, True])
def test_held_inputs_are_kept_and_other_shapes_are_taken(session, feed, bound):
    held = session.hold({"scale": feed["scale"]}, bound=bound)
    for step, batch in enumerate((1, 1, 3, 1)):
        x = np.repeat(feed["x"], batch, axis=0) + np.float32(step)
        result = held.run({"x": x})["y"]
        np.testing.assert_array_equal(result, session.run({"x": x, "scale": feed["scale"]})["y"])
        kept = result.copy()
        held.run({"x": x + 1})
        np.testing.assert_array_equal(result, kept)


@pytest.mark.parametrize("bound", [False, True])
def test_held_inputs_are_checked_and_gone_with_their_session(build, cpu, feed, bound):
    with open_session(build, cpu) as session:
        held = session.hold({"scale": feed["scale"]}, bound=bound)
        with pytest.raises(BuildError, match="needs x"):
            held.run({})
        with pytest.raises(BuildError, match="float64"):
            held.run({"x": feed["x"].astype(np.float64)})
        held.run({"x": feed["x"]})
        inner = weakref.ref(session.inner)
    assert inner() is None
    with pytest.raises(BuildError, match="closed"):
        held.run({"x": feed["x"]})


def test_a_part_that_runs_once_hands_its_tensors_on(tmp_path, cpu, random_words):
    """What depends on the words alone is given to the steps where it lies, in tensors too."""
    model, feed = random_words
    onnx.save(model, tmp_path / "words.onnx")
    (tmp_path / "build").mkdir()
    options = BuildOptions.for_shape({"batch": 2})
    lower_into(tmp_path / "words.onnx", tmp_path / "build", cpu, options=options)
    assert (tmp_path / "build/once.onnx").is_file()
    with open_session(tmp_path / "build", cpu) as session:
        words = {"encoder_hidden_states": feed["encoder_hidden_states"]}
        plain, bound = (session.hold(words, bound=bound) for bound in (False, True))
        for step in range(3):
            sample = {"sample": feed["sample"] * np.float32(step)}
            np.testing.assert_array_equal(bound.run(sample)["y"], plain.run(sample)["y"])


@pytest.fixture
def random_words():
    """y = relu(sample) @ relu(words @ weight), as a denoiser reads its keys."""
    random = np.random.default_rng(3)
    nodes = [
        helper.make_node("MatMul", ["encoder_hidden_states", "weight"], ["keys"]),
        helper.make_node("Relu", ["keys"], ["read"]),
        helper.make_node("Relu", ["sample"], ["x"]),
        helper.make_node("MatMul", ["x", "read"], ["y"]),
    ]
    shapes = {"encoder_hidden_states": ["batch", 7, 8], "sample": ["batch", 5, 7]}
    told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inner = {"keys": ["batch", 7, 9], "read": ["batch", 7, 9], "x": ["batch", 5, 7]}
    graph = helper.make_graph(
        nodes,
        "words",
        told,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, 9])],
        [numpy_helper.from_array(random.standard_normal((8, 9)).astype(np.float32), "weight")],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inner.items()],
    )
    feed = {
        "encoder_hidden_states": random.standard_normal((2, 7, 8)).astype(np.float32),
        "sample": random.standard_normal((2, 5, 7)).astype(np.float32),
    }
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), feed


def test_one_run_at_a_time(session, feed):
    """Two threads' runs never overlap: DirectML allows no second run of a session."""
    spans = []

    def run():
        def timed():
            spans.append(["in", threading.get_ident()])
            time.sleep(0.01)
            spans.append(["out", threading.get_ident()])

        for _ in range(3):
            session.execute(timed)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spans) == 18
    for entered, left in zip(spans[::2], spans[1::2], strict=True):
        assert (entered[0], left[0]) == ("in", "out")
        assert entered[1] == left[1]
