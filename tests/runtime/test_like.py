"""A picture of another tool becomes a request of ours as far as it can; what can't is said; hostile files are refused.

The texts are as the tools write them: A1111's parameters, ComfyUI's graphs in its API's format.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from deadline import deadline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import tintype
from tintype.bounds import MAX_GRAPH_NODES
from tintype.cli.generate import generate
from tintype.errors import RecordError
from tintype.image.comments import exif_comments, read_comments
from tintype.record.foreign_names import sampler_named

PROMPT = "a (castle:1.2) on a hill, <lora:add_detail:0.8>\n[dawn:dusk:0.5]"
A1111 = (
    f"{PROMPT}\nNegative prompt: blurry, (worst quality:1.4)\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 2846572913, Size: 512x768, "
    "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Clip skip: 2, "
    'Lora hashes: "add_detail: 7c6bad76eb54", ControlNet 0: "Module: canny, Weight: 1", Version: v1.10.1'
)
HIRES = (
    "a castle\nSteps: 30, Sampler: Euler a, CFG scale: 5.5, Seed: 1, Size: 512x512, Denoising strength: 0.4, RNG: CPU, "
    "Hires upscale: 2, Hires steps: 10, Hires upscaler: R-ESRGAN 4x+, Version: v1.6.0"
)
IMAGE_TO_IMAGE = "a castle\nSteps: 30, Sampler: DDIM, CFG scale: 5.5, Seed: 1, Size: 512x512, Denoising strength: 0.4"


def graph(**changes: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's first example; changes: of nodes, by number."""
    nodes: dict[str, Any] = {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 156680208700286, "steps": 20, "cfg": 8, "sampler_name": "euler_ancestral",
                "scheduler": "normal", "denoise": 1.0, "model": ["4", 0], "positive": ["6", 0],
                "negative": ["7", 0], "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/v1-5-pruned-emaonly.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a [glass] bottle AND a galaxy", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    }  # fmt: skip
    for number, change in changes.items():
        node = nodes.setdefault(number.removeprefix("_"), {"class_type": "", "inputs": {}})
        node["class_type"] = change.pop("class_type", node["class_type"])
        node["inputs"] |= change
    return nodes


def png(folder: Path, **texts: str) -> Path:
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_itxt(keyword, text)
    path = folder / "theirs.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, pnginfo=info)
    return path


def comfy(folder: Path, nodes: Any) -> tintype.Likeness:
    return tintype.like(png(folder, prompt=nodes if isinstance(nodes, str) else json.dumps(nodes)))


def test_a1111s_parameters_become_a_request(tmp_path: Path) -> None:
    likeness = tintype.like(png(tmp_path, parameters=A1111))
    assert likeness.fields == {
        "prompt": "a (castle:1.2) on a hill, \n[dawn:dusk:0.5]",
        "negative_prompt": "blurry, (worst quality:1.4)",
        "num_inference_steps": 20,
        "seed": 2846572913,
        "guidance_scale": 7.0,
        "width": 512,
        "height": 768,
        "sampler": "dpmpp_2m",
        "sigmas": "karras",
        "noise": "philox",
    }
    assert (likeness.model, likeness.model_hash) == ("v1-5-pruned-emaonly", "6ce0161689")
    assert likeness.clip_layer is not None
    assert likeness.clip_layer.from_last == 2
    assert likeness.left_out == ("the lora add_detail at 0.8", "ControlNet 0: Module: canny, Weight: 1")


def test_a_hires_fix_and_a_picture_to_begin_with_are_told_apart(tmp_path: Path) -> None:
    likeness = tintype.like(png(tmp_path, parameters=HIRES))
    asked = {"hires": 2.0, "hires_strength": 0.4, "hires_upscale": "pixel", "noise": "torch-cpu", "sigmas": "normal"}
    assert asked.items() <= likeness.fields.items()
    assert [sentence.partition(":")[0] for sentence in likeness.left_out] == [
        "the upscaler R-ESRGAN 4x+",
        "Hires steps",
    ]
    likeness = tintype.like(png(tmp_path, parameters=IMAGE_TO_IMAGE))
    assert likeness.request().strength is None
    begun = likeness.request(image=Image.new("RGB", (8, 8)))
    assert (begun.strength, begun.sampler, begun.sigmas) == (0.4, "ddim", None)
    assert "--image FILE" in likeness.left_out[0]


def test_what_stable_diffusion_cpp_writes_is_read_too(tmp_path: Path) -> None:
    text = (
        "a castle\nNegative prompt: rain\nSteps: 20, CFG scale: 7.0, Guidance: 3.5, Seed: 42, Size: 512x512, "
        "Model: v1-5.safetensors, RNG: cuda, Sampler: euler_a, Version: stable-diffusion.cpp"
    )
    likeness = tintype.like(png(tmp_path, parameters=text))
    asked = {"sampler": "euler_a", "noise": "philox", "guidance_scale": 7.0, "negative_prompt": "rain"}
    assert asked.items() <= likeness.fields.items()
    assert likeness.left_out == ("Guidance: 3.5",)


@pytest.mark.parametrize(("kind", "order"), [("JPEG", "utf-16-be"), ("WEBP", "utf-16-be"), ("JPEG", "utf-16-le")])
def test_comments_in_exif_are_read_whatever_their_order_is(tmp_path: Path, kind: str, order: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode(order)
    path = tmp_path / "theirs.picture"
    Image.new("RGB", (8, 8)).save(path, format=kind, exif=exif)
    assert read_comments(path) == {"parameters": A1111}
    assert tintype.like(path).fields["seed"] == 2846572913


def test_comfyuis_graph_in_a_webp_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(graph())}"
    path = tmp_path / "theirs.webp"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    assert tintype.like(path).fields["num_inference_steps"] == 20


def test_comfyuis_graph_becomes_a_request(tmp_path: Path) -> None:
    likeness = comfy(tmp_path, graph())
    assert likeness.fields == {
        "prompt": r"a \[glass\] bottle and a galaxy",
        "negative_prompt": "text, watermark",
        "seed": 156680208700286,
        "num_inference_steps": 20,
        "guidance_scale": 8,
        "sampler": "euler_a",
        "sigmas": "normal",
        "width": 512,
        "height": 640,
        "noise": "torch-cpu",
    }
    assert likeness.model == "v1-5-pruned-emaonly"
    assert (likeness.left_out, likeness.clip_layer, likeness.of_image) == ((), None, {})


def test_links_are_followed_through_loras_layers_and_values(tmp_path: Path) -> None:
    nodes = graph(
        _3={"model": ["10", 0], "seed": ["13", 0], "positive": ["12", 0]},
        _10={"class_type": "LoraLoader", "model": ["4", 0], "clip": ["4", 1], "lora_name": "x.safetensors",
             "strength_model": 0.7},
        _6={"clip": ["11", 0], "text": ["14", 0]},
        _11={"class_type": "CLIPSetLastLayer", "stop_at_clip_layer": -2, "clip": ["10", 1]},
        _12={"class_type": "ConditioningCombine", "conditioning_1": ["15", 0], "conditioning_2": ["7", 0]},
        _13={"class_type": "PrimitiveInt", "value": 7},
        _14={"class_type": "String", "text": "a boat, embedding:nice"},
        _15={"class_type": "ControlNetApply", "conditioning": ["6", 0], "control_net": ["16", 0], "image": ["17", 0]},
        _18={"class_type": "KSampler", "latent_image": ["3", 0], "steps": 10, "model": ["4", 0]},
        _8={"samples": ["18", 0]},
    )  # fmt: skip
    likeness = comfy(tmp_path, nodes)
    assert likeness.fields["seed"] == 7
    assert likeness.fields["prompt"] == "a boat, embedding:nice :0.5 AND text, watermark :0.5"
    assert likeness.clip_layer is not None
    assert likeness.clip_layer.from_last == 2
    told = " ".join(likeness.left_out)
    for word in ("the lora x.safetensors at 0.7", "ControlNetApply", "textual inversion nice", "further KSampler"):
        assert word in told


def test_an_advanced_sampler_and_a_picture_to_begin_with(tmp_path: Path) -> None:
    nodes = graph(
        _3={"class_type": "KSamplerAdvanced", "noise_seed": 5, "start_at_step": 0, "end_at_step": 10,
            "latent_image": ["10", 0], "denoise": 0.5},
        _10={"class_type": "VAEEncode", "pixels": ["11", 0]},
        _11={"class_type": "LoadImage", "image": "x.png"},
    )  # fmt: skip
    nodes["8"]["is_changed"] = [float("nan")]  # as ComfyUI writes it
    likeness = comfy(tmp_path, nodes)
    assert likeness.fields["seed"] == 5
    assert "width" not in likeness.fields
    assert likeness.of_image == {"strength": 0.5, "num_inference_steps": 40}
    assert [sentence.partition(" ")[0] for sentence in likeness.left_out] == ["steps", "the"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with tintype.load("postcard", provider="cpu", threads=1) as pipeline:
        made = pipeline.generate("a [red|blue] boat", seed=3, count=2, num_inference_steps=2, width=64, height=64)
    folder = tmp_path_factory.mktemp("ours")
    made.save(folder / "boat.png")
    return folder / "boat-2.png"


def test_our_own_record_becomes_the_request_of_that_picture(ours: Path) -> None:
    record, likeness = tintype.read_record(ours), tintype.like(ours)
    with tintype.load("postcard", provider="cpu", threads=1) as pipeline:
        again = pipeline.generate(likeness.for_bundle(pipeline.bundle).request())
        assert likeness.for_bundle(pipeline.bundle).left_out == ()
    assert again.record.seed == record.seed == 4
    assert again.image.tobytes() == Image.open(ours).tobytes()


def test_what_we_write_for_a1111_is_read_as_the_same_request(ours: Path, tmp_path: Path) -> None:
    text = read_comments(ours)["parameters"]
    alone = tintype.like(png(tmp_path, parameters=text))
    known = tintype.read_record(ours).request
    for name in ("prompt", "num_inference_steps", "guidance_scale", "width", "height", "sampler", "noise"):
        assert alone.fields[name] == getattr(known, name), name
    assert alone.fields["seed"] == 4
    with tintype.load("postcard", provider="cpu") as pipeline:
        assert alone.for_bundle(pipeline.bundle).left_out == ()


def test_layers_are_counted_as_the_tool_and_the_family_count(
    tiny_bundle: Path, xl_bundle: Path, tmp_path: Path
) -> None:
    theirs = tintype.like(png(tmp_path, parameters=A1111))
    layer = graph(_6={"clip": ["11", 0]}, _11={"class_type": "CLIPSetLastLayer", "stop_at_clip_layer": -3})
    comfyui = comfy(tmp_path, layer)
    for folder, skips in ((tiny_bundle, (1, 2)), (xl_bundle, (None, 1))):
        bundle = tintype.open_bundle(folder)
        found = [each.for_bundle(bundle) for each in (theirs, comfyui)]
        assert tuple(each.fields.get("clip_skip") for each in found) == skips
        assert any(sentence.startswith("the model v1-5") for sentence in found[0].left_out)
    older = theirs.for_bundle(tintype.open_bundle("postcard"))
    assert "clip_skip" not in older.fields
    assert any("export the checkpoint again" in sentence for sentence in older.left_out)


def test_the_command_draws_it_says_what_is_missing_and_goes_by_what_was_typed(tmp_path: Path) -> None:
    path, out = png(tmp_path, parameters=A1111), tmp_path / "ours.png"
    asked = ["--like", str(path), "-o", str(out), "--num-inference-steps", "1", "--size", "64x64", "--sampler", "euler"]
    done = CliRunner().invoke(generate, ["a boat", *asked])
    assert done.exit_code == 0, done.output
    request = tintype.read_record(out).request
    assert (request.prompt, request.num_inference_steps, request.width, request.sampler) == ("a boat", 1, 64, "euler")
    assert (request.seed, request.guidance_scale, request.sigmas) == (2846572913, 7.0, None)
    lines = [line for line in done.stderr.splitlines() if line.startswith("not taken: ")]
    assert len(lines) == 4
    assert any("the lora add_detail at 0.8" in line for line in lines)
    assert any("the model v1-5-pruned-emaonly, 6ce0161689: this is postcard" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "schedule", "expected"),
    [
        ("DPM++ 2M Karras", None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE", "Automatic", ("dpmpp_2m_sde", "exponential")),
        ("Euler a", None, ("euler_a", "normal")),
        ("DDIM", None, ("ddim", None)),
        ("PLMS", "Automatic", ("pndm", None)),
        ("dpmpp_2m_sde_gpu", "karras", ("dpmpp_2m_sde", "karras")),
        ("euler_ancestral_cfg_pp", "normal", ("euler_a_cfg_pp", "normal")),
        ("uni_pc_bh2", "normal", ("unipc_bh2", "normal")),
        ("dpmpp_2m", "discrete", ("dpmpp_2m", "normal")),
        ("no such", "karras", (None, None)),
    ],
)
def test_names_of_samplers(name: str, schedule: str | None, expected: tuple[str | None, str | None]) -> None:
    named = sampler_named(name, schedule)
    assert (named.sampler, named.sigmas) == expected
    assert bool(named.left_out) == (expected[0] is None)


CIRCLE = graph(_3={"model": ["3", 0], "positive": ["10", 0], "latent_image": ["3", 0], "seed": ["10", 0]},
               _10={"class_type": "X", "conditioning": ["10", 0], "value": ["10", 0]})  # fmt: skip
CHAIN = {str(n): {"class_type": "ConditioningCombine",
                  "inputs": {"conditioning_1": [str(n + 1), 0], "conditioning_2": [str(n + 2), 0], "images": ["a", 0]}}
         for n in range(MAX_GRAPH_NODES - 1)}  # fmt: skip
CHAIN["a"] = {"class_type": "KSampler", "inputs": {"positive": ["0", 0], "model": ["0", 0]}}
FACTS = "x\n" + ", ".join(f"Key {n}: {n}" for n in range(10_000))


def test_a_graph_may_go_in_a_circle(tmp_path: Path) -> None:
    with deadline():
        likeness = comfy(tmp_path, CIRCLE)
        assert likeness.fields["prompt"] == ""
        assert any(sentence.startswith("seed:") for sentence in likeness.left_out)
        assert len(comfy(tmp_path, CHAIN).left_out) <= 41
        assert len(tintype.like(png(tmp_path, parameters=FACTS)).left_out) == 41


HOSTILE: dict[str, dict[str, str]] = {
    "nothing": {},
    "a drawing alone": {"workflow": "{}"},
    "no parameters": {"parameters": "a house"},
    "long parameters": {"parameters": "a" * 2**19},
    "commas": {"parameters": "a: b, c: d\n" + "a " * 100_000},
    "quotes": {"parameters": "x\n" + 'k:"\\"' * 50_000},
    "no graph": {"prompt": "a house"},
    "a list": {"prompt": "[]"},
    "no sampler": {"prompt": json.dumps({"1": {"class_type": "SamplerCustom", "inputs": {}}})},
    "no nodes": {"prompt": json.dumps({"1": 5, "2": {"class_type": 5}, "3": {"class_type": "KSampler", "inputs": []}})},
    "many nodes": {"prompt": json.dumps({str(n): {"class_type": "KSampler"} for n in range(MAX_GRAPH_NODES + 1)})},
    "deep": {"prompt": "[" * 100_000},
    "a record that is none": {"tintype": "{}", "parameters": A1111},
}


@pytest.mark.parametrize("texts", HOSTILE.values(), ids=HOSTILE)
def test_what_says_nothing_of_use_is_refused(tmp_path: Path, texts: dict[str, str]) -> None:
    with deadline(), pytest.raises(RecordError) as caught:
        tintype.like(png(tmp_path, **texts))
    assert caught.value.fix


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"\xff\xd8\xff\xe1", b"RIFF\xff\xff\xff\xffWEBPEXIF", b"\x89PNG\r\n\x1a\n"]
)
def test_files_that_are_no_pictures_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    for each in (content, content + b"\xff" * 1000):
        path.write_bytes(each)
        with pytest.raises(RecordError) as caught:
            tintype.like(path)
        assert caught.value.fix
    for nowhere in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(RecordError):
            tintype.like(nowhere)


def test_entries_that_overlap_are_read_once() -> None:
    entries = b"".join(struct.pack("<HHII", 0x9286, 7, 2**20, 8) for _ in range(4000))
    inner = struct.pack("<H", 4000) + entries
    start = 8 + 2 + 12
    outer = struct.pack("<H", 1) + struct.pack("<HHII", 0x8769, 4, 1, start)
    block = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + outer + inner + b"a" * 2**20
    with deadline():
        assert set(exif_comments(block)) == {"parameters"}
    for cut in range(60):
        exif_comments(block[:cut])
    assert exif_comments(io.BytesIO(b"junk").getvalue()) == {}
