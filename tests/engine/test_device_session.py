"""Tensors allocated once for each shape: the same results, what is kept is written once, and a bound on how many stay.

Runs on the processor's memory, and so shows the logic; tests/webgpu and tests/cuda run it on devices.
"""

from __future__ import annotations

import numpy as np
import pytest

from tintype.engine.device.providers import TARGETS, load_onnxruntime, new_session
from tintype.engine.run import device_session as device_session_module
from tintype.engine.run.cuda import GraphIds
from tintype.engine.run.device_session import Constant, DeviceSession, stays_on_device
from tintype.engine.run.session_options import NUMPY_TYPES

SCALE = np.array(0.5, np.float32)


@pytest.fixture
def plain(bundle, cpu):
    return new_session(str(bundle.graph_path("denoiser")), load_onnxruntime().SessionOptions(), cpu)


def on_device(plain, cpu, **options):
    return DeviceSession(plain, cpu, types=NUMPY_TYPES, **options)


def x_of(batch, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 4, 32)).astype(np.float32)


def test_every_run_of_every_shape_gives_what_a_plain_run_gives(plain, cpu):
    session = on_device(plain, cpu)
    for batch, seed in ((1, 0), (1, 1), (3, 2), (1, 3), (3, 4)):
        feed = {"x": x_of(batch, seed), "scale": SCALE}
        (result,) = session.run(None, feed)
        np.testing.assert_array_equal(result, plain.run(None, feed)[0])


def test_a_result_is_the_callers(plain, cpu):
    session = on_device(plain, cpu)
    session.run(None, {"x": x_of(1), "scale": SCALE})
    (first,) = session.run(None, {"x": x_of(1), "scale": SCALE})
    copy = first.copy()
    session.run(None, {"x": x_of(1, 5), "scale": SCALE})
    np.testing.assert_array_equal(first, copy)


def test_an_array_that_changed_in_place_is_read_again_and_what_is_kept_is_not(plain, cpu):
    session, x, scale = on_device(plain, cpu), x_of(1), np.array(2.0, np.float32)
    kept = Constant(scale)
    for _ in range(2):  # the first run of a shape only tells what it gives
        session.run(None, {"x": x, "scale": kept})
    before = session.run(None, {"x": x, "scale": kept})[0]
    x *= 3
    scale *= 7  # which nobody should do: it shows that it isn't written again
    expected = plain.run(None, {"x": x, "scale": np.array(2.0, np.float32)})[0]
    np.testing.assert_array_equal(session.run(None, {"x": x, "scale": kept})[0], expected)
    another = session.run(None, {"x": x, "scale": Constant(scale.copy())})[0]
    np.testing.assert_allclose(another, expected * 7, rtol=1e-6)
    assert not np.array_equal(before, expected)


@pytest.fixture
def bound_batches(monkeypatch):
    """The batches whose tensors are allocated, in the order in which they were."""
    batches = []

    class Watched(device_session_module.TensorBinding):
        def __init__(self, inner, target, inputs, outputs):
            super().__init__(inner, target, inputs, outputs)
            self.batch = inputs["x"][0][0]
            batches.append(self.batch)

        def close(self):
            super().close()
            batches.remove(self.batch)

    monkeypatch.setattr(device_session_module, "TensorBinding", Watched)
    return batches


def test_the_shapes_used_longest_ago_are_freed_but_never_captured_ones(plain, cpu, bound_batches):
    session = on_device(plain, cpu, most_bound=2)
    sizes = []
    for batch in (1, 2, 3, 1):
        for _ in range(2):
            session.run(None, {"x": x_of(batch), "scale": SCALE})
        sizes.append(list(bound_batches))
    assert sizes == [[1], [1, 2], [2, 3], [3, 1]]
    bound_batches.clear()
    ids = GraphIds(most=1)
    session = on_device(plain, cpu, most_bound=1, graph_ids=ids)
    for batch in (1, 2, 3):
        for _ in range(2):
            feed = {"x": x_of(batch), "scale": SCALE}
            np.testing.assert_array_equal(session.run(None, feed)[0], plain.run(None, feed)[0])
    assert bound_batches == [1, 3]
    assert ids.captured == 1


def test_only_cuda_sessions_keep_their_tensors_themselves():
    assert [name for name, target in TARGETS.items() if stays_on_device(target)] == ["cuda"]
