"""What `tintype info` says of a checkpoint: read from names, shapes and configs, within a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from tintype.errors import ExportError
from tintype.sources.families import (
    PIPELINES,
    STABLE_DIFFUSION,
    Configs,
    Family,
    check_configs,
    class_of,
    family_of,
    unknown_family,
)
from tintype.sources.folder import INDEX, SCHEDULER, find_weights, headers_of, read_config
from tintype.sources.header import FLOATS, Header, TensorFacts, read_header
from tintype.sources.licence import licence_of, origin_of, read_licence
from tintype.sources.one_file import (
    KINDS,
    SD1,
    SD2,
    UNDONE,
    UNET,
    VAE,
    Layout,
    has_vae,
    latent_inputs,
    layout_of,
    look_of,
    pipeline_of,
)
from tintype.sources.onnx_folder import EXPORT_AGAIN, is_onnx_folder, plain_index, problem_of, read_graphs
from tintype.sources.prediction import EPSILON, Prediction, prediction_of, resolution_of
from tintype.sources.scaled import OTHER_FORMAT, other_format


@dataclass(frozen=True, slots=True)
class PartFacts:
    """One part's weights. precision: of its floats, the type that most of them have first."""

    parameters: int
    bytes: int
    precision: str

    @classmethod
    def of(cls, tensors: Iterable[TensorFacts]) -> PartFacts:
        sizes: dict[str, int] = {}
        whole = 0
        for facts in tensors:
            whole += facts.bytes
            if facts.dtype in FLOATS:
                sizes[facts.dtype] = sizes.get(facts.dtype, 0) + facts.size
        names = [FLOATS[dtype] for dtype, _ in sorted(sizes.items(), key=lambda item: -item[1])]
        return cls(sum(sizes.values()), whole, " and ".join(names) or "no floats")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """A checkpoint, or a file that looks like something else; `family` is None for what isn't known here.

    looks_like: for people. need: what drawing with it would take, where it can't be exported. resolution: pixels a
    side that it was trained at, where that is known.
    """

    location: PurePath  # or an address on the hub
    form: str  # "one file", "diffusers folder" or "ONNX folder of optimum"
    family: str | None
    looks_like: str
    need: str | None
    prediction: Prediction | None
    resolution: int | None
    licence: str
    has_vae: bool
    parts: Mapping[str, PartFacts]
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())


def describe(source: Path) -> SourceFacts:
    """What a file, a diffusers folder or a folder of ONNX graphs is. Raises ExportError for one that can't be read."""
    if is_onnx_folder(source):
        return _describe_graphs(source)
    return _describe_folder(source) if source.is_dir() else _describe_file(read_header(source))


def is_checkpoint(source: Path, manifest: str) -> bool:
    """Whether a place is a file, or a folder that diffusers wrote; a bundle has such an index too, and a manifest."""
    try:
        return source.is_file() or ((source / INDEX).is_file() and not (source / manifest).exists())
    except (OSError, ValueError):  # a name too long, a NUL inside
        return False


def _describe_file(header: Header) -> SourceFacts:
    layout = layout_of(header)
    common: dict[str, Any] = {
        "location": header.path,
        "form": "one file",
        "licence": licence_of(header.metadata),
        "origin": origin_of(header.metadata),
        "has_vae": has_vae(header),
    }
    if layout is None:
        look = look_of(header)
        parts = {"tensors": PartFacts.of(header.tensors.values())}
        nothing: dict[str, Any] = {"family": None, "prediction": None, "resolution": None}
        return SourceFacts(looks_like=look.name, need=look.need, parts=parts, **nothing, **common)
    prediction = prediction_of(header, layout)
    need = None if common["has_vae"] else "it has no VAE: give one as --vae"
    quantized = other_format(header)
    if quantized is not None:
        need = f"its weights are in {quantized}, which isn't read here: {OTHER_FORMAT}"
    elif latent_inputs(header) in UNDONE:
        need = f"a model for {_kind(latent_inputs(header))} isn't done here; export the one that it was made from"
    elif pipeline_of(header, layout) not in PIPELINES:
        need = _refusal(unknown_family(header.path, {"_class_name": pipeline_of(header, layout)}))
    return SourceFacts(
        family=layout.known_as,
        looks_like=" ".join(filter(None, (layout.known_as, _kind(latent_inputs(header))))),
        need=need,
        prediction=prediction,
        parts=_parts(header, layout),
        resolution=resolution_of(header, layout, prediction),
        **common,
    )


def _kind(channels: int) -> str:
    return KINDS.get(channels, f"of {channels} channels")


def _parts(header: Header, layout: Layout) -> dict[str, PartFacts]:
    prefixes = {**layout.text_encoders, "unet": UNET, "vae": VAE}
    parts = {name: PartFacts.of(header.under(prefix).values()) for name, prefix in prefixes.items()}
    return {name: part for name, part in parts.items() if part.bytes}


def _describe_folder(folder: Path) -> SourceFacts:
    index = read_config(folder / INDEX)
    parts, origin = {}, {}
    for name in sorted(_weighted_here(folder, index)):
        headers = headers_of(find_weights(folder / name))
        parts[name] = PartFacts.of(facts for header in headers for facts in header.tensors.values())
        origin.update(origin_of(headers[0].metadata))
    common: dict[str, Any] = {
        "location": folder,
        "form": "diffusers folder",
        "licence": read_licence(folder),
        "origin": origin,
        "has_vae": "vae" in parts,
        "parts": parts,
    }
    return _of_folder(folder, index, common)


def _describe_graphs(folder: Path) -> SourceFacts:
    index = plain_index(folder)
    graphs = read_graphs(folder)
    parts = {name: PartFacts(graph.parameters, graph.bytes, graph.precision) for name, graph in graphs.items()}
    common: dict[str, Any] = {
        "location": folder,
        "form": "ONNX folder of optimum",
        "licence": read_licence(folder),
        "has_vae": "vae_decoder" in parts,
        "parts": parts,
    }
    named = [name for name in ("text_encoder", "text_encoder_2") if class_of(index, name) is not None]
    missing = [name for name in (*named, "unet", "vae_decoder") if name not in parts]
    if missing:
        return _unknown(index, f"{missing[0]}/model.onnx isn't there; {EXPORT_AGAIN}", common)
    facts = _of_folder(folder, index, common, vae="vae_decoder")
    problems = [problem for problem in map(problem_of, graphs.values()) if problem is not None]
    return replace(facts, need="; ".join(problems[0])) if problems and facts.need is None else facts


def _unknown(index: Mapping[str, Any], need: str, common: Mapping[str, Any]) -> SourceFacts:
    """Of a folder whose parts aren't looked at."""
    looks_like = str(index.get("_class_name"))[:100]
    return SourceFacts(family=None, looks_like=looks_like, need=need, prediction=None, resolution=None, **common)


def _of_folder(folder: Path, index: Mapping[str, Any], common: Mapping[str, Any], *, vae: str = "vae") -> SourceFacts:
    """A folder's facts, of which `common` are known. vae: the part that has the VAE's config."""
    try:
        known = family_of(folder, index)
    except ExportError as error:
        return _unknown(index, _refusal(error), common)
    places = {name: folder / (vae if name == "vae" else name) for name in known.components}
    configs = {name: read_config(place / "config.json") for name, place in places.items()}
    configs["scheduler"] = read_config(folder / SCHEDULER)
    unet = configs["unet"]
    family = _known_as(known, unet)
    channels = unet.get("in_channels", 4)
    return SourceFacts(
        family=family,
        looks_like=" ".join(filter(None, (family, _kind(channels) if isinstance(channels, int) else ""))),
        need=_need(known, configs),
        prediction=_scheduled(configs["scheduler"]),
        resolution=_resolution(unet, configs["vae"]),
        **common,
    )


def weighted(index: Mapping[str, Any]) -> list[str]:
    """Components with weights that a model is drawn with, of those that an index names."""
    names = ("text_encoder", "text_encoder_2", "unet", "vae", "transformer", "transformer_2", "prior")
    return [name for name in names if isinstance(index.get(name), list) and any(index[name])]


def _weighted_here(folder: Path, index: Mapping[str, Any]) -> list[str]:
    named = weighted(index)
    missing = [name for name in named if not (folder / name).is_dir()]
    if missing:
        raise ExportError(
            f"{folder / INDEX} names {missing[0]}, which isn't there", fix="download the checkpoint again"
        )
    return named


def _need(family: Family, configs: Configs) -> str | None:
    """Why a folder of a known family can't be exported all the same; None where it can."""
    try:
        check_configs(family, configs)
    except ExportError as error:
        return _refusal(error)
    return None


def _refusal(error: ExportError) -> str:
    return f"{error.message}; {error.fix}"


def _known_as(family: Family, unet: Mapping[str, Any]) -> str:
    """What people call it; of 1.x and 2.x, which are exported alike, which of them it is."""
    if family is not STABLE_DIFFUSION:
        return family.known_as
    return (SD2 if unet.get("use_linear_projection") is True else SD1).known_as


def _scheduled(scheduler: Mapping[str, Any]) -> Prediction:
    kind, zero_snr = scheduler.get("prediction_type"), scheduler.get("rescale_betas_zero_snr") is True
    if kind is None:
        return Prediction(EPSILON, "diffusers' default; the scheduler's config says nothing", True, zero_snr)
    return Prediction(str(kind)[:100], "by the scheduler's config", zero_snr=zero_snr)


def _resolution(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> int | None:
    side, levels = unet.get("sample_size"), vae.get("block_out_channels")
    if isinstance(side, int) and isinstance(levels, list) and 0 < side <= 4096 and 0 < len(levels) <= 16:
        return int(side * 2 ** (len(levels) - 1))
    return None
