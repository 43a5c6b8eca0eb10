"""READ FIRST: a checkpoint becomes a bundle, in five steps.

The bundle's folder appears whole or not at all: everything is written to a folder beside it, which takes its name
only after every gate has passed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tintype.bundle import DefaultRequest
from tintype.errors import ExportError, near_names
from tintype.export.checkpoint import Checkpoint, open_checkpoint, with_tiny_vae
from tintype.export.defaults import usual_request
from tintype.export.families import tokenizer_of
from tintype.export.parity import GATES_DB, ParityReport, refuse_failures
from tintype.export.placing import placed
from tintype.export.progress import Progress, Silent

if TYPE_CHECKING:
    from tintype.export.modules import Modules
    from tintype.export.trajectories import TrajectoryPlan

PRECISIONS = tuple(GATES_DB)
LARGE_UNET_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much real denoising the gates and the calibration get; None fits the checkpoint's size."""

    steps: int | None = None
    calibration_prompts: int | None = None
    gate_prompts: int | None = None
    gate_calls: int | None = None
    latent_size: int | None = None  # a side, in latent cells
    damage_seconds: float = 1200.0  # at most this long for measuring what each layer's quantization costs


def export_bundle(
    source: Path | str,
    bundle: Path | str,
    *,
    precision: str = "fp32",
    prompts: Sequence[str] | None = None,
    name: str | None = None,
    licence: str | None = None,
    default_request: DefaultRequest | None = None,
    few_steps: int | None = None,
    tiny_vae: Path | str | None = None,
    effort: Effort | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ParityReport:
    """Export a diffusers folder (Stable Diffusion 1.x, 2.x, XL and their kin) to a bundle folder.

    Returns how near each graph came.

    precision: fp32, fp16 (weights stored in half) or int8 (hybrid; layers that would miss the gate stay float).
    prompts: what calibration and gates draw; use words the model knows. None takes a general list.
    name: the bundle's name, None takes the folder's. licence: None reads the checkpoint's README.md.
    default_request: what a request gets that leaves fields out; None takes `usual_request`.
    few_steps: how many steps the model was distilled to, where neither its scheduler nor its names tell.
    tiny_vae: the folder or file of an AutoencoderTiny, which goes into the bundle beside the checkpoint's own VAE.
    overwrite: replace a bundle that is there already; anything else at that place is never touched.

    Raises ExportError, and then nothing is left at `bundle`: for what can't be read or isn't supported, an output
    that can't be written, and a graph below its gate.
    """
    started = time.perf_counter()
    source, bundle = Path(source), Path(bundle)
    progress = progress or Silent()
    checkpoint = _opened(source, precision, tiny_vae)
    request = default_request or usual_request(checkpoint, few_steps)
    with placed(bundle, checkpoint, overwrite=overwrite) as scratch:
        # torch and diffusers take seconds to import: only for a checkpoint and an output that are there.
        _quiet_libraries()
        from tintype.export import graphs, writing
        from tintype.export.modules import Modules
        from tintype.export.tokenizer import read_tokenizer

        plan = trajectory_plan(checkpoint, effort or Effort(), prompts, request.guidance_scale)
        tokenizers = {  # 1. read
            tokenizer_of(role): read_tokenizer(source / tokenizer_of(role), *checkpoint.text_limits(role))
            for role in checkpoint.family.text_encoders
        }
        modules = Modules(checkpoint)
        _check_weights(modules, progress)  # 2. refuse what is broken before the work begins
        seconds = (effort or Effort()).damage_seconds
        job = graphs.Job(modules, tokenizers, plan, precision, scratch, progress, seconds)
        reports = graphs.write_graphs(job)  # 3. trace, meet real inputs, quantize, judge
        report = ParityReport(name or bundle.resolve().name, precision, tuple(reports), 0, 0.0)
        refuse_failures(report)
        writing.write_rest(  # 4. all else
            checkpoint, tokenizers, reports, scratch.bundle, report.name, licence, request
        )
        size = sum(path.stat().st_size for path in scratch.bundle.rglob("*") if path.is_file())
    return replace(report, bundle_bytes=size, seconds=time.perf_counter() - started)  # 5. `placed` gave it its name


def _opened(source: Path, precision: str, tiny_vae: Path | str | None) -> Checkpoint:
    """The checkpoint, with the tiny autoencoder that was given; ExportError where it can't be exported so."""
    if precision not in PRECISIONS:
        raise ExportError(
            f"precision {precision!r} isn't one this exporter makes", fix=near_names(precision, PRECISIONS)
        )
    checkpoint = open_checkpoint(source)
    return checkpoint if tiny_vae is None else with_tiny_vae(checkpoint, Path(tiny_vae))


def _quiet_libraries() -> None:
    """transformers and diffusers remark on parts that aren't used here; their errors still come as exceptions."""
    import logging

    for name in ("transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _check_weights(modules: Modules, progress: Progress) -> None:
    """ExportError for weights that are broken. Each part is read and dropped: it is read again when its turn comes."""
    components = modules.checkpoint.components
    with progress.stage("checkpoint", len(components)) as advance:
        for component in components:
            modules.part(component)
            modules.release(component)
            advance(1)


def trajectory_plan(
    checkpoint: Checkpoint, effort: Effort, prompts: Sequence[str] | None, guidance_scale: float
) -> TrajectoryPlan:
    """What the caller fixed; else much for a small UNet, and for one of SD's size what 2 cores do in minutes."""
    from tintype.export.trajectories import DEFAULT_PROMPTS, TrajectoryPlan

    large = sum(path.stat().st_size for path in checkpoint.weights["unet"]) > LARGE_UNET_BYTES
    usual = {"steps": 8, "calibration_prompts": 1, "gate_prompts": 1, "gate_calls": 3} if large else {}
    chosen = {field: getattr(effort, field) for field in ("steps", "calibration_prompts", "gate_prompts", "gate_calls")}
    fixed = {field: value for field, value in chosen.items() if value is not None}
    size = effort.latent_size if effort.latent_size is not None else checkpoint.latent_size
    size = max(1, size // checkpoint.latent_multiple) * checkpoint.latent_multiple
    texts = DEFAULT_PROMPTS if prompts is None else tuple(prompts)
    return TrajectoryPlan(texts, size, guidance_scale=guidance_scale, **{**usual, **fixed})
