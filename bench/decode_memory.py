"""What a decode in strips costs in time and saves in memory, beside the same decode as a whole.

    python -m tintype.bench.decode_memory BUNDLE [--sizes 512x512,1024x1024] [--strip-mib 4,8,16,32,64] [--threads 2]

`--role vae_encoder` measures the way back, from a picture to latents. Each runs in a process of its own, which opens a
finished build and decodes twice (--calls): the first time as for one picture, with all weights to be mapped, then once
more. Seconds are the wall's; those of the processor are told too, for a machine on which others work. Peak memory is
the process's (VmHWM on Linux), so what Python, numpy and ONNX Runtime need is in it. The result goes to bench/results
as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from tintype.bench.machine import load_average, machine_facts
from tintype.bench.report import default_results_folder, write_report
from tintype.bundle import Bundle, open_bundle
from tintype.engine import open_session, peak_rss_bytes, resolve_provider
from tintype.engine.build.builds import ensure_build
from tintype.engine.build.measure import psnr_db
from tintype.engine.build.options import BuildOptions
from tintype.engine.run.strips import read_strips
from tintype.manifest import ENCODER

MIB = 2**20


def main() -> None:
    """Measure and write the report; `--child` is what each process runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--role", default="vae_decoder", choices=("vae_decoder", ENCODER))
    parser.add_argument("--sizes", default="512x512,768x768,1024x1024", help="pixels, width first")
    parser.add_argument("--strip-mib", default="4,8,16,32,64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=2, help="decodes in each process")
    parser.add_argument("--lock", type=Path, help="a file that is locked while a size is timed")
    parser.add_argument("--results", type=Path, default=default_results_folder())
    parser.add_argument("--child", nargs=2, metavar=("SHAPE", "OUTPUT"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        print(json.dumps(decode_here(Path(told.bundle), told.child[0], Path(told.child[1]), told.threads, told.calls)))
        return
    report: dict[str, Any] = {"machine": machine_facts(told.threads), "bundle": Path(told.bundle).name}
    report |= {"role": told.role, "sizes": {}}
    for size in told.sizes.split(","):
        strips = [float(each) for each in told.strip_mib.split(",")]
        report["sizes"][size] = measure_size(
            open_bundle(told.bundle), told.role, size, strips, told.threads, told.calls, told.lock
        )
    report["machine"]["load_average_at_end"] = load_average()
    name = "encode-memory" if told.role == ENCODER else "decode-memory"
    print(f"written to {write_report(report, told.results, [name])}")


def measure_size(
    bundle: Bundle, role: str, size: str, strips: list[float], threads: int, calls: int, lock: Path | None
) -> dict[str, dict[str, Any]]:
    """Every way to decode, or encode, a picture of that size, the whole one first; ratios are to it."""
    target, manifest = resolve_provider("cpu"), bundle.manifest
    width, height = map(int, size.split("x"))
    channels = 3
    if role != ENCODER:
        width, height = width // manifest.vae_scale_factor, height // manifest.vae_scale_factor
        channels = manifest.latent_channels
    folders = {}
    for mib in (None, *strips):
        options = BuildOptions.for_shape(
            {"batch": 1, "height": height, "width": width},
            exactness="exact",
            strip_bytes=None if mib is None else int(mib * MIB),
            threads=threads,
        )
        name = "whole" if mib is None else f"{mib:g}MiB"
        folders[name] = ensure_build(bundle, role, target, options=options)
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch, _locked(lock):
        for name, folder in folders.items():
            output = Path(scratch) / f"{name}.npy"
            shape = f"1x{channels}x{height}x{width}"
            command = [sys.executable, "-m", "tintype.bench.decode_memory", str(folder)]
            command += ["--threads", str(threads), "--calls", str(calls)]
            done = subprocess.run(
                [*command, "--child", shape, str(output)], stdout=subprocess.PIPE, text=True, check=True
            )
            figures = json.loads(done.stdout.splitlines()[-1])
            whole = np.load(Path(scratch) / "whole.npy")
            figures["psnr_db"] = round(psnr_db(whole, np.load(output)), 1)
            for kind in ("seconds", "processor_seconds"):
                figures[f"{kind}_ratio"] = [
                    round(own / other, 3)
                    for own, other in zip(figures[kind], table.get("whole", figures)[kind], strict=True)
                ]
            table[name] = figures
            print(f"{size} {name:>6}: {figures}", flush=True)
    return table


def decode_here(build: Path, shape: str, output: Path, threads: int, calls: int) -> dict[str, Any]:
    """Run a build on noise in this process, and write the numbers that it gives to a file."""
    facts = read_strips(build)
    noise = np.random.default_rng(0).standard_normal([int(dim) for dim in shape.split("x")], dtype=np.float32)
    before, wall, processor = peak_rss_bytes(), [], []
    with open_session(build, resolve_provider("cpu"), threads=threads, mapped=facts is not None) as session:
        for _ in range(calls):
            started, worked = time.perf_counter(), time.process_time()
            (given,) = session.run(dict.fromkeys(session.input_shapes, noise)).values()
            wall.append(round(time.perf_counter() - started, 3))
            processor.append(round(time.process_time() - worked, 3))
    peak = peak_rss_bytes()
    np.save(output, given)
    stages = () if facts is None else facts.stages
    return {
        "bare_bytes": before,
        "peak_bytes": peak,
        "seconds": wall,
        "processor_seconds": processor,
        "stages": len(stages),
        "strips": sum(len(list(stage.strips())) for stage in stages),
    }


@contextlib.contextmanager
def _locked(lock: Path | None) -> Iterator[None]:
    with filelock.FileLock(lock) if lock is not None else contextlib.nullcontext():
        yield


if __name__ == "__main__":
    main()
