"""What is measured, one function each: the command's start, a picture from a fresh process, pictures in a warm one.

cold = first ever on this machine (graphs are lowered), first = a fresh process with its builds cached,
steady = the second picture and later ones of one process.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tintype.bench.figures import summary
from tintype.bench.job import Job
from tintype.bench.peers import Worker
from tintype.bench.process import Run, imported_modules, run_process, tintype_command

HELP_BAR_SECONDS = 0.3
NEVER_IMPORTED = frozenset({"torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript"})


def measure_help(job: Job, repeats: int) -> dict[str, Any]:
    """`tintype --help`, from spawn to exit."""
    command = [*tintype_command(), "--help"]
    run_process(command)  # the first one reads the files from disk and compiles them
    seconds = [run_process(command).seconds for _ in range(max(repeats, 9))]
    found = summary(seconds)
    return {"seconds": found, "bar_seconds": HELP_BAR_SECONDS, "within_bar": found["median"] <= HELP_BAR_SECONDS}


def measure_fresh(job: Job, repeats: int) -> dict[str, Any]:
    """`tintype generate`, from spawn to the file on disk: cold once, then first `repeats` times."""
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as folder:
        environment = {"TINTYPE_CACHE": str(Path(folder) / "cache")}
        picture = Path(folder) / "picture.png"
        arguments = generate_arguments(job, picture)
        cold = run_process([*tintype_command(), *arguments], environment)
        first = [_one_fresh(arguments, picture, environment) for _ in range(repeats)]
        modules = imported_modules(arguments, environment)
    return {
        "cold": {"seconds": round(cold.seconds, 4), "peak_rss_bytes": cold.peak_rss_bytes},
        "first": {
            "seconds": summary([run.seconds for run in first]),
            "peak_rss_bytes": max((run.peak_rss_bytes for run in first if run.peak_rss_bytes), default=None),
            "steps_per_second": _steps_per_second(first, job.num_inference_steps),
        },
        "imported_heavy": sorted(modules & NEVER_IMPORTED),
        "torch_imported": "torch" in modules,
        "timings": json.loads(first[-1].stdout).get("timings"),
    }


def measure_steady(job: Job, repeats: int) -> dict[str, Any]:
    """Pictures in one process after the first: seconds each, steps a second, and the process's peak memory."""
    with Worker("tintype", job) as worker:
        opening = worker.picture()
        later = [worker.picture() for _ in range(repeats)]
        load_seconds = worker.load_seconds
    denoise = [answer["denoise_seconds"] for answer in later]
    return {
        "load_seconds": load_seconds,
        "opening_seconds": round(opening["seconds"], 4),
        "seconds": summary([answer["seconds"] for answer in later]),
        "steps_per_second": round(job.num_inference_steps / statistics.median(denoise), 2),
        "peak_rss_bytes": worker.peak_rss_bytes,
    }


def generate_arguments(job: Job, picture: Path) -> list[str]:
    """The job as arguments of `tintype`."""
    arguments = ["generate", job.prompt, "-o", str(picture), "--model", job.model, "--seed", "7", "--json"]
    arguments += ["--num-inference-steps", str(job.num_inference_steps), "--guidance-scale", str(job.guidance_scale)]
    if job.width is not None and job.height is not None:
        arguments += ["--size", f"{job.width}x{job.height}"]
    if job.threads is not None:
        arguments += ["--threads", str(job.threads)]
    return arguments


def _one_fresh(arguments: Sequence[str], picture: Path, environment: dict[str, str]) -> Run:
    picture.unlink(missing_ok=True)
    run = run_process([*tintype_command(), *arguments], environment)
    if not picture.is_file():
        raise RuntimeError("the measured process ended well but wrote no picture")
    return run


def _steps_per_second(runs: Sequence[Run], steps: int) -> float:
    seconds = [json.loads(run.stdout)["timings"]["denoise_seconds"] for run in runs]
    return round(steps / statistics.median(seconds), 2)
