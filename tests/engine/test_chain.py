"""A build in segments: the whole graph's answers, one part in memory at a time, and rebuilt when a part is damaged."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import onnx_ir as ir
import onnxruntime
import psutil
import pytest

import tintype.engine.run.session
from tintype.bundle import open_bundle
from tintype.engine import BuildOptions, ensure_build, open_role, open_session, resolve_provider
from tintype.engine.build import lower, probe, spill
from tintype.engine.build.builds import lower_into
from tintype.engine.build.probe import known_costs, measured_costs, random_inputs
from tintype.engine.device.native import register
from tintype.engine.device.providers import TARGETS
from tintype.engine.run.chain import PARTS_NAME, Chain, prefetch, read_chains
from tintype.engine.run.pages import can_give_back
from tintype.engine.run.placement import Placement
from tintype.errors import BuildError, ProviderError

CELLS = {"batch": 2, "height": 16, "width": 16, "sequence": 77}
SEGMENT = 300_000
LARGE_SEGMENT = 600_000


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def cpu():
    return resolve_provider("cpu")


def options(segment_bytes=SEGMENT, exactness="exact"):
    return BuildOptions.for_shape(CELLS, exactness=exactness, segment_bytes=segment_bytes, threads=1)


def psnr_db(reference, result):
    error = float(np.mean((result.astype(np.float64) - reference) ** 2))
    return 200.0 if error == 0 else 10 * np.log10(float(np.ptp(reference)) ** 2 / error)


@pytest.mark.parametrize("segment_bytes", [60_000, SEGMENT, LARGE_SEGMENT, 10**9])
def test_segments_give_the_whole_graphs_answer_and_the_same_bytes_twice(bundle, cpu, segment_bytes):
    uncut = BuildOptions.for_shape(CELLS, exactness="exact", threads=1)
    with open_role(bundle, "denoiser", cpu, options=uncut) as whole:
        feed = random_inputs(whole)
        expected = whole.run(feed)["out_sample"]
    with open_role(bundle, "denoiser", cpu, options=options(segment_bytes)) as session:
        assert set(session.input_names) == set(feed)
        held = session.hold({"encoder_hidden_states": feed.pop("encoder_hidden_states")})
        first, second = (held.run(feed)["out_sample"] for _ in range(2))
        assert list(session.placement.nodes) == ["CPUExecutionProvider"]
    np.testing.assert_array_equal(first, second)
    assert psnr_db(expected, first) >= 100.0


def test_weights_that_kernels_made_and_lie_in_files_are_no_inputs_of_their_parts(bundle, cpu, tmp_path, monkeypatch):
    """As in a real UNet, whose transformed filters are large: here every weight that a kernel makes goes to a file."""
    monkeypatch.setattr(spill, "SPILLED_BYTES", 1)
    lower.make_build(lower.Job(source=bundle.graph_path("denoiser"), folder=tmp_path, target=cpu, options=options()))
    assert any((tmp_path / "weights").iterdir())
    with open_role(bundle, "denoiser", cpu, options=options()) as session:
        feed = random_inputs(session)
        expected = session.run(feed)["out_sample"]
    with open_session(tmp_path, cpu, threads=1, mapped=True) as session:
        assert psnr_db(expected, session.run(feed)["out_sample"]) >= 100.0


def test_no_part_has_more_weights_than_it_may_unless_it_is_one_layer(bundle, cpu):
    folder = ensure_build(bundle, "denoiser", cpu, options=options())
    chains = read_chains(folder)
    parts = chains["model.onnx"].parts
    assert len(parts) >= 4
    assert all((folder / part.file).is_file() for part in parts)
    assert all((folder / name).is_file() for part in parts for name in part.weights)


def test_keys_and_values_are_kept_only_where_they_are_small_beside_a_segment(bundle, cpu):
    """They are 0.2 MB here."""
    small, large = (ensure_build(bundle, "denoiser", cpu, options=options(size)) for size in (SEGMENT, LARGE_SEGMENT))
    assert set(read_chains(small)) == {"model.onnx"}
    assert set(read_chains(large)) == {"model.onnx", "once.onnx"}


def test_a_damaged_part_is_built_again(bundle, cpu, no_builds):
    folder = ensure_build(bundle, "denoiser", cpu, options=options())
    part = read_chains(folder)["model.onnx"].parts[1]
    (folder / part.file).write_bytes(b"not a graph")
    again = ensure_build(bundle, "denoiser", cpu, options=options())
    assert again == folder
    assert (folder / part.file).read_bytes() != b"not a graph"
    (folder / PARTS_NAME).unlink()
    ensure_build(bundle, "denoiser", cpu, options=options())
    assert (folder / PARTS_NAME).is_file()


def test_another_segment_size_is_another_build(bundle, cpu):
    assert ensure_build(bundle, "denoiser", cpu, options=options(SEGMENT)) != ensure_build(
        bundle, "denoiser", cpu, options=options(2 * SEGMENT)
    )
    assert options(2**28).plan == "exact mapped segments=256MiB threads=1"


def test_a_missing_input_is_told_and_a_closed_session_too(bundle, cpu):
    session = open_role(bundle, "denoiser", cpu, options=options())
    feed = random_inputs(session)
    held = session.hold({"encoder_hidden_states": feed.pop("encoder_hidden_states")})
    feed.pop("timestep")
    with pytest.raises(BuildError, match="timestep"):
        held.run(feed)
    session.close()
    with pytest.raises(BuildError, match="closed"):
        session.run(random_inputs(session))


@pytest.mark.parametrize("name", ["cuda", "webgpu", "directml", "openvino"])
def test_parts_for_a_device_hand_on_nothing_but_feature_maps(bundle, tmp_path, name):
    """Sizes are numbers in each part: a device need not take them as tensors."""
    lower_into(bundle.graph_path("denoiser"), tmp_path, TARGETS[name], options=options())
    for chain in read_chains(tmp_path).values():
        assert len(chain.parts) > 3
        for part in chain.parts:
            graph = ir.load(tmp_path / part.file).graph
            assert {value.dtype for value in graph.outputs} <= {ir.DataType.FLOAT, ir.DataType.FLOAT16}
            assert not any(node.op_type in ("Shape", "Size") for node in graph)


def test_every_part_is_asked_where_its_nodes_run(bundle, cpu, monkeypatch):
    elsewhere = Placement.from_assignments([("CPUExecutionProvider", "Conv"), ("Gpu", "MatMul")])
    monkeypatch.setattr(tintype.engine.run.session.Placement, "of", lambda *sessions: elsewhere)
    with (
        open_role(bundle, "denoiser", cpu, options=options()) as session,
        pytest.raises(ProviderError, match=r"-000\.onnx.* 1 MatMul on Gpu"),
    ):
        session.run(random_inputs(session))


def test_only_one_part_is_open_at_a_time(bundle, cpu):
    folder = ensure_build(bundle, "denoiser", cpu, options=options(LARGE_SEGMENT))
    opened, most = [], 0
    with_own = onnxruntime.SessionOptions()
    register(with_own)

    class Part:
        def __init__(self, path):
            self.inner = onnxruntime.InferenceSession(str(path), with_own, providers=["CPUExecutionProvider"])
            opened.append(path.name)

        def __del__(self):
            opened.pop()

        def run(self, *arguments):
            nonlocal most
            most = max(most, len(opened))
            return self.inner.run(*arguments)

        def get_provider_graph_assignment_info(self):
            return []

    chain = Chain(folder, read_chains(folder)["once.onnx"], Part)
    feed = {port.name: np.zeros(port.shape, np.float32) for port in chain.get_inputs()}
    assert len(chain.run(None, feed)) == len(chain.get_outputs())
    assert most == 1
    assert opened == []


@pytest.mark.skipif(not can_give_back(), reason="parts stay open only where the system takes pages back")
def test_parts_that_stay_open_give_the_same_bytes(bundle, cpu):
    anew, stays = options(), dataclasses.replace(options(), standing=True)
    assert ensure_build(bundle, "denoiser", cpu, options=stays) == ensure_build(bundle, "denoiser", cpu, options=anew)
    with open_role(bundle, "denoiser", cpu, options=anew) as session:
        feed = random_inputs(session)
        expected = session.run(feed)["out_sample"]
    with open_role(bundle, "denoiser", cpu, options=stays) as session:
        for _ in range(3):
            np.testing.assert_array_equal(session.run(feed)["out_sample"], expected)


def run_twice(folder):
    """A chain whose parts may stay open, after two runs: what it consists of, the files that it opened, the chain."""
    opened = []

    def open_part(path):
        opened.append(path.name)
        return onnxruntime.InferenceSession(str(path), mapped_options(), providers=["CPUExecutionProvider"])

    facts = read_chains(folder)["model.onnx"]
    chain = Chain(folder, facts, open_part, standing=True)
    feed = {port.name: np.ones(port.shape, np.float32) for port in chain.get_inputs()}
    chain.run(None, feed)
    chain.run(None, feed)
    return facts, opened, chain


@pytest.mark.skipif(not can_give_back(), reason="parts stay open only where the system takes pages back")
def test_weights_of_parts_that_stay_open_leave_memory_after_its_run(bundle, cpu):
    folder = ensure_build(bundle, "denoiser", cpu, options=options())
    facts, opened, chain = run_twice(folder)
    assert chain.placement.nodes  # and it is still there, with its parts open
    assert sorted(opened) == sorted(part.file for part in facts.parts)  # each once
    in_memory = resident_of({folder / name for part in facts.parts for name in part.weights})
    assert len(in_memory) >= len(facts.parts)
    assert sum(in_memory) == 0


def test_parts_whose_weights_are_not_found_do_not_stay_open(bundle, cpu, monkeypatch):
    monkeypatch.setattr("tintype.engine.run.chain.mapped_spans", lambda files: [])
    folder = ensure_build(bundle, "denoiser", cpu, options=options())
    facts, opened, _ = run_twice(folder)
    with_weights = [part.file for part in facts.parts if part.weights]
    assert with_weights
    assert all(opened.count(file) == 2 for file in with_weights)


def mapped_options():
    found = onnxruntime.SessionOptions()
    found.add_session_config_entry("session.disable_prepacking", "1")
    found.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    register(found)
    return found


def resident_of(files):
    """Bytes of files that are in this process's memory, by mapping."""
    names = {str(path.resolve()) for path in files}
    return [entry.rss for entry in psutil.Process().memory_maps(grouped=False) if entry.path in names]


def test_reading_ahead_takes_any_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 5000)
    prefetch([path])
    with pytest.raises(FileNotFoundError):
        prefetch([tmp_path / "absent"])


def test_costs_are_measured_once_and_kept_with_the_build(bundle, cpu, no_builds):
    folder = ensure_build(bundle, "denoiser", cpu, options=options())
    assert known_costs(folder, options(), 1) is None
    costs = measured_costs(folder, cpu, options(), 1)
    assert known_costs(folder, options(), 1) == costs
    assert costs.measured
    assert costs.peak_bytes >= costs.resident_bytes >= 0
    assert costs.first_peak_bytes is not None
    assert costs.peak_bytes >= costs.first_peak_bytes > 0
    assert costs.call_seconds > 0
    (folder / "costs.json").write_text("{", encoding="utf-8")
    assert known_costs(folder, options(), 1) is None
    assert ensure_build(bundle, "denoiser", cpu, options=options()) == folder  # it is no part of the build


def test_costs_timed_beside_other_programs_are_measured_again_once_it_is_calm(bundle, cpu, no_builds, monkeypatch):
    folder = ensure_build(bundle, "denoiser", cpu, options=options())
    measured_costs(folder, cpu, options(), 1)
    stored = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
    (row,) = (row for key, row in stored["costs"].items() if "standing" not in key)
    assert row["disturbed"] in (True, False)
    row |= {"disturbed": True, "call_seconds": 1000.0}
    (folder / "costs.json").write_text(json.dumps(stored), encoding="utf-8")
    monkeypatch.setattr(probe, "is_calm", lambda: False)
    assert known_costs(folder, options(), 1).call_seconds == 1000.0
    assert measured_costs(folder, cpu, options(), 1).call_seconds == 1000.0
    monkeypatch.setattr(probe, "is_calm", lambda: True)
    assert known_costs(folder, options(), 1) is None
    assert measured_costs(folder, cpu, options(), 1).call_seconds != 1000.0


def test_a_child_ends_when_its_parent_is_killed():
    """A process that would run for a minute, started by one that is killed at once."""
    child = (
        "import os, time; from tintype.engine.build.child import end_with_parent; end_with_parent(); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        watched = psutil.Process(int(process.stdout.readline()))
        process.kill()
    ends = time.monotonic() + 30
    while _runs(watched) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not _runs(watched)


def _runs(process):
    """Whether it still does; what has ended stays as a zombie until somebody asks for its exit code."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
