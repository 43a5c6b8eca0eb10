"""How files of LoRAs name layers: kohya's, diffusers', PEFT's and LyCORIS's names -> a role and a layer of its graph.

kohya joins a layer's path by underscores, which its parts have too, so that a name is found among those of the layers
that there are, and never taken apart. For XL it calls the UNet's layers as the first implementation of Stable Diffusion
(LDM) did.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tintype.sources.ldm import AROUND, MIDDLE, RESNET

DENOISER, TEXT_ENCODER, TEXT_ENCODER_2 = "denoiser", "text_encoder", "text_encoder_2"
# What a tensor is of its layer, by how its name ends.
PARTS: Mapping[str, str] = {
    "lora_down.weight": "down", "lora_A.weight": "down", "lora_A.default.weight": "down", "lora.down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_up.weight": "up", "lora_B.weight": "up", "lora_B.default.weight": "up", "lora.up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "lora_mid.weight": "mid", "alpha": "alpha",
    "dora_scale": "dora", "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    "hada_w1_a": "w1_a", "hada_w1_b": "w1_b", "hada_w2_a": "w2_a", "hada_w2_b": "w2_b",
    "hada_t1": "t1", "hada_t2": "t2",
    "lokr_w1": "k1", "lokr_w1_a": "k1_a", "lokr_w1_b": "k1_b", "lokr_w2": "k2", "lokr_w2_a": "k2_a",
    "lokr_w2_b": "k2_b", "lokr_t2": "k2_t",
    "diff": "diff",
}  # fmt: skip
_ENDS = sorted(PARTS, key=len, reverse=True)
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")  # diffusers before 0.20
# What a layer's name begins with in a file, and the role that it is of.
_ROLES = (
    ("lora_unet_", DENOISER), ("lycoris_unet_", DENOISER), ("unet.", DENOISER),
    ("lora_te1_", TEXT_ENCODER), ("lora_te2_", TEXT_ENCODER_2), ("lora_te_", TEXT_ENCODER),
    ("text_encoder_2.", TEXT_ENCODER_2), ("text_encoder.", TEXT_ENCODER),
    ("down_blocks.", DENOISER), ("mid_block.", DENOISER), ("up_blocks.", DENOISER),
)  # fmt: skip
PEFT = "base_model.model."  # before names of PEFT's own files, whose alphas lie in a file beside them
# Of other architectures, whose LoRAs end as those of this one do.
FOREIGN = {
    "FLUX": ("lora_unet_double_blocks_", "lora_unet_single_blocks_", "transformer.single_transformer_blocks."),
    "Stable Diffusion 3": ("lora_unet_joint_blocks_", "transformer.transformer_blocks."),
    "a video or transformer model": ("transformer.", "diffusion_model.", "lora_transformer_"),
}
_LDM_RESNET = {new: old for old, new in RESNET.items()}
_LDM_AROUND = {new: old for old, new in AROUND.items()}


def split_name(tensor: str) -> tuple[str, str] | None:
    """A tensor's name as its layer's, as the file has it, and which part of it the tensor is; None: it is unknown."""
    old = _PROCESSOR.fullmatch(tensor)
    if old is not None:
        return f"{old[1]}.{old[2]}{'.0' if old[2] == 'to_out' else ''}", old[3]
    for end in _ENDS:
        if tensor.endswith(f".{end}"):
            return tensor[: -len(end) - 1], PARTS[end]
    return None


def role_of(layer: str) -> tuple[str, str] | None:
    """The role that a layer, as a file names it, is of, and the rest of its name; None: of none."""
    for start, role in _ROLES:
        if layer.startswith(start):
            return role, layer if start.endswith("s.") or start == "mid_block." else layer[len(start) :]
    return None


def plain(layer: str) -> str:
    """A layer's name in the one form in which all of them are compared."""
    return layer.replace(".", "_").removeprefix("text_model_")


def by_plain_name(role: str, layers: Iterable[str]) -> dict[str, str]:
    """By every name, in that form, that a file may have for them: the layers of a role's graph."""
    layers = list(layers)
    found = {plain(layer): layer for layer in layers}
    if role == DENOISER:
        found |= {plain(old): layer for layer, old in ldm_names(layers).items() if plain(old) not in found}
    return found


def ldm_names(layers: Iterable[str]) -> dict[str, str]:
    """Layers of a UNet by diffusers' names -> LDM's: its blocks are counted through, on the way down and up."""
    layers = list(layers)
    known, blocks = set[str](), dict[str, str]()
    for layer in layers:
        parts = layer.split(".")
        known |= {".".join(parts[:count]) for count in range(1, len(parts))}
    place = 1
    for block in range(_count(known, "down_blocks.{}")):
        start = f"down_blocks.{block}"
        for number in range(_count(known, f"{start}.resnets.{{}}")):
            blocks[f"{start}.resnets.{number}"] = f"input_blocks.{place}.0"
            blocks[f"{start}.attentions.{number}"] = f"input_blocks.{place}.1"
            place += 1
        if f"{start}.downsamplers.0" in known:
            blocks[f"{start}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    blocks |= {f"mid_block.{new}": old for old, new in MIDDLE.items()}
    place = 0
    for block in range(_count(known, "up_blocks.{}")):
        start = f"up_blocks.{block}"
        for number in range(_count(known, f"{start}.resnets.{{}}")):
            blocks[f"{start}.resnets.{number}"] = f"output_blocks.{place}.0"
            blocks[f"{start}.attentions.{number}"] = f"output_blocks.{place}.1"
            place += 1
        last = 2 if f"{start}.attentions.0" in known else 1
        blocks[f"{start}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{last}.conv"
    return {layer: old for layer in layers if (old := _ldm_name(layer, blocks)) is not None}


def _ldm_name(layer: str, blocks: Mapping[str, str]) -> str | None:
    if layer in _LDM_AROUND:
        return _LDM_AROUND[layer]
    if layer in blocks:
        return blocks[layer]
    parts = layer.split(".")
    count = 3 if layer.startswith("mid_block.") else 4
    block = blocks.get(".".join(parts[:count]))
    if block is None:
        return None
    rest = ".".join(parts[count:])
    return f"{block}.{_LDM_RESNET.get(rest, rest) if '.resnets.' in layer else rest}"


def _count(known: set[str], pattern: str) -> int:
    count = 0
    while pattern.format(count) in known:
        count += 1
    return count
