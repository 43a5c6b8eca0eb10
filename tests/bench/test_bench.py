"""Figures are kept with the machine they were measured on, and the runtime is measured as people run it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import psutil
import pytest

from tintype.bench import runner
from tintype.bench.command import MEASURES, NEVER_IMPORTED, OTHERS, PEERS, comparison
from tintype.bench.figures import summary
from tintype.bench.job import PROMPT, Job, build_arguments, generate_arguments
from tintype.bench.measurement import machine_facts
from tintype.bench.process import Run, imported_modules, run_process
from tintype.bench.runner import Schedule, worker
from tintype.cli import run
from tintype.engine import cache_entries, cpu_name, instruction_sets, processor_kind

MIB = 2**20


def test_a_median_is_not_moved_by_one_outlier() -> None:
    assert summary([1.0, 1.1, 0.9, 1.0, 50.0]) == {"median": 1.0, "smallest": 0.9, "largest": 50.0, "runs": 5}


def test_the_machine_has_a_name_a_processor_versions_and_a_date() -> None:
    facts = machine_facts(threads=2)
    assert facts["machine"]
    assert facts["cpu"] == cpu_name()
    assert facts["processor_kind"] == processor_kind()
    assert facts["instruction_sets"] == sorted(instruction_sets()) != []
    assert facts["threads"] == 2
    assert "numpy" in facts["versions"]
    assert facts["date"].endswith("+00:00")
    json.dumps(facts)


def test_a_word_that_is_no_measure_is_told_what_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "skeww"]) == 2
    assert capsys.readouterr().err.endswith("fix: did you mean skew?\n")
    assert run(["bench", "zzz"]) == 2
    assert f"choose one of {', '.join((*MEASURES, *OTHERS))}" in capsys.readouterr().err
    assert run(["bench", "--help"]) == 0
    told = set(capsys.readouterr().out.replace(",", " ").replace(".", " ").split())
    assert told >= {*MEASURES, *OTHERS}


@pytest.mark.bench
def test_a_process_is_timed_from_spawn_to_exit_and_its_memory_is_its_own() -> None:
    ballast = b"y" * (500 * MIB)  # what the child would be taken for, were it this process's peak that is read
    script = f"import time; block = b'x' * {300 * MIB}; time.sleep(0.2); print(len(block))"
    done = run_process([sys.executable, "-c", script])
    assert done.seconds >= 0.2
    assert done.stdout.strip() == str(300 * MIB)
    assert done.peak_rss_bytes is not None
    assert 300 * MIB < done.peak_rss_bytes < 400 * MIB
    assert done.own_peak_bytes == done.peak_rss_bytes
    assert len(ballast) == 500 * MIB


@pytest.mark.bench
def test_the_memory_of_children_is_told_apart_and_together() -> None:
    child = f"import time; block = b'x' * {200 * MIB}; time.sleep(0.3)"
    script = f"import subprocess, sys; block = b'y' * {100 * MIB}; subprocess.run([sys.executable, '-c', {child!r}])"
    done = run_process([sys.executable, "-c", script])
    if done.own_peak_bytes is None or done.peak_rss_bytes is None or done.together_peak_bytes is None:
        pytest.skip("this system does not tell")
    assert 100 * MIB < done.own_peak_bytes < 200 * MIB < done.peak_rss_bytes < 300 * MIB < done.together_peak_bytes


@pytest.mark.bench
def test_what_a_process_uses_is_not_taken_for_others() -> None:
    busy = "import time; ends = time.perf_counter() + 1.0\nwhile time.perf_counter() < ends: pass"
    alone = run_process([sys.executable, "-c", busy]).others_share
    beside = subprocess.Popen([sys.executable, "-c", busy.replace("1.0", "60.0")])
    try:
        disturbed = run_process([sys.executable, "-c", busy]).others_share
    finally:
        beside.kill()
        beside.wait()
    if alone is None or disturbed is None:
        pytest.skip("this system does not tell")
    assert 0.0 <= alone <= 1.0
    assert disturbed > 0.0


@pytest.mark.bench
def test_a_process_is_killed_with_its_children() -> None:
    child = "import time; time.sleep(60)"
    script = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    done = run_process([sys.executable, "-c", script + "print(child.pid, flush=True); child.wait()"], kill_after=2.0)
    assert done.was_killed
    assert done.exit_code != 0
    pid = int(done.stdout)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not run_process([sys.executable, "-c", "pass"], kill_after=60.0).was_killed


def test_a_process_that_fails_says_what_it_said() -> None:
    with pytest.raises(click.ClickException, match="lost in thought"):
        run_process([sys.executable, "-c", "raise SystemExit('lost in thought')"])


def test_the_arguments_are_the_job(tmp_path: Path) -> None:
    job = Job(model="m", num_inference_steps=3, guidance_scale=0.0, width=64, height=128, threads=2)
    arguments = generate_arguments(job, tmp_path / "x.png")
    assert arguments[:2] == ("generate", PROMPT)
    said = dict(itertools.pairwise(arguments))
    assert said["--num-inference-steps"] == "3"
    assert said["--guidance-scale"] == "0.0"
    assert said["--size"] == "64x128"
    assert said["--threads"] == "2"
    assert "--sampler" not in said
    assert build_arguments(job) == ("build", "m", *arguments[arguments.index("--guidance-scale") :])


def test_a_picture_needs_no_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    job = Job(model=str(tiny_bundle), num_inference_steps=1)
    run_process([sys.executable, "-m", "tintype", *generate_arguments(job, tmp_path / "x.png")])  # and makes the builds
    modules = imported_modules(generate_arguments(job, tmp_path / "x.png"))
    assert "onnxruntime" in modules
    assert modules & NEVER_IMPORTED == set()


@pytest.mark.bench
def test_a_fresh_process_is_measured_cold_and_with_builds_cached_and_nobody_times_kernels(
    tiny_bundle: Path,
    tmp_path: Path,
    no_builds: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    builds: list[int] = []

    def counting_run(command: Sequence[str], environment: Mapping[str, str]) -> Run:
        before = len(list(Path(environment["TINTYPE_CACHE"], "builds").glob("*/model.onnx")))
        done = run_process(command, environment)
        facts = Path(environment["TINTYPE_CACHE"], "builds").glob("*/build.json")
        plans = [json.loads(file.read_text())["identity"]["plan"] for file in facts]
        assert set(plans) <= {"exact threads=1"}  # none is timed
        builds.extend((before, len(plans)))
        return done

    monkeypatch.setattr(runner, "run_process", counting_run)
    asked = ["--model", str(tiny_bundle), "--num-inference-steps", "2", "--exactness", "exact", "--threads", "1"]
    assert run(["bench", "fresh", *asked, "--repeats", "1", "--results", str(tmp_path), "--json"]) == 0
    part = json.loads(capsys.readouterr().out)["parts"]["fresh"]
    assert builds == [0, 3, 3, 3]  # an empty cache, and what the cold one left there: a build a graph
    peers = part["peers"]
    assert peers["first"]["seconds"]["median"] > 0
    assert peers["first"]["steps_per_second"]["median"] > 0
    assert peers["later"]["seconds"]["runs"] == 2
    cold, later = (peers[name]["seconds"]["median"] for name in ("cold", "later"))
    assert part["bars"][0]["value"] == pytest.approx((cold - 10) / later, rel=1e-2)
    assert "onnxruntime" in part["imported"]
    assert (part["bars"][1]["value"], part["bars"][1]["met"]) == (0, True)  # torch is among what isn't
    assert cache_entries() == []  # what it built lay in a cache of its own


@pytest.mark.bench
def test_a_warm_process_is_measured_after_its_first_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    steady = comparison("steady", Job(model=str(tiny_bundle), num_inference_steps=2), tmp_path)
    figures = steady.run(Schedule(rounds=2), tmp_path)["peers"]["tintype"]
    assert figures["seconds"]["runs"] == 2
    assert set(figures["shares"]) == {"encode", "denoise", "decode"}
    assert figures["peak_rss_bytes"] > 20 * MIB
    assert any(entry.identity.plan.endswith("timed") for entry in cache_entries() if entry.identity is not None)


@pytest.mark.bench
@pytest.mark.reference
def test_peers_make_the_same_job_beside_us(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    job = Job(model=str(tiny_bundle), checkpoint=str(tiny_checkpoint), num_inference_steps=2, threads=1)
    table = comparison("peers", job, tmp_path).run(Schedule(rounds=1), tmp_path)["peers"]
    assert set(table) == set(PEERS) == {"tintype", "tintype-balanced", "diffusers", "onnxruntime"}
    assert table["tintype"]["ratios"]["seconds over tintype"] == 1.0
    for figures in table.values():
        assert figures["seconds"]["median"] >= figures["denoise_seconds"]["median"] > 0


def test_a_worker_that_cannot_load_is_told_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.ClickException, match="tintype worker"), worker("tintype", Job(model=str(tmp_path))):
        pass
    capfd.readouterr()


@pytest.mark.bench
def test_a_worker_that_ends_between_answers_is_told_by_name() -> None:
    def ask_twice() -> None:
        with worker("rates", Job()) as turn:
            assert turn.ask({})["copy GB/s"] > 0
            turn.ask({"nothing of the job": 1})

    with pytest.raises(click.ClickException, match="rates worker"):
        ask_twice()


@pytest.mark.bench
def test_the_figures_are_written_with_date_and_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "help", "--results", str(tmp_path), "--repeats", "1"]) == 0
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert path.name.endswith("-help.json")
    assert report["machine"]["date"][:4] == path.name[:4]
    assert report["parts"]["help"]["peers"]["tintype --help"]["seconds"]["median"] > 0
    assert "tintype --help" in capsys.readouterr().out
