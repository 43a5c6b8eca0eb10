"""`tintype info` tells what a published file is: the real sizes, what isn't known here, without torch or weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from one_file import one_file_state

from tintype.bundle import open_bundle
from tintype.bundle.manifest import FAMILIES
from tintype.cli import run
from tintype.errors import BundleError, ExportError
from tintype.export.checkpoint import demand_tensors, open_checkpoint
from tintype.export.sources.source import SourceOptions
from tintype.sources.facts import describe
from tintype.sources.families import FAMILIES as SOURCE_FAMILIES
from tintype.sources.families import PIPELINES

POSTCARD = Path(__file__).parents[2] / "models/postcard"
# The published configs, as far as they aren't diffusers' or transformers' defaults.
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
CLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23,
    "hidden_act": "gelu", "projection_dim": 1024,
}  # fmt: skip
CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
    "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 8, "cross_attention_dim": 768},
    "sd2": {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
    "xl": {
        "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "addition_time_embed_dim": 256,
        "addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2816,
        "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    },
}  # fmt: skip
TEXT = {
    "sd1": {"text_encoder": CLIP_L},
    "sd2": {"text_encoder": CLIP_H},
    "xl": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
}
VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
MILLIONS = {
    "sd1": (859.5, 123.1),
    "sd2": (865.9, 353.0),
    "xl": (2567.5, 123.1),
}  # of the UNet, and the first text encoder


def write_header(path: Path, tensors: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """A file of fp16 zeros that takes no room on the disk, whatever its size."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, shape in tensors.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path


def real_size(path: Path, family: str) -> Path:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with torch.device("meta"):
        modules: dict[str, Any] = {name: kinds[name](CLIPTextConfig(**config)) for name, config in TEXT[family].items()}
        modules["unet"] = UNet2DConditionModel.from_config(UNETS[family])
        levels = len(VAE["block_out_channels"])  # type: ignore[arg-type]
        kinds_of_blocks = {
            f"{way}_block_types": [f"{way.title()}{end}Block2D"] * levels
            for way, end in (("down", "Encoder"), ("up", "Decoder"))
        }
        modules["vae"] = AutoencoderKL.from_config({**VAE, **kinds_of_blocks})
    state = one_file_state({name: module.state_dict() for name, module in modules.items()}, family)
    return write_header(path, {name: tuple(tensor.shape) for name, tensor in state.items()})


@pytest.mark.parametrize("family", UNETS)
def test_the_published_sizes_give_the_published_configs(family: str, tmp_path: Path) -> None:
    path = real_size(tmp_path / "one.safetensors", family)
    checkpoint = open_checkpoint(path, SourceOptions(tokenizer=POSTCARD / "checkpoint"))
    for component in checkpoint.family.components:
        demand_tensors(checkpoint, component)
    wanted = {"unet": UNETS[family], "vae": VAE, **TEXT[family]}
    for component, config in wanted.items():
        found = checkpoint.configs[component]
        assert {name: found[name] for name in config} == config
    facts = describe(path)
    unet, words = MILLIONS[family]
    assert facts.parts["unet"].parameters == pytest.approx(unet * 1e6, rel=1e-3)
    assert facts.parts["unet"].precision == "fp16"
    if family != "sd2":  # whose file has a layer that isn't used, and a projection
        assert facts.parts["text_encoder"].parameters == pytest.approx(words * 1e6, rel=1e-3)
    assert facts.resolution == {"sd1": 512, "sd2": 768, "xl": 1024}[family]


def test_info_loads_neither_torch_nor_onnxruntime(tmp_path: Path) -> None:
    path = real_size(tmp_path / "one.safetensors", "sd1")
    program = (
        "import sys; from tintype.cli import run; assert run(['info', sys.argv[1], '--json']) == 0; "
        "assert not {'torch', 'onnxruntime', 'diffusers', 'transformers', 'safetensors'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["checkpoint"]
    assert (told["family"], told["has_vae"], told["need"]) == ("Stable Diffusion 1.x", True, None)
    assert told["prediction"]["kind"] == "epsilon"
    assert told["bytes"] == sum(part["bytes"] for part in told["parts"].values())


def test_info_of_a_folder_is_what_its_configs_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(POSTCARD / "checkpoint")]) == 0
    told = capsys.readouterr().out
    for words in ("Stable Diffusion 1.x (diffusers folder)", "by the scheduler's config", "apache-2.0", "128 pixels"):
        assert words in told
    assert run(["info", str(POSTCARD / "bundle")]) == 0
    assert "hash" in capsys.readouterr().out


LOOKS = {
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": "FLUX",
    "double_blocks.0.img_attn.norm.key_norm.scale": "FLUX",
    "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": "Stable Diffusion 3",
    "model.diffusion_model.head.modulation": "Wan",
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": "a LoRA",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": "a LoRA",
    "control_model.time_embed.0.weight": "a ControlNet",
    "adapter.body.0.resnets.0.block1.weight": "a T2I-Adapter",
    "body.0.block1.weight": "a T2I-Adapter",
    "body.0.body.0.block1.weight": "a T2I-Adapter",
    "first_stage_model.encoder.conv_in.weight": "a VAE alone",
    "text_model.encoder.layers.0.mlp.fc1.weight": "a text encoder (CLIP)",
    "model.diffusion_model.input_blocks.0.0.weight": "a UNet alone",
    "model_ema.diffusion_modelinput_blocks00weight": "averaged weights (EMA) alone",
    "3.conv.0.weight": "a tiny autoencoder (TAESD)",
    "something.else": "nothing that is known here",
}


@pytest.mark.parametrize("tensor", LOOKS)
def test_a_file_of_another_kind_is_named_by_what_it_looks_like(
    tensor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_header(tmp_path / "x.safetensors", {tensor: (2, 2)}, {"modelspec.license": "MIT", "x": "\x1b[2J"})
    with pytest.raises(ExportError) as caught:
        open_checkpoint(path)
    assert caught.value.message.endswith(f"it looks like {LOOKS[tensor]}")
    assert run(["info", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"{LOOKS[tensor]} (one file)" in told
    assert "MIT" in told


def test_the_refiner_is_not_taken_for_the_base_model(tmp_path: Path) -> None:
    names = ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.model.ln_final.weight")
    facts = describe(write_header(tmp_path / "x.safetensors", dict.fromkeys(names, (4, 4, 3, 3))))
    assert facts.family == facts.looks_like == "the refiner of Stable Diffusion XL"


def test_a_file_of_weights_is_no_bundle(tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.safetensors", {"a": (1,)})
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert f"tintype export {path} BUNDLE" in caught.value.fix


@pytest.mark.parametrize(("channels", "needs"), [(4, "--vae"), (5, "depth"), (7, "upscaling")])
def test_what_a_file_takes_beside_latents_says_what_it_is(channels: int, needs: str, tmp_path: Path) -> None:
    first = "model.diffusion_model.input_blocks.0.0.weight"
    words = "cond_stage_model.model.token_embedding.weight"
    facts = describe(write_header(tmp_path / "x.safetensors", {first: (4, channels, 3, 3), words: (9, 4)}))
    assert facts.family == "Stable Diffusion 2.x"
    assert facts.need is not None
    assert needs in facts.need


def test_what_info_offers_to_export_is_what_the_exporter_takes(
    tiny_checkpoint: Path, xl_checkpoint: Path, tmp_path: Path
) -> None:
    """One table of pipelines: each name that diffusers has is exported, or `info` says why it isn't."""
    import diffusers

    names = [name for name in dir(diffusers.pipelines) if name.endswith("Pipeline")]
    assert len(names) > 100
    offered = set()
    for plain in (tiny_checkpoint, xl_checkpoint):
        index = json.loads((plain / "model_index.json").read_text())
        for part in plain.iterdir():
            if part.name != "model_index.json":
                (tmp_path / part.name).unlink(missing_ok=True)
                (tmp_path / part.name).symlink_to(part)
        for name in names:
            (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
            facts = describe(tmp_path)
            refusal = _refusal_of(tmp_path)
            assert (facts.need is None) == (refusal is None), name
            assert refusal is None or refusal in (facts.need or "")
            offered |= {name} if refusal is None else set()
    assert offered == PIPELINES - {"StableDiffusionInstructPix2PixPipeline"}  # whose UNet takes 8 channels


def _refusal_of(checkpoint: Path) -> str | None:
    try:
        open_checkpoint(checkpoint)
    except ExportError as error:
        return error.message
    return None


def test_info_says_of_settings_what_the_exporter_says(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint/unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "class_embed_type": "timestep"}))
    facts = describe(tmp_path / "checkpoint")
    assert facts.family == "Stable Diffusion 1.x"
    with pytest.raises(ExportError) as caught:
        open_checkpoint(tmp_path / "checkpoint")
    assert facts.need == f"{caught.value.message}; {caught.value.fix}"


def test_instruct_pix2pix_of_xl_is_not_offered(tmp_path: Path) -> None:
    names = ("conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    facts = describe(write_header(tmp_path / "x.safetensors", {first: (4, 8, 3, 3), **dict.fromkeys(names, (4,))}))
    assert facts.family == "Stable Diffusion XL"
    assert "InstructPix2Pix of XL, which would need" in (facts.need or "")


def test_families_are_those_of_bundles() -> None:
    assert {family.name for family in SOURCE_FAMILIES} == set(FAMILIES)
