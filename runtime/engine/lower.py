"""The child process that makes a build: the one place of the runtime where onnx graphs are read and rewritten.

Reads a job as JSON on stdin; writes `model.onnx` and `model.onnx_data` into the job's folder; its last line on stdout
is JSON, `{"report": ...}` or `{"error": ...}`. Run as `python -m tintype.engine.lower`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tintype.engine.machine import default_threads
from tintype.engine.providers import TARGETS, Target, load_onnxruntime
from tintype.engine.session import session_options

MODEL = "model.onnx"
DATA = "model.onnx_data"
SMALLEST_EXTERNAL_BYTES = 1024


def make_build(source: Path, folder: Path, target: Target, *, lowered: bool) -> dict[str, Any]:
    """Write the build of `source` into `folder`, which exists; returns the report."""
    import onnx_ir as ir

    from tintype.engine.abilities import abilities
    from tintype.kernels.registry import kernels_for, lower

    started = time.perf_counter()
    model = ir.load(source)
    able = frozenset() if target.is_host or not lowered else abilities(target)
    kernels = lower(model, target.name, kernels=kernels_for(target.name, able)).as_dict() if lowered else {}
    lowered_seconds = time.perf_counter() - started
    if not target.is_host:
        # A device's own optimizations happen when the session opens, and some cannot be saved.
        ir.save(model, folder / MODEL, external_data=DATA)
        facts = {"optimized": False, "lower_seconds": lowered_seconds, "abilities": sorted(able)}
        return {"kernels": kernels, **facts}
    scratch, scratch_data = folder / "lowered.onnx", "lowered.onnx_data"
    ir.save(model, scratch, external_data=scratch_data)
    del model
    optimize(scratch, folder, target)
    scratch.unlink()
    (folder / scratch_data).unlink(missing_ok=True)
    return {
        "kernels": kernels,
        "optimized": True,
        "lower_seconds": lowered_seconds,
        "optimize_seconds": time.perf_counter() - started - lowered_seconds,
    }


def optimize(source: Path, folder: Path, target: Target) -> None:
    """Save the graph as ONNX Runtime optimizes it here, weights external so that they can be memory-mapped."""
    options = session_options(target, threads=default_threads(), optimize=True)
    options.optimized_model_filepath = str(folder / MODEL)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(SMALLEST_EXTERNAL_BYTES)
    )
    # Not session.save_external_prepacked_constant_initializers: ONNX Runtime 1.31 writes packed weights at whatever
    # offset comes next, maps them, and its kernels load them as if they were aligned: a segmentation fault.
    load_onnxruntime().InferenceSession(str(source), options, providers=[target.provider], enable_fallback=0)


def main() -> int:
    """Do the job on stdin; 0 when the build was written."""
    job = json.load(sys.stdin)
    try:
        report = make_build(
            Path(job["source"]), Path(job["folder"]), TARGETS[job["target"]], lowered=bool(job["lowered"])
        )
    except Exception as error:  # told to the parent, which makes it a BuildError
        print(json.dumps({"error": f"{type(error).__name__}: {error}".strip().splitlines()[0]}))
        return 1
    print(json.dumps({"report": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
