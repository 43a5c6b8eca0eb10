"""Export at the real size of Stable Diffusion 1.5, random weights: time, memory, and one UNet call of each bundle.

    python -m tintype.bench.export_sd15 [--precisions fp32,int8] [--folder /tmp/sd15] [--latent-size 32]

Makes the checkpoint (860 M UNet, 123 M text encoder, 84 M VAE; 4.3 GB on disk), runs `tintype.export` in a process of
its own a precision, opens the bundle's UNet through the engine in another, and deletes everything it made. Memory is
the resident set of the process and of all its children together, file-mapped pages included, sampled twice a second:
what a machine needs at most. The result goes to bench/results as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tintype.bench.machine import load_average, machine_facts

BAR_BYTES = 12 * 2**30
SAMPLE_SECONDS = 0.5

MAKE_CHECKPOINT = """
import json, sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from tintype.bench.export_sd15 import write_plain_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

folder = Path(sys.argv[1])
torch.manual_seed(0)
unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
with torch.no_grad():  # so that the words make a difference, as in a trained model
    for name, weight in unet.named_parameters():
        if name.endswith("attn2.to_out.0.weight"):
            weight *= 16.0
unet.save_pretrained(folder / "unet")
parameters = sum(weight.numel() for weight in unet.parameters())
del unet
AutoencoderKL(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    sample_size=512,
).save_pretrained(folder / "vae")
config = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408,
    bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
)
CLIPTextModel(config).save_pretrained(folder / "text_encoder")
PNDMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
    set_alpha_to_one=False,
).save_pretrained(folder / "scheduler")
write_plain_tokenizer(folder / "tokenizer", "<|endoftext|>")
index = {
    "_class_name": "StableDiffusionPipeline",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "PNDMScheduler"],
}
(folder / "model_index.json").write_text(json.dumps(index))
print(json.dumps({"unet_parameters": parameters}))
"""

EXPORT = """
import json, sys, time
from contextlib import contextmanager
from tintype.export import Effort, export_bundle

class Clock:
    def __init__(self):
        self.seconds = {}
    @contextmanager
    def stage(self, title, total):
        started = time.perf_counter()
        print(title, file=sys.stderr, flush=True)
        yield lambda units: None
        self.seconds[title] = round(time.perf_counter() - started, 1)

clock = Clock()
effort = Effort(steps=4, gate_calls=2, latent_size=int(sys.argv[4]), damage_seconds=float(sys.argv[5]))
report = export_bundle(sys.argv[1], sys.argv[2], precision=sys.argv[3], effort=effort, progress=clock)
print(json.dumps({**report.as_dict(), "stage_seconds": clock.seconds}))
"""

CALL_UNET = """
import json, sys, time
import numpy as np
from tintype.bundle import open_bundle
from tintype.engine import open_role, resolve_provider

bundle = open_bundle(sys.argv[1])
started = time.perf_counter()
session = open_role(bundle, "denoiser", resolve_provider("cpu"))
opened = time.perf_counter()
side = int(sys.argv[2])
random = np.random.default_rng(0)
feed = {
    "sample": random.standard_normal((2, 4, side, side)).astype(np.float32),
    "timestep": np.array([500.0], dtype=np.float32),
    "encoder_hidden_states": random.standard_normal((2, 77, 768)).astype(np.float32),
}
output = session.run(feed)["out_sample"]
print(json.dumps({
    "build_and_open_seconds": round(opened - started, 2), "call_seconds": round(time.perf_counter() - opened, 2),
    "latent_size": side, "batch": 2, "finite": bool(np.isfinite(output).all()), "deviation": float(output.std()),
}))
"""


class TreeMemory:
    """The largest sum of resident sets of a process and its children, while it runs."""

    def __init__(self, process: psutil.Process) -> None:
        self.peak_bytes = 0
        self.peak_own_bytes = 0
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            try:
                own = self._process.memory_info().rss
                total = own
                for child in self._process.children(recursive=True):
                    total += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.peak_own_bytes = max(self.peak_own_bytes, own)
            self.peak_bytes = max(self.peak_bytes, total)


def write_plain_tokenizer(folder: Path, pad_token: str) -> None:
    """A tokenizer of CLIP's size that knows letters alone; its other words are never said."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [f"unused{index}" for index in range(49406 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    marks = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(marks))


def run_measured(code: str, *arguments: object, environment: dict[str, str]) -> dict[str, Any]:
    """Run Python code in a process; its last line of output is JSON, to which time and memory are added."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        memory = TreeMemory(psutil.Process(process.pid))
        said, _ = process.communicate()
        memory.stop()
    if process.returncode != 0:
        raise SystemExit(f"a measured process failed with exit code {process.returncode}")
    figures: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    figures["wall_seconds"] = round(time.perf_counter() - started, 1)
    figures["peak_rss_bytes"] = memory.peak_own_bytes
    figures["peak_rss_with_children_bytes"] = memory.peak_bytes
    return figures


def measure(folder: Path, precision: str, latent_size: int, damage_seconds: float, environment: dict[str, str]) -> Any:
    """Export in one precision, then one call of the bundle's UNet; the bundle is deleted again."""
    bundle = folder / precision
    try:
        exported = run_measured(
            EXPORT, folder / "checkpoint", bundle, precision, latent_size, damage_seconds, environment=environment
        )
        called = run_measured(CALL_UNET, bundle, latent_size, environment=environment)
    finally:
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return {
        "export": exported,
        "unet_call": called,
        "within_bar": exported["peak_rss_with_children_bytes"] <= BAR_BYTES,
    }


def main() -> None:
    import os

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", default="fp32,int8")
    parser.add_argument("--folder", type=Path, help="where the weights go meanwhile; about 16 GB")
    parser.add_argument("--latent-size", type=int, default=32)
    parser.add_argument("--damage-seconds", type=float, default=900.0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sd15-", dir=chosen.folder))
    environment = {**os.environ, "TINTYPE_CACHE": str(folder / "cache")}
    try:
        report: dict[str, Any] = {
            "machine": machine_facts(None),
            "latent_size": chosen.latent_size,
            "bar_bytes": BAR_BYTES,
        }
        report["omp_num_threads"] = environment.get("OMP_NUM_THREADS")  # torch's; the machine's cores where null
        report["checkpoint"] = run_measured(MAKE_CHECKPOINT, folder / "checkpoint", environment=environment)
        for precision in chosen.precisions.split(","):
            report[precision] = measure(folder, precision, chosen.latent_size, chosen.damage_seconds, environment)
            print(json.dumps(report[precision], indent=1), flush=True)
        report["machine"]["load_average_at_end"] = load_average()
        chosen.results.mkdir(parents=True, exist_ok=True)
        stamp = report["machine"]["date"][:19].replace("-", "").replace(":", "")
        path = chosen.results / f"{stamp}-{report['machine']['machine']}-export-sd15.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"written to {path}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
