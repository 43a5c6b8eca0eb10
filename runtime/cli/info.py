"""`tintype info`: what a bundle says about itself, and what this machine would run it with; or what a checkpoint is.

A checkpoint is told by its headers and configs alone: no weight is read, and neither torch nor onnxruntime is loaded.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from tintype.cli.options import human_bytes, json_option
from tintype.cli.say import say, say_json
from tintype.errors import TintypeError

if TYPE_CHECKING:
    from tintype.bundle import Bundle, DefaultRequest, FastRequest
    from tintype.bundle.opening import BesideModels
    from tintype.sources.facts import SourceFacts
    from tintype.trust.thresholds import Calibration


@click.command()
@click.argument("source", default="postcard")
@json_option
def info(source: str, as_json: bool) -> None:
    """Say what SOURCE is: a bundle (a folder, or a model's name), and what this machine runs it with; or a checkpoint,
    a diffusers folder, one .safetensors file, the address of either on the Hugging Face hub (ORG/NAME, extra: hub), or
    optimum's ONNX folder, and what it takes to export it. Of weights nothing is read or fetched but what their files
    say of them."""
    from tintype.bundle import EMBEDDED, MANIFEST_NAME, Bundle
    from tintype.bundle.opening import open_any
    from tintype.bundle.overlay import overlay_facts
    from tintype.sources.facts import describe, is_checkpoint
    from tintype.sources.hub import describe_remote, is_address

    if source not in EMBEDDED and is_checkpoint(Path(source), MANIFEST_NAME):
        _show_checkpoint(describe(Path(source)), as_json)
        return
    if is_address(source):
        _show_checkpoint(describe_remote(source), as_json)
        return
    opened = open_any(source)
    machine = _machine()
    if not isinstance(opened, Bundle):
        if as_json:
            facts = {"folder": str(opened.folder), "hash": opened.hash, **asdict(opened.manifest)}
            say_json({opened.manifest.family: facts, "machine": machine})
        else:
            _say_rows([*_beside_rows(opened), *_machine_rows(machine)])
        return
    if as_json:
        manifest = asdict(opened.manifest)
        calibrated = [{**each.way, "threshold": each.threshold} for each in _calibrations(opened)]
        merged = overlay_facts(opened)
        bundle = {"folder": str(opened.folder), "hash": opened.hash, **manifest, "memorisation": calibrated}
        bundle["overlay"] = None if merged is None else asdict(merged)
        say_json({"bundle": bundle, "machine": machine})
        return
    _say_rows([*_bundle_rows(opened), *_machine_rows(machine)])


def _say_rows(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        say(f"{name:<12} {text}")


def _show_checkpoint(facts: SourceFacts, as_json: bool) -> None:
    if as_json:
        told = {**asdict(facts), "location": str(facts.location)}
        say_json({"checkpoint": {**told, "parameters": facts.parameters, "bytes": facts.bytes}})
    else:
        _say_rows(_checkpoint_rows(facts))


def _checkpoint_rows(facts: SourceFacts) -> list[tuple[str, str]]:
    rows = [
        ("checkpoint" if facts.family else "looks like", f"{facts.looks_like} ({facts.form})"),
        ("place", str(facts.location)),
        ("size", f"{facts.parameters / 1e6:,.1f} million parameters, {human_bytes(facts.bytes)}"),
    ]
    for name, part in facts.parts.items():
        rows.append(("part", f"{name}: {part.precision}, {part.parameters / 1e6:,.1f} M, {human_bytes(part.bytes)}"))
    if facts.prediction is not None:
        snr = ", with no picture left at the last timestep" if facts.prediction.zero_snr else ""
        rows.append(("predicts", f"{facts.prediction.kind}, {facts.prediction.how}{snr}"))
    if facts.resolution is not None:
        rows.append(("pictures", f"{facts.resolution} pixels a side"))
    rows.append(("VAE", "inside" if facts.has_vae else "none"))
    rows.append(("licence", facts.licence))
    rows += [("origin", f"{key}: {text}") for key, text in facts.origin.items()]
    if facts.need is None:
        rows.append(("to run it", f"tintype export {facts.location} BUNDLE"))
        is_onnx = facts.form.startswith("ONNX folder")
        return [*rows, ("or at once", f"--model {facts.location}")] if is_onnx else rows
    return [*rows, ("to run it", facts.need)]


def _beside_rows(opened: BesideModels) -> list[tuple[str, str]]:
    from tintype.bundle.bundle import BESIDE

    kind, manifest = BESIDE[opened.manifest.family], opened.manifest
    return [
        *_what_it_is(opened, kind.what.split(maxsplit=1)[1]),
        ("folder", str(opened.folder)),
        ("hash", opened.hash),
        ("licence", _licence_of(opened)),
        ("source", manifest.source.location),
        *(("assumed", sentence) for sentence in manifest.source.assumed),
        ("size", human_bytes(sum(facts.bytes for facts in manifest.files.values()))),
        ("graph", f"{manifest.family}: {manifest.graph.precision}"),
        *_parity_rows(opened),
        ("to use it", f"tintype generate PROMPT {kind.options.format(opened.folder)}"),
    ]


def _what_it_is(opened: BesideModels, kind: str) -> list[tuple[str, str]]:
    from tintype.bundle.image_encoder import ImageEncoder

    if not isinstance(opened, ImageEncoder):
        return [(kind, f"{opened.name}, for models of {opened.manifest.controls}")]
    tokens, width = opened.manifest.states
    gives = f"{opened.manifest.embedding:,} numbers of a picture, or {width:,} of each of {tokens} tokens"
    return [("encoder", f"{opened.name}, of pictures, for IP-Adapters"), ("gives", gives)]


def _parity_rows(bundle: Bundle | BesideModels) -> list[tuple[str, str]]:
    rows = []
    for gate in bundle.manifest.parity:
        guidance = "" if gate.guidance_error is None else f", guidance error {gate.guidance_error:.1%}"
        measured = f"{gate.psnr_db:.1f} dB against {gate.reference} (gate {gate.gate_db:g}){guidance}"
        rows.append(("parity", f"{gate.graph}: {measured}, {'passed' if gate.passed else 'failed'}"))
    return rows


def _bundle_rows(bundle: Bundle) -> list[tuple[str, str]]:
    manifest, default, size = bundle.manifest, bundle.manifest.default_request, bundle.manifest.size
    rows = [
        ("bundle", f"{manifest.name} ({manifest.family}, {manifest.prediction_type})"),
        ("folder", str(bundle.folder)),
        *_merged_rows(bundle),
        ("hash", bundle.hash),
        ("licence", _licence_of(bundle)),
        ("source", manifest.source.location),
        *(("VAE", f"{part.location}, in place of the checkpoint's own") for part in (manifest.source.vae,) if part),
        *(("assumed", sentence) for sentence in manifest.source.assumed),
        ("size", human_bytes(sum(facts.bytes for facts in manifest.files.values()))),
        ("pictures", f"{size.minimum} to {size.maximum} pixels a side, multiples of {size.multiple}"),
        (
            "by default",
            f"{default.width}x{default.height}, {_steps_of(default)}, {default.exactness}",
        ),
    ]
    if manifest.fast is not None:
        rows.append(("with --fast", _steps_of(manifest.fast)))
    if manifest.needs_picture:
        rows.append(("needs", "a picture and a mask" if manifest.is_inpainting else "a picture"))
    for role, variants in manifest.graphs.items():
        for variant, graph in variants.items():
            name = role if variant == "full" else f"{role} ({variant})"
            rows.append(("graph", f"{name}: {graph.precision}, {human_bytes(_bytes_of(bundle, graph.file))}"))
    rows += _parity_rows(bundle)
    for skew in manifest.skew:
        shares = ", ".join(f"{label} {count / skew.pictures:.0%}" for label, count in skew.most_first)
        rows.append(("skew", f"{skew.prompt!r}: {shares}; {skew.pictures:,} pictures, by {skew.judge}"))
    return [*rows, *(("memorised", sentence) for sentence in _about_memorisation(bundle))]


def _merged_rows(bundle: Bundle) -> list[tuple[str, str]]:
    """Of an overlay the LoRAs that are merged, and how near the weights that changed are to the same in float."""
    from tintype.bundle.overlay import overlay_facts

    facts = overlay_facts(bundle)
    if facts is None:
        return []
    rows = [("merged", f"{lora.name}, weight {lora.weight:g}, sha256 {lora.sha256[:12]}") for lora in facts.loras]
    for role, changed in facts.changed.items():
        near = "" if changed.snr_db is None else f", {changed.snr_db:.1f} dB to the same in float"
        rows.append(("changed", f"{role}: {changed.layers} layers{near}"))
    return rows


def _steps_of(usual: DefaultRequest | FastRequest) -> str:
    sampler = usual.sampler if usual.sigmas is None else f"{usual.sampler} on {usual.sigmas} sigmas"
    return f"{usual.num_inference_steps} steps of {sampler}, guidance {usual.guidance_scale:g}"


def _about_memorisation(bundle: Bundle) -> list[str]:
    """Which pictures are held against those of ordinary prompts."""
    from tintype.cli.calibrate import describe

    manifest = bundle.manifest
    if manifest.guidance_embedding is not None or manifest.default_request.guidance_scale in (0.0, 1.0):
        return ["not judged: it draws without guidance"]
    known = [f"told by a score above that of {describe(each)}" for each in _calibrations(bundle)]
    return known or [f"not judged yet: tintype calibrate {bundle.folder}"]


def _calibrations(bundle: Bundle) -> list[Calibration]:
    """The complete ones: what tells pictures that the model has by heart."""
    from tintype.trust.thresholds import calibrations_of

    return [each for each in calibrations_of(bundle).calibrations if each.is_complete]


def _licence_of(bundle: Bundle | BesideModels) -> str:
    from tintype.bundle.licence import is_accepted, is_binding

    licence = bundle.manifest.licence
    if not is_binding(licence):
        return licence
    return f"{licence}, {'accepted' if is_accepted(bundle) else f'to accept: tintype licence accept {bundle.folder}'}"


def _bytes_of(bundle: Bundle, graph_file: str) -> int:
    """A graph with its external data: everything that lies in the folder of the graph."""
    folder = PurePosixPath(graph_file).parent
    return sum(facts.bytes for file, facts in bundle.manifest.files.items() if PurePosixPath(file).parent == folder)


def _machine() -> dict[str, Any]:
    """What would run it. An onnxruntime that is missing or doubled is told, not raised: info is how people find out."""
    from importlib.metadata import version

    from tintype.engine import default_threads, ort_version, resolve_provider
    from tintype.engine.device.machine import cpu_name, processor_kind, system_name

    found: dict[str, Any] = {
        "tintype": version("tintype"),
        "python": platform.python_version(),
        "system": system_name(),
        "processor": {"name": cpu_name(), "kind": processor_kind()},
        "threads": default_threads(),
        "onnxruntime": None,
        "provider": None,
        "problem": None,
    }
    try:
        found["onnxruntime"] = ort_version()
        found["provider"] = resolve_provider("auto").name
    except TintypeError as error:
        found["problem"] = {"message": error.message, "fix": error.fix}
    return found


def _machine_rows(machine: dict[str, Any]) -> list[tuple[str, str]]:
    processor = machine["processor"]
    rows = [
        ("machine", f"{machine['system']}, Python {machine['python']}, {machine['threads']} threads"),
        ("processor", f"{processor['name']} ({processor['kind']})"),
    ]
    if machine["problem"]:
        return [*rows, ("onnxruntime", machine["problem"]["message"]), ("fix", machine["problem"]["fix"])]
    return [
        *rows,
        ("runs on", f"{machine['provider']}, onnxruntime {machine['onnxruntime']}, tintype {machine['tintype']}"),
    ]
