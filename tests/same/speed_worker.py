"""Pictures of one side of `speed`, one for each line read, as tintype.bench.worker answers; by the public API alone."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import tintype

job, started = json.loads(sys.argv[2]), time.perf_counter()  # a tintype.bench.job.Job
fields = {name: job[name] for name in ("num_inference_steps", "guidance_scale", "exactness")}
with tintype.load(job["model"], provider="cpu", threads=job["threads"]) as pipeline:
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    for seed, _ in enumerate(sys.stdin):
        asked = time.perf_counter()
        result = pipeline.generate(job["prompt"], seed=seed, **fields)
        figures = {"seconds": time.perf_counter() - asked, "denoise_seconds": result.timings.denoise_seconds}
        figures["call_seconds"] = result.timings.denoise_graph_seconds / job["num_inference_steps"]
        print(json.dumps(figures), flush=True)
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
print(json.dumps({"peak_rss_bytes": peak and int(peak[1]) * 1024}))
