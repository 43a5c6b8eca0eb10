"""What strangers' bytes are given to, a function a door: each opens a file as the product does.

A door may raise TintypeError, and nothing else. What is found beyond that is the judge's business, in `judge_process`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
POSTCARD = ROOT / "models/postcard/bundle"
CHECKPOINT = ROOT / "models/postcard/checkpoint"
BUILD_KEY = "0123456789abcdef01234567"
CONFIGS = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Scratch:
    """A folder in which doors may do as they like, and what they share."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @functools.cached_property
    def bundle(self) -> Path:
        return Path(shutil.copytree(POSTCARD, self.folder / "bundle"))

    @functools.cached_property
    def pipeline(self) -> Any:
        import tintype

        return tintype.load("postcard", provider="cpu", threads=1)

    @functools.cached_property
    def onnx_folder(self) -> Path:
        """A folder as optimum exports it, but for its graphs, which are all the same small one."""
        from small_encoder import WIDTH, WORDS, small_encoder

        folder = self.folder / "onnx-folder"
        for name in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKPOINT / name, folder / name)
        for name in ("text_encoder", "unet", "vae_decoder"):
            (folder / name).mkdir()
            config = json.loads((CHECKPOINT / name.removesuffix("_decoder") / "config.json").read_text())
            if name == "unet":
                config["cross_attention_dim"] = WIDTH
            if name == "text_encoder":
                config |= {"hidden_size": WIDTH, "num_hidden_layers": 1, "vocab_size": WORDS}
            (folder / name / "config.json").write_text(json.dumps(config))
            (folder / name / "model.onnx").write_bytes(small_encoder().SerializeToString())
        return folder

    def checkpoint(self) -> Path:
        """A checkpoint with the configs of postcard's, and files without a byte for its weights."""
        folder = self.folder / "checkpoint"
        for source in sorted(CHECKPOINT.rglob("*")):
            place = folder / source.relative_to(CHECKPOINT)
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".safetensors":
                place.write_bytes(b"")
            elif source.is_file():
                shutil.copyfile(source, place)
        return folder


Door = Callable[[Path, Scratch], object]


def manifest(path: Path, scratch: Scratch) -> None:
    """tintype.json: opened with all files that it names, and asked for a picture by its defaults."""
    shutil.copyfile(path, scratch.bundle / "tintype.json")
    try:
        _use_bundle(scratch)
    finally:
        shutil.copyfile(POSTCARD / "tintype.json", scratch.bundle / "tintype.json")


def _use_bundle(scratch: Scratch) -> Any:
    """Open the scratch bundle, and go as far towards a picture as goes without running a graph."""
    from tintype.bundle import open_bundle
    from tintype.engine import resolve_provider
    from tintype.pipeline import Pipeline

    shutil.rmtree(scratch.cache / "checked", ignore_errors=True)
    pipeline = Pipeline(open_bundle(scratch.bundle), resolve_provider("cpu"), threads=1)
    pipeline.steps("a (red:1.2) house, [small] BREAK at night", seed=1).close()
    return pipeline


@contextlib.contextmanager
def _in_bundle(path: Path, name: str, scratch: Scratch) -> Iterator[None]:
    """The scratch bundle with a file of it replaced, and a manifest that agrees."""
    import dataclasses

    from tintype.bundle import FileFacts, read_manifest, write_manifest
    from tintype.files import sha256_of

    shutil.copyfile(path, scratch.bundle / name)
    known, _ = read_manifest(POSTCARD)
    facts = FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
    write_manifest(scratch.bundle, dataclasses.replace(known, files={**known.files, name: facts}))
    try:
        yield
    finally:
        for each in (name, "tintype.json"):
            shutil.copyfile(POSTCARD / each, scratch.bundle / each)


def scheduler(path: Path, scratch: Scratch) -> None:
    """scheduler_config.json: opened within a bundle, and every sampler's schedule made of it."""
    from tintype.errors import RequestError
    from tintype.sampling import SAMPLERS, make_schedule

    with _in_bundle(path, "scheduler/scheduler_config.json", scratch):
        config = _use_bundle(scratch).model.scheduler
        for sampler in SAMPLERS:
            with contextlib.suppress(RequestError):
                make_schedule(config, sampler, 4)


def tokenizer(path: Path, scratch: Scratch) -> None:
    """tokenizer.json: opened within a bundle, and prompts read by it."""
    from tintype.errors import RequestError
    from tintype.prompt import encode_prompt

    with _in_bundle(path, "tokenizer/tokenizer.json", scratch):
        (opened,) = _use_bundle(scratch).model.tokenizers().values()
        for prompt in ("", "a red house, " * 200, "\u0130\u0301\U0001f600 \ufb03 1234 \x00", "  'll <|endoftext|> "):
            with contextlib.suppress(RequestError):
                encode_prompt(opened, prompt)


def graph(path: Path, scratch: Scratch) -> None:
    """An .onnx file, scanned within a bundle."""
    with _in_bundle(path, "text_encoder/model.onnx", scratch):
        _use_bundle(scratch)


def record(path: Path, scratch: Scratch) -> None:
    """A record's JSON, and the run that would make its picture again."""
    from tintype.record import parse_record

    _make_again(parse_record(path.read_bytes().decode("utf-8", "replace")), scratch)


def _make_again(known: Any, scratch: Scratch) -> None:
    scratch.pipeline.reproduce_steps(known, anyway=True).close()
    known.texts()


def record_png(path: Path, scratch: Scratch) -> None:
    """A PNG that may hold a record, and the run that would make its picture again."""
    from tintype.record import read_record

    _make_again(read_record(path), scratch)


def like(path: Path, scratch: Scratch) -> None:
    """A picture of another tool's, and the run that would draw one like it."""
    import tintype

    found = tintype.like(path).for_bundle(scratch.pipeline.bundle)
    scratch.pipeline.steps(found.request()).close()


def latents(path: Path, scratch: Scratch) -> None:
    """Latents with their records, up to their decoding, which needs builds."""
    from tintype.record.latents_file import read_latents

    next(scratch.pipeline.resume_pictures(read_latents(path), anyway=True))


def embedding(path: Path, scratch: Scratch) -> None:
    """A file of textual inversion, up to the token ids of its word."""
    scratch.pipeline.steps(f"a ({path.stem}:1.2) boat", seed=1, embeddings=[path]).close()


def control_manifest(path: Path, scratch: Scratch) -> None:
    """tintype.json of a ControlNet or a T2I-Adapter, and what follows from it."""
    from tintype.bundle.bundle import read_manifest_as
    from tintype.bundle.controlnet import CONTROLNET, ControlManifest, ControlNet
    from tintype.bundle.one_graph import family_beside
    from tintype.bundle.t2i_adapter import T2I_ADAPTER, AdapterManifest, T2IAdapter
    from tintype.families.control import residual_shapes

    folder = scratch.folder / "control"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / "tintype.json")
    if family_beside(folder) == T2I_ADAPTER:
        adapter = T2IAdapter(folder, *read_manifest_as(folder, AdapterManifest))
        assert all(size > 0 for _, *sizes in adapter.manifest.sizes(1024, 1024) for size in sizes)
        adapter.graph_path(T2I_ADAPTER)
        return
    net = ControlNet(folder, *read_manifest_as(folder, ControlManifest))
    residual_shapes(net, 1, 64, 64)
    net.graph_path(CONTROLNET)


def noise(path: Path, scratch: Scratch) -> None:
    """An .npy file as the noise of a request."""
    from tintype.request import Request

    scratch.pipeline.resolve(Request(prompt="", latents=path))


def prompt(path: Path, scratch: Scratch) -> None:
    """A prompt, positive and negative."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    scratch.pipeline.steps(text, seed=1, guidance_scale=1.0).close()
    scratch.pipeline.steps("", negative_prompt=text, seed=1).close()


def policy(path: Path, scratch: Scratch) -> None:
    """An operator's policy on words, and an ordinary prompt that is held against it."""
    from tintype.trust.policy import read_policy

    read_policy(path).rules_met(["A red, (p1rate) s h i p & нос; walk-the-plank " * 20])


def ordinary(path: Path, scratch: Scratch) -> None:
    """A file of ordinary prompts."""
    from tintype.trust.ordinary import read_prompts

    read_prompts(path)


def words(path: Path, scratch: Scratch) -> None:
    """A prompt that is held against the policy that comes along."""
    from tintype.trust.policy import read_policy

    read_policy("strict").rules_met([path.read_bytes().decode("utf-8", "replace")[:65536]])


def safetensors(path: Path, scratch: Scratch) -> None:
    """A checkpoint's weights, as export reads them."""
    from tintype.export.checkpoint import load, open_checkpoint

    folder = scratch.checkpoint()
    shutil.copyfile(path, folder / "text_encoder/model.safetensors")
    load(open_checkpoint(folder), "text_encoder")


def lora(path: Path, scratch: Scratch) -> None:
    """A LoRA: read whole, fitted to postcard's layers, and what its graphs are told of it, or why it doesn't fit."""
    from tintype.request import Request

    place = scratch.folder / "lora.safetensors"
    shutil.copyfile(path, place)
    (scratch.folder / "adapter_config.json").write_text('{"lora_alpha": 2, "alpha_pattern": {"to_q": 3}}')  # PEFT's
    model = scratch.pipeline.model
    request = scratch.pipeline.resolve(Request(prompt="a house", loras=[f"{place}=0.5,down=0.5"]))
    fitted = model.fitted(request)
    for role in fitted.by_role:
        fitted.inputs(role, 0.5)


def ip_adapter(path: Path, scratch: Scratch) -> None:
    """An IP-Adapter: read whole, what it makes of a picture, and whether it fits postcard's cross-attentions."""
    from tintype.adapters.image_projection import image_tokens, keys_and_values
    from tintype.adapters.ip_adapter import BASE, open_ip_adapter
    from tintype.families.image_prompts import demand_fitting

    place = scratch.folder / "ip-adapter.safetensors"
    shutil.copyfile(path, place)
    file = open_ip_adapter(place)
    features = np.ones((1, file.encoder) if file.kind == BASE else (1, 17, file.encoder), np.float32)
    with np.errstate(all="ignore"):  # finite weights may grow beyond all numbers, which the denoiser's door refuses
        for _ in keys_and_values(file, image_tokens(file, features)):
            pass
    demand_fitting(file, {"down_blocks.0": (64, 128)}, "postcard")


def image_encoder_manifest(path: Path, scratch: Scratch) -> None:
    """tintype.json of an image encoder, and what follows from it."""
    from tintype.bundle.bundle import read_manifest_as
    from tintype.bundle.image_encoder import ImageEncoder, ImageEncoderManifest
    from tintype.uses import IMAGE_ENCODER

    folder = scratch.folder / "image-encoder"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / "tintype.json")
    encoder = ImageEncoder(folder, *read_manifest_as(folder, ImageEncoderManifest))
    encoder.graph_path(IMAGE_ENCODER)
    assert encoder.manifest.side * encoder.manifest.embedding * encoder.manifest.states[0] > 0


def one_file(path: Path, scratch: Scratch) -> None:
    """A checkpoint in one file: what it is told to be, and the configs that are made of its shapes."""
    from tintype.export.checkpoint import demand_tensors, open_checkpoint
    from tintype.export.sources.source import SourceOptions
    from tintype.sources.facts import describe

    place = scratch.folder / "one.safetensors"  # a hostile file may have any name; its door reads this ending
    shutil.copyfile(path, place)
    describe(place)
    found = open_checkpoint(place, SourceOptions(tokenizer=CHECKPOINT))
    for component in found.family.components:
        found.fp32_bytes(component)
    for component in found.family.components:
        demand_tensors(found, component)


def onnx_folder(path: Path, scratch: Scratch) -> None:
    """The graph of a text encoder in a folder as optimum exports it: what it is told to be, and the canonical graph."""
    from tintype.export.checkpoint import open_checkpoint
    from tintype.export.converting import rewritten, role_plan
    from tintype.sources.facts import describe

    shutil.copyfile(path, scratch.onnx_folder / "text_encoder/model.onnx")
    describe(scratch.onnx_folder)
    found = open_checkpoint(scratch.onnx_folder)
    for component in found.components:
        found.fp32_bytes(component)
    rewritten(found.source.graphs["text_encoder"].path, role_plan(found, "text_encoder"))


def checkpoint(path: Path, scratch: Scratch) -> None:
    """A checkpoint's JSON files, as one object with a value each; what isn't such an object is its index."""
    from tintype.export.checkpoint import open_checkpoint
    from tintype.export.defaults import usual_request
    from tintype.sources.licence import read_licence

    folder, content = scratch.checkpoint(), path.read_bytes()
    files: dict[str, Any] = {}
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        files = dict(json.loads(content))
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    if index in files:
        (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    known = {name: value for name, value in files.items() if name in (*CONFIGS, index)}
    try:
        for name, value in known.items():
            (folder / name).write_text(json.dumps(value))
        if not known:
            (folder / "model_index.json").write_bytes(content)
        found = open_checkpoint(folder)
        for name in ("prediction_type", "vae_scale_factor", "latent_multiple", "latent_size", "is_inpainting",
                     "force_zeros_for_empty_prompt", "takes_picture", "components", "scaling_factor",
                     "guidance_embedding"):  # fmt: skip
            getattr(found, name)
        usual_request(found)
        found.text_limits("text_encoder")
        read_licence(folder)
    finally:
        (folder / index).unlink(missing_ok=True)


CACHED = (
    b"build.json",
    b"parts.json",
    b"strips.json",
    b"costs.json",
    b"table",
    b"corrections",
    b"analysis",
    b"verdict",
    b"memorisation",
)


def cache(path: Path, scratch: Scratch) -> None:
    """A JSON file of the cache; its first line says which, and so who reads it."""
    from tintype import strict_json
    from tintype.bundle.verify import _read_verdict
    from tintype.cli.calibrate import describe
    from tintype.cli.explain import explanation
    from tintype.costs import GraphFacts
    from tintype.engine.build import cache as builds
    from tintype.engine.build.explain import explained
    from tintype.engine.build.measure import CostTable
    from tintype.engine.build.probe import _stored
    from tintype.files import read_cached
    from tintype.memory.corrections import Corrections
    from tintype.request import Request
    from tintype.trust.thresholds import read_calibrations

    name, _, content = path.read_bytes().partition(b"\n")
    name = name if name in CACHED else CACHED[0]
    folder = scratch.cache / "builds" / BUILD_KEY
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / name.decode()
    file.write_bytes(content)
    if name == b"costs.json":
        _stored(file)
    elif name == b"table":
        CostTable.read(file)
    elif name == b"corrections":
        corrections = Corrections.read(file)
        for place in corrections.factors:
            corrections.factor(place, "other")
    elif name == b"analysis":
        with contextlib.suppress(OSError, ValueError):  # as `analysis_of` does
            strict_json.read(GraphFacts, strict_json.parse(read_cached(file)))
    elif name == b"verdict":
        _read_verdict(file)
    elif name == b"memorisation":
        bundle = scratch.pipeline.bundle
        known = read_calibrations(file, bundle)
        known.for_request(scratch.pipeline.resolve(Request(prompt="")))
        list(map(describe, known.calibrations))
    else:
        builds.damage(folder)
        builds.cache_entries()
        list(explanation(explained(builds.read_report(folder))))


def picture(path: Path, scratch: Scratch) -> None:
    """A picture to begin with, and to be verified."""
    import tintype
    from tintype.image.source import open_picture, picture_bytes_hash

    picture_bytes_hash(open_picture(path, background="#102030"))
    tintype.verify(path)


def credentials(path: Path, scratch: Scratch) -> None:
    """What a picture's file has signed; without the extra c2pa no more than whether it has."""
    from tintype.trust.credential_reading import read_credentials

    found = read_credentials(path, "")
    if any(not each.isprintable() for each in (found.signer or "", *found.actions, *found.problems)):
        raise AssertionError("a control character is shown")


def mask(path: Path, scratch: Scratch) -> None:
    """A mask."""
    from tintype.image.mask import open_mask, prepare_mask

    prepare_mask(open_mask(path), grow=3, blur=2.0)


def command(path: Path, scratch: Scratch) -> tuple[int, str]:
    """A command line, as a JSON list of texts; returns its exit code, and what it wrote. It starts no process."""
    from tintype.cli import run

    try:
        line = [str(each) for each in json.loads(path.read_bytes())]
    except (ValueError, TypeError, RecursionError):
        line = [path.read_bytes().decode("utf-8", "surrogateescape")]
    place = scratch.folder / "here"
    place.mkdir(exist_ok=True)
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    before = Path.cwd()
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            code = run([each.replace("\0", "") for each in line])
    finally:
        os.chdir(before)
    if code not in (0, 1, 2, 3):
        raise AssertionError(f"exit code {code}")
    return code, written.buffer.getvalue().decode()  # type: ignore[attr-defined]


DOORS: dict[str, Door] = {
    each.__name__.replace("_", "-"): each
    for each in (
        manifest, control_manifest, image_encoder_manifest, scheduler, tokenizer, graph, record, record_png, like,
        latents, embedding, noise, prompt, policy, ordinary, words, safetensors, lora, ip_adapter, one_file,
        onnx_folder, checkpoint, cache, picture, credentials, mask, command,
    )
}  # fmt: skip


def beside(door: str, path: Path) -> tuple[int, float]:
    """Bytes and seconds that a door may take for pixels, latents and weights beside its bounds."""
    size = path.stat().st_size
    if door in ("lora", "ip-adapter"):  # hashed, judged, and what it is made of once more
        return 64 * 2**20 + 8 * size, 0.5 + size / 2**28
    if door in ("latents", "noise", "safetensors"):
        return 6 * size, size / 2**28
    if door == "cache":
        return 3 * size, size / 2**28  # the door itself reads and writes it
    if door in ("picture", "credentials", "mask", "record-png", "like"):
        from PIL import Image

        with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception), Image.open(path) as image:
            pixels = min(image.width * image.height, 2**26)
            return 16 * pixels + 2 * size, pixels / 2**24 + size / 2**28
    return 0, 0.0
