"""Everything in a bundle that isn't a graph: configs, scheduler, tokenizer, manifest.

Runs last: the manifest names every other file with its size and hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tintype.bundle import (
    DefaultRequest,
    Graph,
    Manifest,
    Port,
    ReplacedPart,
    Source,
    file_facts,
    write_manifest,
)
from tintype.bundle.skew import Skew
from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint
from tintype.export.defaults import size_limits
from tintype.export.parity import GraphReport
from tintype.export.roles import COMPONENT_OF, GRAPH_FILES
from tintype.export.sources.source import BASE, TINY_VAE
from tintype.export.storage import load_graph
from tintype.export.tokenizer import BundleTokenizer, write_tokenizer
from tintype.strict_json import Misfit

SCHEDULER_FILE = "scheduler/scheduler_config.json"


def write_rest(
    checkpoint: Checkpoint,
    tokenizers: Mapping[str, BundleTokenizer],
    reports: Sequence[GraphReport],
    folder: Path,
    name: str,
    licence: str | None,
    default_request: DefaultRequest,
    skew: tuple[Skew, ...] = (),
) -> Manifest:
    """Complete a bundle folder that holds its graphs; returns the manifest that it wrote last.

    Raises ExportError when the checkpoint's facts make no sound manifest.
    """
    for report in reports:
        graph_folder = (folder / GRAPH_FILES[report.role]).parent  # optimum reads the config beside the graph
        write_json(checkpoint.configs[COMPONENT_OF[report.role]], graph_folder / "config.json")
    (folder / SCHEDULER_FILE).parent.mkdir()
    write_json(checkpoint.configs["scheduler"], folder / SCHEDULER_FILE)
    for place, tokenizer in tokenizers.items():
        write_tokenizer(tokenizer, checkpoint.tokenizers[place].folder, folder / place)
    _write_index(checkpoint, folder)
    try:
        manifest = _manifest(checkpoint, tokenizers, reports, folder, name, licence, default_request, skew)
    except Misfit as misfit:
        raise ExportError(
            f"the bundle would not open: {misfit}", fix="correct that in the checkpoint's config"
        ) from None
    write_manifest(folder, manifest)
    return manifest


def _manifest(
    checkpoint: Checkpoint,
    tokenizers: Mapping[str, BundleTokenizer],
    reports: Sequence[GraphReport],
    folder: Path,
    name: str,
    licence: str | None,
    default_request: DefaultRequest,
    skew: tuple[Skew, ...],
) -> Manifest:
    first, *second = (tokenizer.facts for tokenizer in tokenizers.values())
    return Manifest(
        name=name,
        licence=licence if licence is not None else checkpoint.source.licence,
        source=source_of(checkpoint),
        family=checkpoint.family.name,
        prediction_type=checkpoint.prediction_type,
        scaling_factor=checkpoint.scaling_factor,
        shift_factor=checkpoint.shift_factor,
        vae_scale_factor=checkpoint.vae_scale_factor,
        latent_channels=checkpoint.latent_channels,
        default_request=default_request,
        size=size_limits(checkpoint),
        tokenizer=first,
        tokenizer_2=second[0] if second else None,
        force_zeros_for_empty_prompt=checkpoint.force_zeros_for_empty_prompt,
        scheduler=SCHEDULER_FILE,
        graphs={report.role: {"full": _graph(folder, report)} for report in reports},
        files=file_facts(folder),
        parity=tuple(report.parity for report in reports),
        skew=skew,
        preview=next((report.preview for report in reports if report.preview is not None), None),
    )


def source_of(checkpoint: Checkpoint) -> Source:
    """Where a bundle's weights come from, as its manifest says it. Every file of them is read once for its hash."""
    source = checkpoint.source
    given = {
        name: ReplacedPart(location=place.resolve().name, sha256=source.sha256_of_given(name))
        for name, place in source.given.items()
    }
    return Source(
        location=source.address or source.location.resolve().name,
        revision=source.revision,
        sha256=source.sha256(),
        vae=given.get("vae"),
        tiny_vae=given.get(TINY_VAE),
        base=given.get(BASE),
        origin=source.origin,
        assumed=source.assumed,
    )


def _write_index(checkpoint: Checkpoint, folder: Path) -> None:
    """model_index.json as optimum and diffusers read it: the checkpoint's, without a safety checker that isn't here."""
    index: dict[str, Any] = dict(checkpoint.index)
    for absent in ("safety_checker", "feature_extractor", "image_encoder"):
        if absent in index:
            index[absent] = [None, None]
    if not checkpoint.family.is_xl:
        index["requires_safety_checker"] = False
    write_json(index, folder / "model_index.json")


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """As diffusers writes its configs."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _graph(folder: Path, report: GraphReport) -> Graph:
    model = load_graph(folder / GRAPH_FILES[report.role])
    return Graph(
        file=GRAPH_FILES[report.role],
        precision=report.precision,
        inputs=tuple(port_of(value) for value in model.graph.inputs),
        outputs=tuple(port_of(value) for value in model.graph.outputs),
        largest=report.largest,
    )


def port_of(value: ir.Value) -> Port:
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return Port(name=str(value.name), dtype=value.dtype.numpy().name, shape=shape)
