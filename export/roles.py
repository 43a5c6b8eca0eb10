"""The graphs of a bundle: where each lies, and which of a checkpoint's parts it is made of. No torch is needed here."""

from __future__ import annotations

from tintype.export.sources.source import TINY_VAE
from tintype.request.request import MAX_CLIP_SKIP

GRAPH_FILES = {
    "text_encoder": "text_encoder/model.onnx",
    "text_encoder_2": "text_encoder_2/model.onnx",
    "denoiser": "unet/model.onnx",
    "vae_encoder": "vae_encoder/model.onnx",
    "vae_decoder": "vae_decoder/model.onnx",
    "tiny_encoder": "tiny_encoder/model.onnx",
    "tiny_decoder": "tiny_decoder/model.onnx",
}

# Which component's weights a role has.
COMPONENT_OF = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "denoiser": "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "tiny_decoder": TINY_VAE,
    "tiny_encoder": TINY_VAE,
}
FLOAT_ROLES = ("vae_encoder", "tiny_encoder")  # they run once, if at all: fp16 in an int8 or int4 bundle
EIGHT_BIT_ROLES = ("vae_decoder", "tiny_decoder")  # int8 in an int4 bundle: few layers, whose errors show at once
KEPT_CALLS = 6  # of the denoiser and the decoder, for measuring what integers cost
CLIP_LAYERS = 12  # of a text encoder whose config.json doesn't say, as transformers has it


def has_four_bits(role: str, precision: str) -> bool:
    """Whether a role's linear layers are to have four bits in a bundle of this precision."""
    return precision == "int4" and role not in (*FLOAT_ROLES, *EIGHT_BIT_ROLES)


def clip_skips(layers: int, *, is_xl: bool) -> int:
    """How many of its last layers a text encoder of so many may be asked to leave out; XL leaves one out as it is."""
    return min(layers - 1 if is_xl else layers, MAX_CLIP_SKIP)
