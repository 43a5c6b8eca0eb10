"""The comparison at the size of SD 1.5, on a tiny model: turns, tables, bars and forms are the same."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tintype.bench.figures import share_lines, table_lines
from tintype.bench.job import Job, with_steps
from tintype.bench.make_sdxl import make_parts
from tintype.bench.measurement import BARS, judge
from tintype.bench.options import Size
from tintype.bench.peers import graph_inputs, loop_figures
from tintype.bench.runner import Command, Peer, Schedule, Turn, measure
from tintype.bench.sd15 import (
    GRAPH_PEERS,
    graph_contestants,
    measure_graph,
    picture_comparison,
    picture_contestants,
    sd15,
)
from tintype.engine import cache_entries

pytestmark = pytest.mark.slow

MIB = 2**20


@pytest.fixture
def folder(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """What `make` leaves, as far as it needs nothing but Tintype; both bundles are the fp32 one."""
    for name, target in (("checkpoint", tiny_checkpoint), ("fp32", tiny_bundle), ("int8", tiny_bundle)):
        (tmp_path / name).symlink_to(target, target_is_directory=True)
    return tmp_path


def test_inputs_are_the_same_for_every_runtime_and_in_the_order_of_the_graph() -> None:
    job = Job(role="denoiser", height=12, width=20)
    inputs, again = graph_inputs(job), graph_inputs(job)
    assert {name: array.shape for name, array in inputs.items()} == {
        "sample": (1, 4, 3, 5),
        "timestep": (1,),
        "encoder_hidden_states": (1, 77, 128),
    }
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, again[name])


def test_turns_are_interleaved_and_every_figure_becomes_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    @contextlib.contextmanager
    def fake(kind: str, job: Any, *_: Any) -> Iterator[Turn]:
        def ask(changes: Any) -> dict[str, Any]:
            order.append(f"{kind} {changes.get('steps')}")
            return {"seconds": 2.0, "anonymous_bytes": 20, "mine": 3.0, "absent": None}

        order.append(f"open {kind}")
        turn = Turn(ask, {"load_seconds": 0.5, "opened_anonymous_bytes": 10})
        yield turn
        turn.facts["peak_rss_bytes"] = 30
        order.append(f"end {kind}")

    monkeypatch.setattr("tintype.bench.runner.worker", fake)
    job = Job()
    peers = {"a": Peer("a", job, warm_ups=[{"steps": 1}] * 2), "b": Peer("b", job, warm_ups=(), opens_cold=True)}
    (whole,) = measure({"c": Peer("c", job)}, Schedule(rounds=1))["c"].turns
    assert (whole["first_seconds"], whole["load_seconds"]) == (2.5, 0.5)
    order.clear()
    measured = measure(peers, Schedule(rounds=2))
    assert not any("first_seconds" in turn for turn in measured["a"].turns)
    one_round = ["open a", "a 1", "a 1", "a None", "end a", "open b", "b None", "end b"]
    assert order == ["open b", "b None", "end b", *one_round, *one_round]
    figures = measured["b"].figures()
    assert figures["cold_seconds"] == 2.5
    assert figures["mine"] == figures["seconds"] | {"median": 3.0, "smallest": 3.0, "largest": 3.0}
    assert (figures["opened_anonymous_bytes"], figures["anonymous_bytes"], figures["peak_rss_bytes"]) == (10, 20, 30)
    assert "absent" not in figures
    assert "cold_seconds" not in measured["a"].figures()
    order.clear()
    again = {"a": Peer("a", job, warm_ups=(), requests=({}, {"steps": 2})), "b": Peer("b", job, warm_ups=())}
    measure(again, Schedule(rounds=2, resident=True))
    one_round = ["a None", "a 2", "b None"]
    assert order == ["open a", "open b", *one_round, *one_round, "end b", "end a"]


def test_a_command_is_run_anew_for_each_answer(tmp_path: Path) -> None:
    script = f"open({str(tmp_path / 'out')!r}, 'w').close(); import os; print(len(os.listdir({str(tmp_path)!r})))"
    (tmp_path / "anew").mkdir()
    command = [sys.executable, "-c", script]
    read = {"output": tmp_path / "out", "read": lambda run: {"files": int(run.stdout)}}
    made = measure({"x": Command(command, anew=tmp_path / "anew", **read)}, Schedule(rounds=2))["x"]
    assert [answer["files"] for answer in made.answers] == [1, 1]
    assert made.figures()["seconds"]["runs"] == 2
    assert made.figures().get("peak_rss_bytes", 2 * MIB) > MIB
    with pytest.raises(RuntimeError, match="did not write other"):
        measure({"x": Command(command, output=tmp_path / "other")}, Schedule(rounds=1))


def test_a_turn_waits_for_the_lock_and_gives_it_back(tmp_path: Path) -> None:
    import filelock

    lock = tmp_path / "busy.lock"
    job = Job(products=((8, 8, 8),), threads=1)
    measured = measure({"rates": Peer("rates", job)}, Schedule(rounds=1, lock=lock))
    assert len(measured["rates"].answers) == 1
    with filelock.FileLock(lock, timeout=0):
        pass


@pytest.mark.bench
def test_graphs_are_compared_with_the_canonical_one_on_the_same_inputs(folder: Path, tmp_path: Path) -> None:
    told = {"peers": ("onnxruntime-f32",), "threads": 1}
    report = {
        f"{graph} 64x96": measure_graph(
            graph, graph_contestants(folder, graph, Size(64, 96), **told), Schedule(rounds=1), tmp_path
        )
        for graph in ("unet", "vae")
    }
    assert set(report["unet 64x96"]["peers"]) - set(report["vae 64x96"]["peers"]) == {"tintype-mapped"}
    assert report["unet 64x96"]["peers"]["tintype-mapped"]["psnr_db"]["smallest"] > 70
    plans = {entry.identity.plan for entry in cache_entries() if entry.identity is not None}
    assert {"exact threads=1 timed", "exact mapped threads=1 timed", "balanced threads=1 timed"} <= plans
    for part in report.values():
        assert set(part["peers"]) >= {"onnxruntime-f32", "tintype-exact", "tintype-balanced"}
        operations = sum(part["gigaoperations"].values())
        assert "GB/s" in next(share_lines(part["peers"]))
        for figures in part["peers"].values():
            assert figures["gflops"] == pytest.approx(operations / figures["seconds"]["median"], rel=0.2, abs=0.06)
            (share,) = figures["shares"].values()
            assert share["of_products"] == pytest.approx(share["gflops"] / share["products_gflops"], rel=0.2, abs=0.001)
        exact = part["peers"]["tintype-exact"]
        assert exact["psnr_db"]["smallest"] > 70
        assert exact["seconds"]["runs"] == 2
        assert exact["peak_rss_bytes"] > 20 * MIB
        assert exact["anonymous_bytes"] > 0
        assert exact["load_seconds"]["runs"] == 1
        assert "psnr_db" not in part["peers"]["onnxruntime-f32"]
        assert part["rates"]["copy GB/s"]["median"] > 0
        assert set(part["tried"]) == {name for name in part["peers"] if name.startswith("tintype")}
        exact_tried = part["tried"]["tintype-exact"]
        assert all(row["chosen"] in row["ways"] and "as_is" in row["ways"] for row in exact_tried["layers"])
        assert {"winograd2", "as_is"} <= {name for row in exact_tried["layers"] for name in row["ways"]}
        of_layers = sum(row["milliseconds_together"] for row in exact_tried["layers"]) / 1e3
        assert exact_tried["limits"]["layers_as_chosen_seconds"] == pytest.approx(of_layers, abs=1e-4)
        assert exact_tried["limits"]["bytes_moved"] > 10_000
        assert exact_tried["limits"]["Conv at the median product rate, seconds"] >= 0
        assert part["bars"][0]["what"].startswith("tintype-exact, psnr_db")
        assert part["bars"][0]["met"]
    assert sum(len(list(table_lines(part["peers"]))) for part in report.values()) == 7
    json.dumps(report, allow_nan=False)


def test_the_bars_of_graphs_are_those_of_their_peers() -> None:
    def figures(seconds: float, **more: Any) -> dict[str, Any]:
        return {"seconds": {"median": seconds}, "load_seconds": {"median": 0.5}, "opened_anonymous_bytes": MIB, **more}

    table = {
        "openvino-f32": figures(10.0),
        "openvino-int8": figures(6.0),
        "onnxruntime-f32": figures(15.0),
        "tintype-exact": figures(6.4, psnr_db={"smallest": 90.0}),
        "tintype-mapped": figures(8.0, psnr_db={"smallest": 69.0}),
        "tintype-balanced": figures(5.1, psnr_db={"smallest": 40.0}),
    }
    met = {bar["what"]: bar["met"] for bar in judge(BARS["sd15 unet"], table)}
    assert met == {
        "tintype-exact over openvino-f32, seconds": True,
        "tintype-balanced over openvino-f32, seconds": False,
        "tintype-balanced over openvino-int8, seconds": True,
        "tintype-exact, psnr_db": True,
        "tintype-mapped, psnr_db": False,
        "tintype-mapped, load_seconds": True,
        "tintype-mapped, opened_anonymous_bytes": True,
    }
    assert not judge(BARS["sd15 vae"], table)[0]["met"]  # 0.64 of the 0.50 that a decode may take
    assert judge(BARS["sd15 unet"], {"openvino-f32": figures(1.0)}) == []


def test_a_graphs_jobs_name_the_form_of_each_runtime(tmp_path: Path) -> None:
    peers = graph_contestants(tmp_path, "unet", Size(512, 768))
    assert list(peers) == [*GRAPH_PEERS, "tintype-exact", "tintype-balanced", "tintype-mapped"]
    assert [name for name, peer in peers.items() if peer.job.mapped] == ["tintype-mapped"]
    assert "tintype-mapped" not in graph_contestants(tmp_path, "vae", Size(512, 512))
    assert {len(peer.warm_ups) for peer in peers.values()} == {2}
    balanced = peers["tintype-balanced"].job
    assert balanced.model == str(tmp_path / "int8")
    assert (balanced.height, balanced.width, balanced.exactness, balanced.timed) == (768, 512, "balanced", True)
    assert peers["tintype-balanced"].opens_cold
    assert not peers["openvino-f32"].opens_cold


def test_fewer_steps_are_projected_and_said_to_be() -> None:
    told = {"seconds": 50.0, "denoise_seconds": 40.0}
    figures = with_steps(told, Job(num_inference_steps=2, projected_steps=20))
    assert figures["seconds_a_step"] == 20.0
    assert figures["seconds"] == 10.0 + 20 * 20.0
    assert figures["measured_seconds"] == 50.0
    assert figures["projected_from_steps"] == 2
    assert "projected_from_steps" not in with_steps(told, Job(num_inference_steps=2, projected_steps=2))


def test_a_peers_fewer_steps_are_its_own(tmp_path: Path) -> None:
    def steps(**fewer: int) -> dict[str, int]:
        peers = picture_contestants(tmp_path, **fewer)
        assert {peer.job.projected_steps for peer in peers.values()} == {20}
        return {name: peer.job.num_inference_steps for name, peer in peers.items()}

    assert set(steps().values()) == {20}
    assert set(steps(measured_steps=4).values()) == {4}
    assert steps(measured_steps=4, sdcpp_steps=2) == {**steps(measured_steps=4), "stable-diffusion.cpp": 2}


def test_a_loop_is_told_from_the_ends_of_its_steps() -> None:
    assert loop_figures([(0, 10.0), (1, 13.0), (2, 16.0)], 2) == {"denoise_seconds": 6.0}
    assert loop_figures([(1, 13.0), (2, 16.0)], 2) == {"denoise_seconds": 6.0}
    assert loop_figures([(2, 16.0)], 2) == {"denoise_seconds": None}


@pytest.mark.bench
def test_a_picture_has_its_loop_and_steps_told_apart(folder: Path, tmp_path: Path) -> None:
    peers = picture_contestants(folder, size=Size(64, 64), num_inference_steps=5, peers=(), threads=1)
    part = picture_comparison(peers).run(Schedule(rounds=1), tmp_path)
    table = part["peers"]
    plans = {entry.identity.plan for entry in cache_entries() if entry.identity is not None}
    assert {"exact threads=1 timed", "balanced threads=1 timed"} <= plans
    for figures in table.values():
        assert figures["seconds"]["median"] > figures["denoise_seconds"]["median"] > 0
        assert 0 < figures["outside_share"]["median"] < 1
        assert figures["cold_seconds"] > 0
        assert set(figures["shares"]) == {"encode", "denoise", "decode"}
        assert all(share["of_products"] > 0 and share["of_copy"] > 0 for share in figures["shares"].values())
    assert table["tintype-balanced"]["shares"]["denoise"]["precision"] == "int8"
    assert part["rates"]["copy GB/s"]["median"] > 0
    assert {bar["what"] for bar in part["bars"]} == {
        "tintype-exact, share of the loop outside the graph",
        "tintype-balanced, share of the loop outside the graph",
    }


def test_a_part_that_is_there_is_left_as_it_is(folder: Path) -> None:
    assert make_parts(folder, ("checkpoint", "fp32", "int8"), 1.0, "sd15") == {}


@pytest.mark.reference
@pytest.mark.bench
def test_openvino_draws_the_same_graphs(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert set(make_parts(folder, ("openvino-f32",), 1.0, "sd15")) == {"openvino-f32"}
    told = {"peers": ("openvino-f32", "onnxruntime-f32"), "exactness": ("exact",), "threads": 1}
    for graph in ("unet", "vae"):
        contestants = graph_contestants(folder, graph, Size(64, 64), calls=1, **told)
        part = measure_graph(graph, contestants, Schedule(rounds=1), tmp_path)
        assert part["peers"]["openvino-f32"]["psnr_db"]["smallest"] > 80
        assert part["bars"][0]["what"] == "tintype-exact over openvino-f32, seconds"
    arguments = ["picture", str(folder), "--peers", "openvino-f32", "--size", "64x64", "--num-inference-steps", "2"]
    done = CliRunner().invoke(sd15, [*arguments, "--repeats", "1", "--threads", "1", "--results", str(folder / "out")])
    assert done.exit_code == 0, done.output
    assert "seconds over openvino-f32 1.00" in done.output
    (path,) = (folder / "out").iterdir()
    report = json.loads(path.read_text())
    assert path.name.endswith("-sd15-picture.json")
    assert set(report["parts"]["picture"]["peers"]) == {"openvino-f32", "tintype-exact", "tintype-balanced"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["graphs", ".", "--sizes", "512x500"], "multiples of 64"),
        (["graphs", ".", "--peers", "openvino-f23"], "is not one of"),
        (["picture", ".", "--size", "512x512,64x64"], "isn't a size"),
    ],
)
def test_a_word_that_means_nothing_is_refused(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(sd15, arguments)
    assert done.exit_code == 2
    assert told in done.output
