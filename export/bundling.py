"""READ FIRST: a checkpoint becomes a bundle, in six steps.

The bundle's folder appears whole or not at all: everything is written to a folder beside it, which takes its name
only after every gate has passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tintype.bundle import DefaultRequest
from tintype.bundle.bundle import BESIDE
from tintype.bundle.skew import Skew
from tintype.errors import ExportError, near_names
from tintype.export.checkpoint import Checkpoint, check_weights, demand_tensors, open_checkpoint
from tintype.export.defaults import usual_request
from tintype.export.parity import GATES_DB, QUANTIZED, ParityReport, refuse_failures
from tintype.export.partial import export_key
from tintype.export.placing import Scratch, check_place, placed
from tintype.export.plans import Effort, ExportPlan, export_plan
from tintype.export.progress import Overall, Progress, Silent
from tintype.export.sources.controlnet import is_controlnet, open_controlnet_checkpoint
from tintype.export.sources.hub import HubCheckpoint, fetch, is_address
from tintype.export.sources.image_encoder import FAMILY as IMAGE_ENCODERS
from tintype.export.sources.image_encoder import open_image_encoder_source
from tintype.export.sources.source import BASE, SourceOptions
from tintype.export.sources.t2i_adapter import is_t2i_adapter, open_adapter_checkpoint
from tintype.sources.families import tokenizer_of
from tintype.sources.folder import is_image_encoder
from tintype.uses import CONTROLNET, IMAGE_ENCODER, T2I_ADAPTER

if TYPE_CHECKING:
    from tintype.export.estimate import Estimate
    from tintype.export.parity import GraphReport
    from tintype.export.tokenizer import BundleTokenizer


PRECISIONS = tuple(GATES_DB)


@dataclass(frozen=True, slots=True)
class _Made:
    """Tokenizers by folder, each graph's report, and what was said before torch began."""

    tokenizers: Mapping[str, BundleTokenizer]
    reports: Sequence[GraphReport]
    estimate: Estimate | None


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
    parity: str = "quick",
    overwrite: bool = False,
    skew: tuple[Skew, ...] = (),
    progress: Progress | None = None,
    options: SourceOptions | None = None,
) -> ParityReport:
    """Export a checkpoint (Stable Diffusion 1.x, 2.x, XL and their kin) to a bundle folder.

    Returns how near each graph came.

    source: a diffusers folder, of a pipeline, a ControlNet or a T2I-Adapter, one .safetensors file in the naming of
    latent-diffusion, or the address of either on the Hugging Face hub; transformers' folder of CLIP's image encoder; or
    a folder of ONNX graphs as optimum exports it, for which neither torch nor diffusers is needed.

    precision: fp32, fp16 (weights stored in half), int8 (hybrid; layers that would miss the gate stay float) or int4
    (the same, with linear layers of four bits, which become int8 where they would miss it).
    prompts: what calibration and gates draw; use words the model knows. None takes a general list.
    name: the bundle's name, None takes the folder's. licence: None takes what the checkpoint says.
    default_request: what a request gets that leaves fields out; None takes `usual_request`.
    few_steps: how many steps the model was distilled to, where neither its scheduler nor its names tell.
    parity: quick judges each graph on real inputs of a small size, full on those of whole pictures.
    overwrite: replace a bundle that is there already; anything else at that place is never touched.
    skew: what pictures of it showed where prompts leave something open, for its manifest to state.
    options: a VAE, a tokenizer or a prediction type in place of the checkpoint's own, and a tiny VAE beside it; of a
    ControlLoRA the checkpoint that it adds to.

    What it will take is said before it begins (`progress.remark`). One that is broken off leaves its finished graphs
    in a hidden folder beside `bundle`, and the same call goes on from them.

    Raises ExportError, and then nothing is left at `bundle`: for what can't be read or isn't supported, too little
    disk or memory (`kind`, `least_bytes`, `free_bytes`), an output that can't be written, and a graph below its gate.
    """
    started = time.perf_counter()
    bundle = Path(bundle)
    progress = progress or Silent()
    if precision not in PRECISIONS:
        raise ExportError(
            f"precision {precision!r} isn't one this exporter makes", fix=near_names(precision, PRECISIONS)
        )
    fetched = fetch(source, progress) if is_address(source) else None
    place = Path(source) if fetched is None else fetched.place
    kind = _beside(place)
    base = None if options is None else options.base
    if base is not None and kind != CONTROLNET:
        raise ExportError(f"--base is given, and {place} is no ControlLoRA", fix="leave --base out")
    if kind is not None:
        _refuse_beside(kind, default_request, few_steps, options)
        opened = _opened_beside(kind, place, base)
        _quiet_libraries()
        return _exporter_of(kind)(
            _addressed(opened, fetched), bundle, precision=precision, name=name, licence=licence, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    checkpoint = _addressed(_opened(place, precision, options), fetched)
    for sentence in checkpoint.source.assumed:
        progress.remark(sentence)
    request = default_request or usual_request(checkpoint, few_steps)
    check_place(bundle, checkpoint, overwrite=overwrite)
    is_traced = not checkpoint.source.graphs
    if is_traced:
        # torch and diffusers take seconds to import: only for a checkpoint and an output that are there.
        _quiet_libraries()
    judged = parity if is_traced else "quick"  # graphs are judged against graphs, which are of no size
    plan = export_plan(checkpoint, effort or Effort(), prompts, request.guidance_scale, judged)
    key = export_key(checkpoint, {"precision": precision, "plan": plan})
    with placed(bundle, checkpoint, key=key, overwrite=overwrite) as scratch:
        make = _traced if is_traced else _converted
        made = make(checkpoint, precision, plan, scratch, progress)
        told = None if made.estimate is None else made.estimate.as_dict()
        report = ParityReport(name or bundle.resolve().name, precision, tuple(made.reports), 0, 0.0, judged, told)
        refuse_failures(report)
        from tintype.export import writing

        writing.write_rest(  # 5. all else
            checkpoint, made.tokenizers, made.reports, scratch.bundle, report.name, licence, request, skew
        )
        size = sum(path.stat().st_size for path in scratch.bundle.rglob("*") if path.is_file())
    return replace(report, bundle_bytes=size, seconds=time.perf_counter() - started)  # 6. `placed` gave it its name


def _beside(place: Path) -> str | None:
    """The family of the bundle that comes of what stands beside models; None for a model."""
    kinds = ((CONTROLNET, is_controlnet), (T2I_ADAPTER, is_t2i_adapter), (IMAGE_ENCODER, is_image_encoder))
    return next((kind for kind, holds in kinds if holds(place)), None)


def _opened_beside(kind: str, place: Path, base: Path | None) -> Checkpoint:
    if kind == CONTROLNET:
        return open_controlnet_checkpoint(place, base)
    if kind == T2I_ADAPTER:
        return open_adapter_checkpoint(place)
    return Checkpoint(IMAGE_ENCODERS, open_image_encoder_source(place))


def _exporter_of(kind: str) -> Callable[..., ParityReport]:
    from tintype.export.controlnet import export_controlnet
    from tintype.export.image_encoder import export_image_encoder
    from tintype.export.t2i_adapter import export_t2i_adapter

    return {CONTROLNET: export_controlnet, T2I_ADAPTER: export_t2i_adapter, IMAGE_ENCODER: export_image_encoder}[kind]


def _refuse_beside(
    kind: str, default_request: DefaultRequest | None, few_steps: int | None, options: SourceOptions | None
) -> None:
    """ExportError for what only a model has. kind: of what is exported in the place of one."""
    given = {"default_request": default_request, "few_steps": few_steps, **({} if options is None else asdict(options))}
    for name, value in given.items():
        if value is not None and name != BASE:
            raise ExportError(f"{name} is given, and {BESIDE[kind].what} has none", fix="leave it out")


def _estimate(
    checkpoint: Checkpoint,
    plan: ExportPlan,
    precision: str,
    scratch: Scratch,
    tokenizers: Mapping[str, BundleTokenizer],
    progress: Progress,
) -> Estimate:
    """Say what the export will take, and what is there of it. Raises ExportError where there is too little room."""
    from tintype.export.estimate import estimate

    tokens = next(iter(tokenizers.values())).facts.max_length
    told = estimate(checkpoint, plan, precision, scratch.folder, scratch.partial.reports, tokens)
    if told.finished:
        progress.remark(f"goes on: {', '.join(told.finished)} {'is' if len(told.finished) == 1 else 'are'} there")
    told.demand_room(scratch.folder.parent)
    progress.remark(told.sentence())
    return told


def _traced(checkpoint: Checkpoint, precision: str, plan: ExportPlan, scratch: Scratch, progress: Progress) -> _Made:
    """The graphs of a checkpoint of weights, in torch."""
    from tintype.export import graphs
    from tintype.export.modules import Modules

    tokenizers = {  # 1. read
        tokenizer_of(role): _tokenizer(checkpoint, role) for role in checkpoint.family.text_encoders
    }
    for component in checkpoint.components:
        demand_tensors(checkpoint, component)
    told = _estimate(checkpoint, plan, precision, scratch, tokenizers, progress)  # 2. say what it will take
    progress = Overall(progress, told.phases)
    job = graphs.Job(Modules(checkpoint), tokenizers, plan, precision, scratch, progress)
    _check_weights(checkpoint, graphs.unfinished(job), progress)  # 3. refuse what is broken before the work begins
    return _Made(tokenizers, graphs.write_graphs(job), told)  # 4. trace, meet real inputs, quantize, judge


def _converted(checkpoint: Checkpoint, precision: str, plan: ExportPlan, scratch: Scratch, progress: Progress) -> _Made:
    """The graphs of a folder of graphs, without torch: rewritten, and judged against what they were."""
    from tintype.export import converting
    from tintype.export.plain_tokenizer import read_plain_tokenizer

    tokenizers = {}
    for role in checkpoint.family.text_encoders:
        name = tokenizer_of(role)
        tokenizers[name] = read_plain_tokenizer(checkpoint.tokenizers[name].folder, *checkpoint.text_limits(role))
    reports = converting.write_graphs(checkpoint, tokenizers, precision, plan, scratch, progress)
    return _Made(tokenizers, reports, None)


def _opened(place: Path, precision: str, options: SourceOptions | None) -> Checkpoint:
    """The checkpoint at a place; no weight is read."""
    opened = open_checkpoint(place, options)
    if opened.source.graphs and precision in QUANTIZED and opened.takes_picture:
        raise ExportError(
            f"{precision} of a model that takes a picture is chosen on pictures, and {place} holds graphs alone",
            fix="say --precision fp32 or fp16, or export the checkpoint that they were made from",
        )
    return opened


def _addressed(checkpoint: Checkpoint, fetched: HubCheckpoint | None) -> Checkpoint:
    """The checkpoint with its address, where it has one."""
    if fetched is None:
        return checkpoint
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


def _check_weights(checkpoint: Checkpoint, components: Sequence[str], progress: Progress) -> None:
    """ExportError for numbers that are broken, which only reading them tells."""
    with progress.stage("checkpoint", sum(len(checkpoint.entries(component)) for component in components)) as advance:
        for component in components:
            check_weights(checkpoint, component, advance)
