"""What each door is usually given: real files of the embedded model, and what the product itself writes."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from doors import CHECKPOINT, CONFIGS, POSTCARD
from small_ip_adapters import small_ip_adapters

Seeds = tuple[bytes, ...]


def manifests() -> Seeds:
    text = (POSTCARD / "tintype.json").read_bytes()
    value = json.loads(text)
    del value["digest"]  # as older ones are: what is changed in it is then read
    return json.dumps(value).encode(), text


def schedulers() -> Seeds:
    text = (POSTCARD / "scheduler/scheduler_config.json").read_bytes()
    value = json.loads(text)
    names = ("linear", "scaled_linear", "squaredcos_cap_v2")
    more = [{**value, "beta_schedule": name, "rescale_betas_zero_snr": True, "steps_offset": 1} for name in names]
    trained = {**value, "num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.3, 0.4], "beta_schedule": "linear"}
    return text, *(json.dumps(each).encode() for each in (*more, trained))


def tokenizers() -> Seeds:
    text = (POSTCARD / "tokenizer/tokenizer.json").read_bytes()
    small: dict[str, Any] = {"version": "1.0", "added_tokens": [], "normalizer": {"type": "NFC"}, "decoder": None}
    small |= {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}]},
        "post_processor": {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1, "</s>": 2, "red": 3}, "unk_token": "a"},
    }
    replaced = [{"type": "Replace", "pattern": {"String": "a"}, "content": "bb"}, {"type": "Lowercase"}]
    unigram = {
        **small,
        "normalizer": {"type": "Sequence", "normalizers": replaced},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["\u2581a", -1.5], ["b", -2.0]]},
    }
    pairs = {
        **small,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<u>": 3}, "merges": ["a b"], "unk_token": "<u>",
            "dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
        },
    }  # fmt: skip
    return text, *(json.dumps(each).encode() for each in (small, unigram, pairs))


def graphs() -> Seeds:
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    value = helper.make_tensor_value_info
    small = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        "g", [value("x", TensorProto.FLOAT, ["n", 2])], [value("y", TensorProto.FLOAT, ["n", 2])], [weight],
        value_info=[value("z", TensorProto.INT64, ["height/2"])],
    )  # fmt: skip
    return onnx.ModelProto.SerializeToString(helper.make_model(small)), (
        POSTCARD / "text_encoder/model.onnx"
    ).read_bytes()


def onnx_encoders() -> Seeds:
    from small_encoder import small_encoder

    return tuple(small_encoder(opset).SerializeToString() for opset in (17, 14))


def _records() -> list[Any]:
    import dataclasses

    from tintype.bundle import open_bundle
    from tintype.record import Provenance, Record
    from tintype.request import Request, resolve
    from tintype.request.inputs import InitImage, Mask

    bundle = open_bundle("postcard")
    made_with = Provenance(
        tintype="0.1.0", onnxruntime="1.23.0", bundle="postcard", bundle_hash=bundle.hash, precision="int8",
        target="cpu", builds={"denoiser": "0" * 24}, threads=2, modes={"vae_decoder": "strips of 4 MiB"},
        kernels={"denoiser": "timed"},
    )  # fmt: skip
    asked = {"prompt": "a red (house:1.2)", "seed": 7, "num_inference_steps": 2}
    plain, large = (
        resolve(Request(**{**asked, **more}), bundle.manifest)
        for more in ({}, {"hires": 2.0, "width": 64, "height": 64, "sampler": "dpmpp_sde", "eta": 0.5})
    )
    image = InitImage(sha256="0" * 64, width=64, height=64, strength=0.5, fit="crop", background="white")
    cut = Mask(sha256="1" * 64, grow=2, blur=1.0, keep_outside="model")
    edited = dataclasses.replace(plain, image=image, mask=cut)
    return [Record(request=each, picture=0, made_with=made_with) for each in (plain, large, edited)]


def records() -> Seeds:
    texts = [known.texts()["tintype"] for known in _records()]
    first = {**json.loads(texts[0]), "record_version": 1, "tiling": {"tile": 32, "overlap": 8, "multiple": 1}}
    first["made_with"] |= {"holdings": {"denoiser": "packed"}}
    return *(text.encode() for text in texts), json.dumps(first).encode()


def pngs_with_records() -> Seeds:
    from PIL import Image

    from tintype.image.png import write_png

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for known in _records()[:2]:
            path = write_png(Path(folder, "x.png"), Image.new("RGB", (8, 8), "red"), known.texts())
            found.append(path.read_bytes())
    return tuple(found)


PARAMETERS = (
    "a (house:1.2) <lora:x:0.8>, [a|b]\nNegative prompt: rain\nSteps: 4, Sampler: DPM++ 2M, Schedule type: Karras, "
    "CFG scale: 5, Seed: 7, Size: 64x64, Model hash: 0123abcdef, Model: x, Clip skip: 2, Denoising strength: 0.5, "
    'Hires upscale: 2, Hires upscaler: Latent, RNG: CPU, Extra: "a, b: \\"c\\"", Version: v1.10.1'
)
GRAPH = {
    "1": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "karras", "denoise": 0.5,
            "model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0],
        },
    },
    "2": {"class_type": "LoraLoader", "inputs": {"model": ["6", 0], "lora_name": "x", "strength_model": 0.5}},
    "3": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["4", 0], "conditioning_2": ["7", 0]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a [house]", "clip": ["8", 0]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": ["9", 0], "batch_size": 2}},
    "6": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0], "clip": ["6", 1]}},
    "8": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["6", 1]}},
    "9": {"class_type": "Primitive", "inputs": {"value": 64}},
    "10": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}  # fmt: skip


def png_with_text(keyword: str, text: bytes) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(keyword, text[: 2**22].decode("utf-8", "replace"))  # beyond the bounds, and no more
    return _saved(Image.new("RGB", (8, 8)), "PNG", {"pnginfo": info})


def pictures_of_others() -> Seeds:
    from PIL import Image

    commented, made = Image.Exif(), Image.Exif()
    commented.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PARAMETERS.encode("utf-16-be")
    made[0x0110] = f"prompt:{json.dumps(GRAPH)}"
    small = Image.new("RGB", (8, 8))
    return (
        png_with_text("parameters", PARAMETERS.encode()),
        png_with_text("prompt", json.dumps(GRAPH).encode()),
        _saved(small, "JPEG", {"exif": commented}),
        _saved(small, "WEBP", {"exif": made}),
    )


def latents_files() -> Seeds:
    import numpy as np

    from tintype.record.latents_file import save_latents

    with tempfile.TemporaryDirectory() as folder:
        path, known = Path(folder, "x.latents.safetensors"), _records()[0]
        shape = (1, 4, known.request.height // 4, known.request.width // 4)
        return (save_latents(path, np.zeros(shape, np.float32), [known]).read_bytes(),)


def embeddings() -> Seeds:
    """As A1111 writes them, and diffusers."""
    import numpy as np
    from safetensors.numpy import save

    rows = np.zeros((2, 128), np.float32)  # as wide as postcard's
    return (
        save({"emb_params": rows}),
        save({"<cat-toy>": rows[0].astype(np.float16)}),
        save({"clip_l": rows, "clip_g": rows}),
    )


def control_manifests() -> Seeds:
    words = ["batch", "sequence", 128]
    inputs = {
        "sample": ["batch", 4, "height", "width"], "timestep": [], "encoder_hidden_states": words,
        "controlnet_cond": ["batch", 3, "rows", "columns"],
    }  # fmt: skip
    outputs = {"down_block_res_sample_0": ["batch", 32, "height", "width"]}
    outputs["mid_block_res_sample"] = ["batch", 64, "height/2", "width/2"]
    ports = [
        [{"name": name, "dtype": "float32", "shape": shape} for name, shape in each.items()]
        for each in (inputs, outputs)
    ]
    file = "controlnet/model.onnx"
    graph = {"file": file, "precision": "fp32", "inputs": ports[0], "outputs": ports[1]}
    value = {
        "format_version": 1, "name": "lines", "licence": "Apache-2.0", "source": {"location": "nowhere"},
        "family": "controlnet", "controls": "stable-diffusion", "latent_channels": 4, "vae_scale_factor": 8,
        "graphs": {"controlnet": {"full": graph}}, "files": {file: {"bytes": 1, "sha256": "0" * 64}},
    }  # fmt: skip
    picture = [{"name": "adapter_cond", "dtype": "float32", "shape": ["batch", 3, "rows", "columns"]}]
    features = [
        {
            "name": f"adapter_feature_{place}",
            "dtype": "float32",
            "shape": ["batch", 32, f"rows/{cell}", f"columns/{cell}"],
        }
        for place, cell in enumerate((8, 16))
    ]
    file = "t2i_adapter/model.onnx"
    graph = {"file": file, "precision": "fp16", "inputs": picture, "outputs": features}
    adapter = {
        "format_version": 1, "name": "sketch", "licence": "Apache-2.0", "source": {"location": "nowhere"},
        "family": "t2i_adapter", "controls": "stable-diffusion-xl", "graphs": {"t2i_adapter": {"full": graph}},
        "files": {file: {"bytes": 1, "sha256": "0" * 64}},
    }  # fmt: skip
    return json.dumps(value).encode(), json.dumps(adapter).encode()


def image_encoder_manifests() -> Seeds:
    shapes = {"pixel_values": [3, 224, 224], "image_embeds": [1024], "hidden_states": [257, 1280]}
    ports = [{"name": name, "dtype": "float32", "shape": ["batch", *shape]} for name, shape in shapes.items()]
    file = "image_encoder/model.onnx"
    graph = {"file": file, "precision": "fp32", "inputs": ports[:1], "outputs": ports[1:]}
    value = {
        "format_version": 1, "name": "eyes", "licence": "Apache-2.0", "source": {"location": "nowhere"},
        "family": "image_encoder", "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28],
        "graphs": {"image_encoder": {"full": graph}}, "files": {file: {"bytes": 1, "sha256": "0" * 64}},
    }  # fmt: skip
    return (json.dumps(value).encode(),)


def noises() -> Seeds:
    import numpy as np

    found = []
    for array in (np.zeros((1, 4, 32, 32), np.float32), np.zeros((1, 4, 2, 2), ">f8", order="F"), np.zeros(3, "O")):
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        found.append(file.getvalue())
    return tuple(found)


def prompts() -> Seeds:
    texts = (
        "a red sailboat on a calm sea at sunset", "(a:1.2) [b] ((c)) \\(d\\) BREAK e", "(a:-1) (b:.5) (c:1.) (:2)",
        "[a:b:0.5] AND [c|d|e]:0.7 AND [[f::3]|(g:1.2)]",
        "\u00e9\u0301\u0130\U0001f600\u200b<|endoftext|>", ", ".join(["house"] * 80), "(" * 40 + "a" + ")" * 40,
    )  # fmt: skip
    return tuple(text.encode() for text in texts)


def weights() -> Seeds:
    file = (CHECKPOINT / "text_encoder/model.safetensors").read_bytes()
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    return join_safetensors(json.dumps(header).encode(), bytes(16)), file


def one_files() -> Seeds:
    """Headers of the smallest files that are taken for Stable Diffusion 1.x, 2.x and XL, with zeros behind them."""
    unet = {
        "input_blocks.0.0.weight": (32, 4, 3, 3), "input_blocks.1.0.in_layers.2.weight": (32, 32, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 64), "out.2.weight": (4, 32, 3, 3),
        "input_blocks.3.0.in_layers.2.weight": (64, 32, 3, 3), "output_blocks.0.0.in_layers.2.weight": (64, 128, 3, 3),
        "input_blocks.2.0.op.weight": (32, 32, 3, 3), "output_blocks.0.1.conv.weight": (64, 64, 3, 3),
        "output_blocks.1.0.in_layers.2.weight": (32, 96, 3, 3),
        "output_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 64),
        "middle_block.0.in_layers.2.weight": (64, 64, 3, 3),
    }  # fmt: skip
    vae = {
        "encoder.conv_in.weight": (32, 3, 3, 3), "encoder.down.0.block.0.conv1.weight": (32, 32, 3, 3),
        "decoder.conv_in.weight": (32, 4, 3, 3), "decoder.up.0.block.0.conv1.weight": (32, 32, 3, 3),
        "decoder.conv_out.weight": (3, 32, 3, 3), "encoder.mid.attn_1.q.weight": (32, 32, 1, 1),
    }  # fmt: skip
    clip = {
        "text_model.embeddings.token_embedding.weight": (9, 64), "text_model.encoder.layers.0.mlp.fc1.weight": (96, 64),
        "text_model.embeddings.position_embedding.weight": (77, 64),
    }  # fmt: skip
    block = "transformer.resblocks"
    open_clip = {
        "token_embedding.weight": (9, 64), "positional_embedding": (77, 64), f"{block}.0.mlp.c_fc.weight": (96, 64),
        f"{block}.0.attn.in_proj_weight": (192, 64), f"{block}.1.ln_1.weight": (64,), "text_projection": (64, 64),
    }  # fmt: skip
    words = (
        {"cond_stage_model.transformer.": clip},
        {"cond_stage_model.model.": open_clip},
        {"conditioner.embedders.0.transformer.": clip, "conditioner.embedders.1.model.": open_clip},
    )
    common = {"model.diffusion_model.": unet, "first_stage_model.": vae}
    return tuple(_zeros({**common, **encoders}) for encoders in words)


def _zeros(parts: dict[str, dict[str, tuple[int, ...]]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"modelspec.resolution": "512x512", "modelspec.license": "MIT"}}
    position = 0
    for prefix, shapes in parts.items():
        for name, shape in shapes.items():
            end = position + math.prod(shape)
            header[prefix + name] = {"dtype": "F8_E4M3", "shape": list(shape), "data_offsets": [position, end]}
            position = end
    return join_safetensors(json.dumps(header).encode(), bytes(position))


def loras() -> Seeds:
    """One of each kind, for layers that postcard has: kohya's names, diffusers' and PEFT's."""
    from safetensors.numpy import save

    numbers = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return numbers.standard_normal(shape).astype(np.float16)

    query = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # (96, 96)
    name, conv = f"lora_unet_{query.replace('.', '_')}", "lora_unet_down_blocks_0_resnets_0_conv1"  # (32, 32, 3, 3)
    alpha = np.array(2, np.float16)
    kohya = {f"{name}.lora_down.weight": drawn(4, 96), f"{name}.lora_up.weight": drawn(96, 4), f"{name}.alpha": alpha}
    locon = {
        f"{conv}.lora_down.weight": drawn(2, 32, 1, 1), f"{conv}.lora_mid.weight": drawn(2, 2, 3, 3),
        f"{conv}.lora_up.weight": drawn(32, 2, 1, 1),
    }  # fmt: skip
    parts = {"w1_a": drawn(96, 2), "w1_b": drawn(2, 96), "w2_a": drawn(96, 2), "w2_b": drawn(2, 96)}
    loha = {f"{name}.hada_{part}": array for part, array in parts.items()}
    lokr = {f"{name}.lokr_w1": drawn(4, 4), f"{name}.lokr_w2_a": drawn(24, 2), f"{name}.lokr_w2_b": drawn(2, 24)}
    diffusers = {f"unet.{query}.lora_A.weight": drawn(4, 96), f"unet.{query}.lora_B.weight": drawn(96, 4)}
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {"to_q": 3}})}
    words = "text_encoder.text_model.encoder.layers.0.mlp.fc1"  # (512, 128)
    dora = {
        f"{words}.lora_linear_layer.down.weight": drawn(2, 128), f"{words}.lora_linear_layer.up.weight": drawn(512, 2),
        f"{words}.dora_scale": drawn(512, 1),
    }  # fmt: skip
    return (
        save({**kohya, **locon}),
        save(diffusers, told),
        save(loha),
        save({**lokr, f"{name}.alpha": alpha}),
        save(dora),
        save({name.replace("unet.", "base_model.model."): each for name, each in diffusers.items()}),
    )


def split_safetensors(data: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def join_safetensors(header: bytes, rest: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


def checkpoints() -> Seeds:
    files = {name: json.loads((CHECKPOINT / name).read_bytes()) for name in CONFIGS}
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "config.json", "b": "config.json"}}
    sharded = {**files, "unet/diffusion_pytorch_model.safetensors.index.json": index}
    return json.dumps(files).encode(), json.dumps(sharded).encode()


def cache_files() -> Seeds:
    """Each with its name in front, as the door takes them."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(name.encode() + b"\n" + text.encode() for name, text in _cache_texts(Path(folder)))


def _cache_texts(folder: Path) -> Iterator[tuple[str, str]]:
    from tintype.bundle import open_bundle
    from tintype.engine.build.cache import write_facts
    from tintype.engine.build.facts import BuildIdentity
    from tintype.engine.run.chain import ChainFacts, Part, Port, write_chains
    from tintype.engine.run.strips import NormFacts, StageFacts, StripPort, StripsFacts, write_strips

    port = Port("x", "tensor(float)", (1, 4, 8, 8))
    part = Part("part0.onnx", ("x",), ("y",), ("weights",))
    write_chains(folder, {"model.onnx": ChainFacts((part,), (port,), (port,))})
    strip = StripPort("x", (1, 4, 8, 8), "float32", 1, ("mean", "square"))
    stage = StageFacts("s.onnx", ("weights",), 8, 4, 1, (strip,), (strip,), (NormFacts("x", "m", "i", 2, 1e-5),))
    write_strips(folder, StripsFacts((stage,), (port,), (port,), 2**20))
    (folder / "model.onnx").write_bytes(b"graph")
    ways = {"as it is": {"seconds": 1e-3, "weight_bytes": 4, "psnr_db": 99.0}}
    choice = {"layer": "conv", "chosen": "as it is", "ways": ways}
    identity = BuildIdentity("0" * 64, "postcard", "denoiser", "full", "cpu", "1.23", "x86", "1")
    write_facts(folder, identity, {"kernels": {"winograd": 3}, "choices": [choice], "seconds": 2.0})
    for name in ("build.json", "parts.json", "strips.json"):
        yield name, (folder / name).read_text()
    costs = {
        "peak_bytes": 2**20, "resident_bytes": 2**19, "copied_bytes": 2**18, "open_seconds": 0.1, "held_seconds": 0.0,
        "call_seconds": 0.2,
    }  # fmt: skip
    yield "costs.json", json.dumps({"format": 1, "costs": {"threads=2": costs}})
    yield "table", json.dumps({"signature": ways})
    yield "corrections", json.dumps({"rate": 1e9, "factors": {"place": {"strips": {"seconds": 1.5}}}})
    facts = ("stored_bytes", "float_bytes", "largest_bytes", "live_bytes", "multiplications")
    yield "analysis", json.dumps(dict.fromkeys(facts, 2**20))
    way = {"width": 128, "height": 128, "num_inference_steps": 20, "guidance_scale": 5.0, "sampler": "dpmpp_2m"}
    rest = {"sigmas": None, "exactness": "exact", "negative_prompt": "", "clip_skip": 0}
    scored = {"prompts": 3, "prompts_sha256": "0" * 64, "scores": [0.1, 0.2, 0.3]}
    known = {"bundle_hash": open_bundle("postcard").hash, "calibrations": [{**way, **rest, **scored}]}
    yield "memorisation", json.dumps({**known, "format_version": 1})
    yield "verdict", json.dumps({"unet/model.onnx": [422785, 1700000000000000000]})


def policies() -> Seeds:
    lists = Path(__file__).parents[2] / "runtime/trust/lists"
    patterns = "/(jol+y|me[r-t]{2,5}y)+ \\w*/\n/^(a+)+$/\n"
    rules = f"policy a\nnegative yes\n[a] block\npirate\nwalk the plank\ncannon*\n{patterns}[b] warn\nнос\n"
    return rules.encode(), *(path.read_bytes() for path in sorted(lists.glob("*.txt"))[:2])


def ordinary_prompts() -> Seeds:
    text = (Path(__file__).parents[2] / "runtime/trust/ordinary-prompts.txt").read_bytes()
    return text, "ein rotes Haus\n\n  a house\r\na house\n".encode("utf-8-sig")


def pictures() -> Seeds:
    import numpy as np
    from PIL import Image, ImageCms

    shades = np.random.default_rng(0).integers(0, 256, (9, 13, 4), np.uint8)
    full = Image.fromarray(shades)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = {"exif": exif.tobytes(), "icc_profile": profile}
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (full, "PNG", more),
        (full.convert("RGB"), "JPEG", more),
        (full.convert("CMYK"), "JPEG", {"progressive": True, "dpi": (72, 72)}),
        (full, "WEBP", more),
        (full.convert("RGB"), "WEBP", {"lossless": True}),
        (full.convert("P"), "GIF", {"comment": b"words", "transparency": 3}),
        (full.convert("RGB"), "TIFF", {"compression": "tiff_lzw", **more}),
        (full.convert("L"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        (full.convert("RGB"), "BMP", {}),
        (full.convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(shades[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (full.convert("1"), "PNG", {}),
        (full.convert("RGB"), "PPM", {}),
        (full.resize((16, 16)), "ICO", {}),
        (full.convert("RGB"), "TGA", {"rle": True}),
        (full.convert("RGB"), "JPEG2000", {}),
    ]
    return tuple(_saved(*each) for each in made)


def _saved(image: Any, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def signed_pictures() -> Seeds:
    """Pictures with something where credentials lie, and one that is signed where the extra is there."""
    import struct
    import zlib

    from tintype.trust.certificates import is_installed, local_certificate
    from tintype.trust.credentials import Signer

    about = b"\0\0\0\x1ejumdc2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71\x03c2pa\0"
    store = struct.pack(">I", len(about) + 16) + b"jumb" + about + b"\0\0\0\x08free"
    plain = {kind: next(each for each in pictures() if mark in each[:12]) for kind, mark in
             (("PNG", b"PNG"), ("JPEG", b"\xff\xd8"), ("WEBP", b"WEBP"))}  # fmt: skip
    chunk = struct.pack(">I", len(store)) + b"caBX" + store + struct.pack(">I", zlib.crc32(b"caBX" + store))
    segment = b"\xff\xeb" + struct.pack(">H", len(store) + 10) + b"JP\0\x01\0\0\0\x01" + store
    made = [
        plain["PNG"][:33] + chunk + plain["PNG"][33:],
        plain["JPEG"][:2] + segment + plain["JPEG"][2:],
        plain["WEBP"] + b"C2PA" + struct.pack("<I", len(store)) + store,
    ]
    if is_installed():
        with tempfile.TemporaryDirectory() as folder:
            signer = Signer(local_certificate(Path(folder)))
        made.append(signer.sign(plain["PNG"], _records()[0], "x.png"))
    return tuple(made)


def masks() -> Seeds:
    from PIL import Image, ImageDraw

    grey = Image.new("L", (24, 16), 0)
    ImageDraw.Draw(grey).ellipse((4, 3, 15, 12), fill=255)
    clear = Image.new("RGBA", (24, 16), (9, 9, 9, 255))
    clear.putalpha(grey)
    made = ((grey, "PNG"), (clear, "PNG"), (grey.convert("1"), "PNG"), (grey, "JPEG"), (clear, "WEBP"), (grey, "GIF"))
    return tuple(_saved(image, kind, {}) for image, kind in made)


def commands() -> Seeds:
    lines = (
        ["generate", "a house", "--seed", "1", "-o", "x.png"], ["info", "postcard", "--json"], ["cache"], ["--help"],
        ["plan", "--memory", "2GiB", "--size", "64x64"], ["edit", "in.png", "words"], ["export", "nowhere", "bundle"],
    )  # fmt: skip
    return tuple(json.dumps(line).encode() for line in lines)


SEEDS: dict[str, Callable[[], Seeds]] = {
    "manifest": manifests, "scheduler": schedulers, "tokenizer": tokenizers, "graph": graphs, "record": records,
    "record-png": pngs_with_records, "like": pictures_of_others, "latents": latents_files, "noise": noises,
    "embedding": embeddings, "control-manifest": control_manifests,
    "image-encoder-manifest": image_encoder_manifests, "ip-adapter": small_ip_adapters,
    "prompt": prompts, "policy": policies, "ordinary": ordinary_prompts, "words": prompts,
    "safetensors": weights, "lora": loras, "one-file": one_files, "onnx-folder": onnx_encoders,
    "checkpoint": checkpoints, "cache": cache_files,
    "picture": pictures, "credentials": signed_pictures, "mask": masks, "command": commands,
}  # fmt: skip
