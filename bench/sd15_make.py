"""What comparisons at the size of Stable Diffusion 1.5 (or another) run on: random weights in every form, made once.

A part that is there is left as it is. Each is made beside its place and renamed when it is whole, in a process of
its own, so that a run that was broken off goes on where it stopped and no part's memory burdens the next.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tintype.bench.job import Job
from tintype.bench.peers import OPENVINO_FILES, graph_inputs
from tintype.bench.process import run_process
from tintype.bench.shapes import SD15_PNDM, SHAPES

LATENT_SIDE = 64  # latent cells
CALIBRATION_SAMPLES = 2
QUANTIZED = ("denoiser", "vae_decoder")
EXPORTS = ("fp32", "int8")


def make(
    folder: Path, chosen: tuple[str, ...] = (), damage_seconds: float = 1.0, shape: str = "sd15"
) -> dict[str, dict[str, Any]]:
    """Make the parts that are missing, or those of `chosen`; returns time and memory of each that was made.

    damage_seconds: what an export may take to measure what each layer's quantization costs. shape: of a checkpoint that
    isn't there yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, Any]] = {}
    for name in chosen or tuple(PARTS):
        if (folder / name).exists():
            click.echo(f"{name:<15} there already", err=True)
            continue
        click.echo(f"making {name}", err=True)
        partial = folder / f".partial-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "tintype.bench.sd15_make", name, str(folder), str(partial)]
        more = [str(damage_seconds)] if name in EXPORTS else [shape] if name == "checkpoint" else []
        run = run_process([*command, *more])
        partial.rename(folder / name)
        memory = {"peak_rss_bytes": run.own_peak_bytes, "together_peak_bytes": run.together_peak_bytes}
        figures[name] = {"seconds": round(run.seconds, 1), **memory}
        if name in EXPORTS:
            figures[name]["report"] = json.loads(run.stdout.strip().splitlines()[-1])
    return figures


def _make_checkpoint(folder: Path, into: Path, shape: str) -> None:
    """A diffusers folder, fp32."""
    from tintype.bench.make_sdxl import make_checkpoint

    make_checkpoint(into, SD15_PNDM if shape == "sd15" else SHAPES[shape])


def _make_bundle(precision: str, folder: Path, into: Path, damage_seconds: str) -> None:
    """An export like any other, gates and all, with the least denoising behind its ranges."""
    from tintype.export import Effort, export_bundle

    least = {"steps": 2, "calibration_prompts": 1, "gate_prompts": 1, "gate_calls": 1}
    effort = Effort(**least, latent_size=LATENT_SIDE, damage_seconds=float(damage_seconds))
    name = f"sd15-{precision}"
    report = export_bundle(folder / "checkpoint", into, precision=precision, name=name, effort=effort)
    print(json.dumps(report.as_dict()))


def _make_openvino(folder: Path, into: Path) -> None:
    """Convert as OpenVINO's documentation does; weights stay fp32, sizes stay free."""
    import openvino
    import torch

    from tintype.export.checkpoint import load, open_checkpoint
    from tintype.export.roles import COMPONENT_OF
    from tintype.export.wrappers import wrap

    checkpoint = open_checkpoint(folder / "checkpoint")
    into.mkdir()
    for role, file in OPENVINO_FILES.items():
        job = Job(model=str(folder / "fp32"), role=role, batch_size=2)
        example = {name: torch.from_numpy(array) for name, array in graph_inputs(job).items()}
        with torch.inference_mode():
            module = wrap(checkpoint, role, load(checkpoint, COMPONENT_OF[role])).eval()
            model = openvino.convert_model(module, example_input=example)
        openvino.save_model(model, into / file, compress_to_fp16=False)


def _make_openvino_int8(folder: Path, into: Path) -> None:
    """NNCF's post-training quantization as its documentation does it for transformers, on a few samples."""
    import nncf
    import openvino

    into.mkdir()
    for role in QUANTIZED:
        model = openvino.Core().read_model(folder / "openvino-f32" / OPENVINO_FILES[role])
        job = Job(model=str(folder / "fp32"), role=role)
        samples = [graph_inputs(job, seed) for seed in range(CALIBRATION_SAMPLES)]
        quantized = nncf.quantize(
            model, nncf.Dataset(samples, lambda sample: list(sample.values())),
            model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_SAMPLES,
        )  # fmt: skip
        openvino.save_model(quantized, into / OPENVINO_FILES[role], compress_to_fp16=False)
        del model, quantized


def _make_sdcpp(folder: Path, into: Path) -> None:
    """transformers 5 writes the text encoder's names without the `text_model.` that stable-diffusion.cpp looks for."""
    from safetensors.numpy import load_file, save_file

    (into / "text_encoder").mkdir(parents=True)
    weights = load_file(folder / "checkpoint" / "text_encoder" / "model.safetensors")
    named = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in weights.items()}
    save_file(named, into / "text_encoder" / "model.safetensors")
    for part in ("unet", "vae"):
        (into / part).symlink_to(Path("..") / "checkpoint" / part, target_is_directory=True)


PARTS: dict[str, Callable[..., None]] = {  # each makes its part of the folder's others, into a folder
    "checkpoint": _make_checkpoint,
    "fp32": functools.partial(_make_bundle, "fp32"),
    "int8": functools.partial(_make_bundle, "int8"),
    "openvino-f32": _make_openvino,
    "openvino-int8": _make_openvino_int8,
    "sdcpp": _make_sdcpp,
}


if __name__ == "__main__":
    PARTS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
