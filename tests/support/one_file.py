"""Checkpoints that keep to the published families' conventions, small, and the one-file form of each.

The naming is written here from diffusers' names to LDM's and open_clip's, which is the other way round from the
exporter's; tests hold it against diffusers' own conversion.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAMILIES = ("sd1", "sd2", "xl", "sd1-inpainting", "sd1-editing", "xl-refiner")
KINDS = {  # by what a UNet takes beside latents
    "inpainting": (9, "StableDiffusionInpaintPipeline"),
    "editing": (8, "StableDiffusionInstructPix2PixPipeline"),
}
WORDS = {"sd1": 64, "sd2": 128, "xl": 64 + 128}
UNET, VAE = "model.diffusion_model.", "first_stage_model."


def base_of(family: str) -> str:
    return family.partition("-")[0]


def kind_of(family: str) -> str:
    return family.partition("-")[2]


def save_folder(plain: Path, folder: Path, family: str, **unet_options: Any) -> Path:
    """A diffusers folder with random weights, whose tokenizers, index and scheduler are those of `plain`."""
    import torch

    shutil.copytree(plain, folder)
    torch.manual_seed(3)
    for name, module in {
        **_text_encoders(plain, family),
        "unet": _unet(family, unet_options),
        "vae": _vae(family),
    }.items():
        shutil.rmtree(folder / name)
        module.save_pretrained(folder / name)
    if base_of(family) != "xl":  # as published, before diffusers wrote it
        change_json(folder / "scheduler/scheduler_config.json", timestep_spacing=None)
    if kind_of(family) in KINDS:
        change_json(folder / "model_index.json", _class_name=KINDS[kind_of(family)][1])
    if kind_of(family) == "refiner":
        for name in ("text_encoder", "tokenizer"):
            shutil.rmtree(folder / name)
        lacking = {"text_encoder": [None, None], "tokenizer": [None, None], "force_zeros_for_empty_prompt": False}
        pipeline = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
        change_json(folder / "model_index.json", **lacking, **pipeline)
    if family == "sd2":
        change_json(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
        change_json(folder / "tokenizer/tokenizer_config.json", pad_token="!")
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Set keys; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: item for name, item in value.items() if changes.get(name, item) is not None}))


def _unet(family: str, options: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    base = base_of(family)
    common = {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": WORDS[base],
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 8,
        "in_channels": KINDS[kind_of(family)][0] if kind_of(family) in KINDS else 4,
    }  # fmt: skip
    if base != "sd1":
        common |= {"block_out_channels": (64, 128), "attention_head_dim": (1, 2), "use_linear_projection": True}
    if base == "xl":
        common |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 128 + 6 * 8,
        }  # fmt: skip
    if kind_of(family) == "refiner":
        common |= {"cross_attention_dim": 128, "projection_class_embeddings_input_dim": 128 + 5 * 8}
    return UNet2DConditionModel(**{**common, **options})


def _vae(family: str) -> Any:
    from diffusers import AutoencoderKL

    is_xl = base_of(family) == "xl"
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        scaling_factor=0.13025 if is_xl else 0.18215,
        force_upcast=is_xl,
        sample_size=64,
    )


def _text_encoders(plain: Path, family: str) -> dict[str, Any]:
    """Heads of 64 numbers; OpenCLIP's with gelu, XL's second with a projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    known = {name: json.loads((plain / "text_encoder/config.json").read_text())[name] for name in ("vocab_size",)}
    clip = {**known, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    marks = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    open_clip = {**clip, **marks, "hidden_size": 128, "num_attention_heads": 2, "hidden_act": "gelu"}
    if family == "sd2":
        return {"text_encoder": CLIPTextModel(CLIPTextConfig(**open_clip, projection_dim=128))}
    first = {"text_encoder": CLIPTextModel(CLIPTextConfig(**clip, **marks, projection_dim=64))}
    if base_of(family) != "xl":
        return first
    second = {"text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**open_clip, projection_dim=128))}
    return second if kind_of(family) == "refiner" else {**first, **second}


def write_one_file(
    folder: Path,
    path: Path,
    family: str,
    *,
    dtype: Any = None,
    prefix: str = "text_model.",
    metadata: dict[str, str] | None = None,
    change: Callable[[dict[str, Any]], object] = lambda state: None,
) -> Path:
    """The folder's weights in one file, in LDM's naming; `change` may do to the tensors what it likes."""
    from safetensors.torch import save_file

    state = one_file_state(parts_of(folder), family, prefix=prefix)
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def parts_of(folder: Path) -> dict[str, dict[str, Any]]:
    """By component, its tensors."""
    from safetensors.torch import load_file

    return {path.parent.name: load_file(path) for path in folder.glob("*/*.safetensors")}


def one_file_state(parts: dict[str, dict[str, Any]], family: str, *, prefix: str = "text_model.") -> dict[str, Any]:
    """Tensors by LDM's names, with what published files hold beside: averages, schedules, positions."""
    import torch

    state = {UNET + name: tensor for name, tensor in ldm_unet_state(parts["unet"]).items()}
    state |= {VAE + name: tensor for name, tensor in ldm_vae_state(parts["vae"]).items()}
    first = {f"{prefix}{name.removeprefix('text_model.')}": t for name, t in parts.get("text_encoder", {}).items()}
    first[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    if family == "xl":
        state |= {f"conditioner.embedders.0.transformer.{name}": t for name, t in first.items()}
        second = open_clip_state(parts["text_encoder_2"])
        state |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    elif kind_of(family) == "refiner":
        words = open_clip_state(parts["text_encoder_2"])
        state |= {f"conditioner.embedders.0.model.{name}": tensor for name, tensor in words.items()}
    elif family == "sd2":
        words = open_clip_state(parts["text_encoder"])
        blocks = [name for name in words if name.startswith("transformer.resblocks.0.")]
        layers = len({name.split(".")[2] for name in words if name.startswith("transformer.")})
        words |= {name.replace(".0.", f".{layers}.", 1): words[name] + 1 for name in blocks}  # the one that isn't used
        positions = words["positional_embedding"]
        projection = positions.new_ones(positions.shape[1], positions.shape[1])
        words |= {"text_projection": projection, "logit_scale": torch.tensor(4.6)}
        state |= {f"cond_stage_model.model.{name}": tensor for name, tensor in words.items()}
    else:
        state |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in first.items()}
    averaged = {
        f"model_ema.{n.removeprefix('model.').replace('.', '')}": t + 1 for n, t in state.items() if n.startswith(UNET)
    }
    return state | averaged | {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.tensor(0.99)}


def ldm_unet_state(state: dict[str, Any]) -> dict[str, Any]:
    """A UNet of diffusers in LDM's names, without their prefix."""
    layers = len({name.split(".")[3] for name in state if name.startswith("down_blocks.0.resnets.")})
    attended = {name.split(".")[1] for name in state if name.startswith("up_blocks.") and ".attentions." in name}
    return {_ldm_unet_name(name, layers, attended): tensor for name, tensor in state.items()}


def _ldm_unet_name(name: str, layers: int, attended: set[str]) -> str:
    """As diffusers' convert_diffusers_to_original_stable_diffusion.py has it; attended: ways out with attention."""
    around = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
        "conv_in": "input_blocks.0.0", "time_embedding.cond_proj": "time_embed.cond_proj",
    }  # fmt: skip
    module, _, end = name.rpartition(".")
    if module in around:
        return f"{around[module]}.{end}"
    way, *parts = name.split(".")
    if way == "mid_block":
        kind, number, *rest = parts
        place = f"middle_block.{2 * int(number) if kind == 'resnets' else 1}"
        return ".".join([place, *(_resnet_part(rest) if kind == "resnets" else rest)])
    level, kind, number, *rest = parts
    first = int(level) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{end}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if level in attended else 1}.conv.{end}"
    block = (
        f"input_blocks.{1 + first + int(number)}" if way == "down_blocks" else f"output_blocks.{first + int(number)}"
    )
    return ".".join([f"{block}.0", *_resnet_part(rest)] if kind == "resnets" else [f"{block}.1", *rest])


def _resnet_part(rest: list[str]) -> list[str]:
    inner = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    return [inner[rest[0]], *rest[1:]]


def ldm_vae_state(state: dict[str, Any]) -> dict[str, Any]:
    """A VAE of diffusers in LDM's names, its attention as convolutions of one pixel."""
    levels = len({name.split(".")[2] for name in state if name.startswith("decoder.up_blocks.")})
    found = {}
    for name, tensor in state.items():
        is_linear = ".attentions." in name and tensor.ndim == 2
        found[ldm_vae_name(name, levels)] = tensor[:, :, None, None] if is_linear else tensor
    return found


def ldm_vae_name(name: str, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda at: f"up.{levels - 1 - int(at[1])}.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda at: f"up.{levels - 1 - int(at[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda at: f"mid.block_{int(at[1]) + 1}", name)
    for new, old in {
        "mid_block.attentions.0.group_norm": "mid.attn_1.norm", "mid_block.attentions.0.to_q": "mid.attn_1.q",
        "mid_block.attentions.0.to_k": "mid.attn_1.k", "mid_block.attentions.0.to_v": "mid.attn_1.v",
        "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out", "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
    }.items():  # fmt: skip
        name = name.replace(new, old)
    return name


_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def open_clip_state(state: dict[str, Any]) -> dict[str, Any]:
    """A CLIP of transformers in open_clip's names: queries, keys and values in one, the projection transposed."""
    import torch

    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    found = {}
    for name, tensor in state.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", name)
        if layer is None:
            found[_OPEN_CLIP[name]] = tensor.T if name == "text_projection.weight" else tensor
            continue
        place = f"transformer.resblocks.{layer[1]}"
        if layer[2] == "self_attn.q_proj":
            thirds = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"{place}.attn.in_proj_{layer[3]}"] = torch.cat(thirds)
        elif layer[2] not in ("self_attn.k_proj", "self_attn.v_proj"):
            found[f"{place}.{_OPEN_CLIP_LAYER[layer[2]]}.{layer[3]}"] = tensor
    return found
