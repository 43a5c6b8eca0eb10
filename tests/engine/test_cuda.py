"""What a CUDA session is told, and which shapes are captured: values, checked without a GPU."""

from __future__ import annotations

import json

import pytest

from tintype.engine.build.lower import Job
from tintype.engine.build.options import BuildOptions
from tintype.engine.device.providers import TARGETS
from tintype.engine.run.cuda import MOST_GRAPHS, NO_GRAPH, SMALLEST_LIMIT, GraphIds, for_session, wants_capture

CUDA, CPU = TARGETS["cuda"], TARGETS["cpu"]


def test_no_algorithm_is_timed_at_a_new_shape_and_the_arena_grows_by_need():
    options = dict(for_session(CUDA).options)
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in options
    assert "enable_cuda_graph" not in options


@pytest.mark.parametrize(("exactness", "told"), [("exact", "0"), ("balanced", "1")])
def test_tf32_is_said_and_off_where_exactness_is_asked(exactness, told):
    assert dict(for_session(CUDA, exactness=exactness).options)["use_tf32"] == told


def test_a_plans_bytes_bound_the_arena_and_its_scratch_memory():
    options = dict(for_session(CUDA, device_bytes=3 * 2**30).options)
    assert options["gpu_mem_limit"] == str(3 * 2**30)
    assert options["cudnn_conv_use_max_workspace"] == "0"
    with pytest.raises(ValueError, match="the least"):
        for_session(CUDA, device_bytes=SMALLEST_LIMIT - 1)


def test_every_value_is_text_as_onnxruntime_wants_it():
    told = for_session(CUDA, device_bytes=2**30, captures=True)
    assert dict(told.options)["enable_cuda_graph"] == "1"
    assert all(isinstance(value, str) for pair in told.options for value in pair)
    assert (told.name, told.provider) == (CUDA.name, CUDA.provider)


def test_another_target_is_left_as_it_is():
    assert for_session(CPU, exactness="exact", device_bytes=1, captures=True) is CPU


def test_builds_of_one_shape_are_captured_unless_told_otherwise(monkeypatch):
    assert wants_capture(CUDA, pinned=True)
    assert not wants_capture(CUDA, pinned=False)
    assert not wants_capture(CPU, pinned=True)
    monkeypatch.setenv("TINTYPE_CUDA_GRAPHS", "0")
    assert not wants_capture(CUDA, pinned=True)


def test_a_shape_keeps_its_graph_and_no_more_than_the_bound_are_captured():
    ids = GraphIds()
    first = [ids.id_of(number) for number in range(MOST_GRAPHS)]
    assert len(set(first)) == MOST_GRAPHS
    assert NO_GRAPH not in first
    assert ids.id_of("another") == NO_GRAPH
    assert [ids.id_of(number) for number in range(MOST_GRAPHS)] == first
    assert ids.captured == MOST_GRAPHS
    assert ids.holds(0)
    assert not ids.holds("another")


@pytest.mark.parametrize(
    ("target", "exactness", "half"),
    [("cuda", "balanced", True), ("cuda", "exact", False), ("cpu", "balanced", False), ("openvino", "balanced", False)],
)
def test_float16_is_for_balanced_builds_on_cuda(tmp_path, target, exactness, half):
    options = BuildOptions(exactness=exactness)
    job = Job(source=tmp_path, folder=tmp_path, target=TARGETS[target], options=options, largest={"a": 2e5})
    assert job.computes_half == half
    assert Job.from_dict(json.loads(json.dumps(job.as_dict()))) == job
