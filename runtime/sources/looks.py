"""What a .safetensors file looks like that is no checkpoint of a family known here: told by names of its tensors.

The first row that fits says it, so what is special stands before what is general: a file of Wan has attention blocks as
others do, and a LoRA for the UNet names the UNet's layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tintype.sources.foreign import FOREIGN

PREFIXES = ("", "model.diffusion_model.", "net.", "model.", "transformer.")

_EXPORT_ANOTHER = "export a checkpoint of Stable Diffusion 1.x, 2.x or XL"
_NO_FAMILY = f"its architecture isn't done here; {_EXPORT_ANOTHER}"
_ADAPTER = "it changes a checkpoint and draws nothing alone; export the checkpoint that it was trained for"
_LORA = "it draws nothing alone; give it with a model: --lora FILE"
_EMBEDDING = "it draws nothing alone; give it with a model: --embedding FILE"
_CONTROL = "it draws nothing alone: tintype export makes a bundle of it, which --control takes beside a model"
_IMAGE_PROMPTS = "it draws nothing alone; give it with a model: --ip-adapter FILE --image-prompt PICTURE"
_PART = "it is one part of a checkpoint; export a file that holds the text encoders, the UNet and the VAE"


@dataclass(frozen=True, slots=True)
class Look:
    """What a file looks like, to people, and what would be needed to draw with it."""

    name: str
    need: str


@dataclass(frozen=True, slots=True)
class _Row:
    """start: of a tensor's name behind one of PREFIXES. end: of any name. A row fits when all that it states does."""

    look: Look
    start: str = ""
    end: str = ""


def _known(name: str, start: str = "", *, end: str = "", need: str = _NO_FAMILY) -> _Row:
    return _Row(Look(name, need), start, end)


_THEIRS = ", in diffusers' naming"


def _foreign(pipeline: str, start: str, naming: str = "") -> _Row:
    """A model that `foreign` knows by its pipeline's class: its name and what it would need are said there alone."""
    model = FOREIGN[pipeline]
    return _known(f"{model.known_as}{naming}", start, need=f"it would need {model.needs}; {_EXPORT_ANOTHER}")


_ROWS = (
    _known("a LoRA", end=".lora_down.weight", need=_LORA),
    _known("a LoRA", end=".lora_A.weight", need=_LORA),
    _known("a LoRA", end=".lora.down.weight", need=_LORA),
    _known("a LoHa (LyCORIS)", end=".hada_w1_a", need=_LORA),
    _known("a LoKr (LyCORIS)", end=".lokr_w1", need=_LORA),
    _known("a LoKr (LyCORIS)", end=".lokr_w1_a", need=_LORA),
    _known("a ControlNet", "control_model.", need=_CONTROL),
    _known("a ControlNet", "controlnet_cond_embedding.", need=_CONTROL),
    _known("a ControlNet", "input_hint_block.", need=_CONTROL),
    _known("an IP-Adapter", "image_proj.", need=_IMAGE_PROMPTS),
    _known("an IP-Adapter", "ip_adapter.", need=_IMAGE_PROMPTS),
    _known("a T2I-Adapter", "adapter.body.", need=_CONTROL),
    _known("a T2I-Adapter", "body.0.block1.", need=_CONTROL),
    _known("a T2I-Adapter", "body.0.body.0.block1.", need=_CONTROL),
    _known("a textual inversion", "emb_params", need=_EMBEDDING),
    _known("a textual inversion of XL", "clip_g", need=_EMBEDDING),
    _known("a motion module of AnimateDiff", "down_blocks.0.motion_modules.", need=_ADAPTER),
    _foreign("StableVideoDiffusion", "input_blocks.1.0.time_stack."),
    _known("Playground v2.5, which is sampled by EDM", "edm_mean"),
    _known("CosXL, which is sampled by EDM", "edm_vpred.sigma_max"),
    _foreign("Chroma", "distilled_guidance_layer."),
    _foreign("HunyuanVideo", "txt_in.individual_token_refiner."),
    _foreign("Flux2", "single_stream_modulation."),
    _foreign("Flux", "double_blocks.0.img_attn."),
    _foreign("Flux", "single_transformer_blocks.", _THEIRS),
    _foreign("StableDiffusion3", "joint_blocks."),
    _foreign("StableDiffusion3", "transformer_blocks.0.norm1_context.", _THEIRS),
    _foreign("QwenImage", "transformer_blocks.0.img_mlp."),
    _foreign("Wan", "head.modulation"),
    _foreign("Wan", "condition_embedder.time_proj.", _THEIRS),
    _known("Wan's VAE", "decoder.middle.0.residual."),
    _foreign("StableCascade", "clip_txt_mapper."),
    _foreign("StableCascade", "down_blocks.0.0.channelwise."),
    _foreign("AuraFlow", "double_layers.0."),
    _foreign("PixArt", "t_block."),
    _known("PixArt or LTX, in diffusers' naming", "adaln_single."),
    _foreign("LTX", "patchify_proj."),
    _known("Lumina 2 or Z-Image", "cap_embedder."),
    _foreign("HiDream", "double_stream_blocks."),
    _foreign("HunyuanDiT", "mlp_t5."),
    _foreign("Sana", "blocks.0.cross_attn.q_linear."),
    _foreign("Mochi", "t5_yproj."),
    _foreign("Cosmos", "blocks.0.adaln_modulation_self_attn."),
    _known("a T5 text encoder", "encoder.block.0.layer.0.SelfAttention.", need=_PART),
    _known("a text encoder (CLIP)", "text_model.encoder.layers.0.", need=_PART),
    _known("a text encoder (CLIP)", "encoder.layers.0.self_attn.", need=_PART),
    _known("a text encoder (OpenCLIP)", "resblocks.0.", need=_PART),
    _known("a UNet alone", "input_blocks.0.", need=_PART),
    _known("a UNet alone, in diffusers' naming", "down_blocks.0.resnets.", need=_PART),
    _known("a UNet alone, in diffusers' naming", "unet.down_blocks.0.", need=_PART),
    _known("a VAE alone", "encoder.conv_in.", need=f"{_PART}, or give this one as --vae"),
    _known("a VAE alone", "first_stage_model.encoder.", need=f"{_PART}, or give this one as --vae"),
    _known("a tiny autoencoder (TAESD)", "decoder.layers.", need=f"{_PART}, and give this one as --tiny-vae"),
    _known("a tiny autoencoder (TAESD)", "taesd_decoder.", need=f"{_PART}, and give this one as --tiny-vae"),
    _known("a tiny autoencoder (TAESD)", "3.conv.0.", need=f"{_PART}, and give this one as --tiny-vae"),
    _known("an upscaler (ESRGAN)", "conv_first.", need="it enlarges pictures and draws none"),
)

EMA_ALONE = Look("averaged weights (EMA) alone", "it lacks model.diffusion_model, the weights that are drawn with")
UNKNOWN = Look("nothing that is known here", _NO_FAMILY)


def looks_like(names: Iterable[str]) -> Look:
    """The first row of the table that fits; `UNKNOWN` where none does."""
    known = list(names)
    bare = {name[len(prefix) :] for name in known for prefix in PREFIXES if name.startswith(prefix)}
    for row in _ROWS:
        if row.start and any(name.startswith(row.start) for name in bare):
            return row.look
        if row.end and any(name.endswith(row.end) for name in known):
            return row.look
    return UNKNOWN


def adapter_look(names: Iterable[str]) -> Look | None:
    """What stands beside a model and draws nothing alone, by its tensors' names; None for all else."""
    look = looks_like(names)
    return look if look.need in (_LORA, _EMBEDDING, _CONTROL, _IMAGE_PROMPTS) else None
