"""READ FIRST: a checkpoint becomes a bundle, in five steps.

The bundle's folder appears whole or not at all: everything is written to a folder beside it, which takes its name
only after every gate has passed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tintype.bundle import DefaultRequest
from tintype.errors import ExportError, near_names
from tintype.export.checkpoint import Checkpoint, demand_tensors, open_checkpoint
from tintype.export.defaults import usual_request
from tintype.export.parity import GATES_DB, ParityReport, refuse_failures
from tintype.export.placing import placed
from tintype.export.progress import Progress, Silent
from tintype.export.sources.hub import fetch, is_address
from tintype.export.sources.source import SourceOptions
from tintype.sources.families import tokenizer_of

if TYPE_CHECKING:
    from tintype.export.modules import Modules
    from tintype.export.parity import GraphReport
    from tintype.export.placing import Scratch
    from tintype.export.tokenizer import BundleTokenizer
    from tintype.export.trajectories import TrajectoryPlan

    Made: TypeAlias = tuple[Mapping[str, BundleTokenizer], list[GraphReport]]  # tokenizers by folder, and each graph

PRECISIONS = tuple(GATES_DB)
OF_GRAPHS = ("fp32", "fp16")  # which of them a folder of graphs can have
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
    effort: Effort | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    options: SourceOptions | None = None,
) -> ParityReport:
    """Export a checkpoint (Stable Diffusion 1.x, 2.x, XL and their kin) to a bundle folder.

    Returns how near each graph came.

    source: a diffusers folder, one .safetensors file in the naming of latent-diffusion, or the address of either on the
    Hugging Face hub; or a folder of ONNX graphs as optimum exports it, for which neither torch nor diffusers is needed.

    precision: fp32, fp16 (weights stored in half) or int8 (hybrid; layers that would miss the gate stay float; not of
    ONNX graphs).
    prompts: what calibration and gates draw; use words the model knows. None takes a general list.
    name: the bundle's name, None takes the folder's. licence: None takes what the checkpoint says.
    default_request: what a request gets that leaves fields out; None takes `usual_request`.
    few_steps: how many steps the model was distilled to, where neither its scheduler nor its names tell.
    overwrite: replace a bundle that is there already; anything else at that place is never touched.
    options: a VAE, a tokenizer or a prediction type in place of the checkpoint's own, and a tiny VAE beside it.

    Raises ExportError, and then nothing is left at `bundle`: for what can't be read or isn't supported, an output
    that can't be written, and a graph below its gate.
    """
    started = time.perf_counter()
    bundle = Path(bundle)
    progress = progress or Silent()
    checkpoint = _opened(source, precision, options, progress)
    for sentence in checkpoint.source.assumed:
        progress.remark(sentence)
    request = default_request or usual_request(checkpoint, few_steps)
    with placed(bundle, checkpoint, overwrite=overwrite) as scratch:
        make = _converted if checkpoint.source.graphs else _traced  # 1.-3.
        tokenizers, reports = make(
            checkpoint, precision, prompts, effort or Effort(), request.guidance_scale, scratch, progress
        )
        report = ParityReport(name or bundle.resolve().name, precision, tuple(reports), 0, 0.0)
        refuse_failures(report)
        from tintype.export import writing

        writing.write_rest(  # 4. all else
            checkpoint, tokenizers, reports, scratch.bundle, report.name, licence, request
        )
        size = sum(path.stat().st_size for path in scratch.bundle.rglob("*") if path.is_file())
    return replace(report, bundle_bytes=size, seconds=time.perf_counter() - started)  # 5. `placed` gave it its name


def _traced(
    checkpoint: Checkpoint,
    precision: str,
    prompts: Sequence[str] | None,
    effort: Effort,
    guidance_scale: float,
    scratch: Scratch,
    progress: Progress,
) -> Made:
    """The graphs of a checkpoint of weights, in torch."""
    # torch and diffusers take seconds to import: only for a checkpoint and an output that are there.
    _quiet_libraries()
    from tintype.export import graphs
    from tintype.export.modules import Modules

    plan = trajectory_plan(checkpoint, effort, prompts, guidance_scale)
    tokenizers = {  # 1. read
        tokenizer_of(role): _tokenizer(checkpoint, role) for role in checkpoint.family.text_encoders
    }
    modules = Modules(checkpoint)
    _check_weights(modules, progress)  # 2. refuse what is broken before the work begins
    job = graphs.Job(modules, tokenizers, plan, precision, scratch, progress, effort.damage_seconds)
    return tokenizers, graphs.write_graphs(job)  # 3. trace, meet real inputs, quantize, judge


def _converted(
    checkpoint: Checkpoint,
    precision: str,
    prompts: Sequence[str] | None,
    _effort: Effort,
    _guidance_scale: float,
    scratch: Scratch,
    progress: Progress,
) -> Made:
    """The graphs of a folder of graphs, without torch: rewritten, and judged against what they were."""
    from tintype.export import converting
    from tintype.export.plain_tokenizer import read_plain_tokenizer

    tokenizers = {}
    for role in checkpoint.family.text_encoders:
        name = tokenizer_of(role)
        tokenizers[name] = read_plain_tokenizer(checkpoint.tokenizers[name].folder, *checkpoint.text_limits(role))
    return tokenizers, converting.write_graphs(checkpoint, tokenizers, precision, prompts, scratch, progress)


def _opened(source: Path | str, precision: str, options: SourceOptions | None, progress: Progress) -> Checkpoint:
    """The checkpoint at a place, or fetched from the hub; nothing but the latter takes time."""
    if precision not in PRECISIONS:
        raise ExportError(
            f"precision {precision!r} isn't one this exporter makes", fix=near_names(precision, PRECISIONS)
        )
    if not is_address(source):
        opened = open_checkpoint(Path(source), options)
        if opened.source.graphs and precision not in OF_GRAPHS:
            raise ExportError(
                f"{precision} is chosen by trials on the checkpoint's modules, and {source} holds graphs alone",
                fix=f"say --precision {' or '.join(OF_GRAPHS)}, or export the checkpoint that they were made from",
            )
        return opened
    fetched = fetch(source, progress)
    checkpoint = open_checkpoint(fetched.place, options)
    return replace(checkpoint, source=replace(checkpoint.source, address=fetched.address, revision=fetched.revision))


def _tokenizer(checkpoint: Checkpoint, role: str) -> BundleTokenizer:
    """The tokenizer that feeds a text encoder."""
    from tintype.export.tokenizer import read_tokenizer

    name = tokenizer_of(role)
    place = checkpoint.tokenizers[name]
    return read_tokenizer(place.folder, *checkpoint.text_limits(role), place=name, pad_token=place.pad_token)


def _quiet_libraries() -> None:
    """transformers and diffusers remark on parts that aren't used here; their errors still come as exceptions."""
    import logging

    for name in ("transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _check_weights(modules: Modules, progress: Progress) -> None:
    """ExportError for weights that are broken: first what headers tell of any part, then what only reading them does.

    Each part is read and dropped: it is read again when its turn comes.
    """
    components = modules.checkpoint.components
    for component in components:
        demand_tensors(modules.checkpoint, component)
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

    large = checkpoint.fp32_bytes("unet") > LARGE_UNET_BYTES
    usual = {"steps": 8, "calibration_prompts": 1, "gate_prompts": 1, "gate_calls": 3} if large else {}
    chosen = {field: getattr(effort, field) for field in ("steps", "calibration_prompts", "gate_prompts", "gate_calls")}
    fixed = {field: value for field, value in chosen.items() if value is not None}
    size = effort.latent_size if effort.latent_size is not None else checkpoint.latent_size
    size = max(1, size // checkpoint.latent_multiple) * checkpoint.latent_multiple
    texts = DEFAULT_PROMPTS if prompts is None else tuple(prompts)
    return TrajectoryPlan(texts, size, guidance_scale=guidance_scale, **{**usual, **fixed})
