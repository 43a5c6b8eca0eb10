"""Kinds of checkpoint: which parts each is made of, and which of their settings can be exported.

The one place that knows: `tintype info` offers an export by it, and the exporter refuses by it. A checkpoint that
passed `family_of` and `check_configs` has parts that are known by class and belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.sources.foreign import foreign_model

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

Configs = Mapping[str, Mapping[str, Any]]  # config.json as it stands, by component

# Numbers that are read of each config.json, by the start of its component's name: whole ones, and any. Null is a number
# that isn't said, where it may be left out for that.
_WHOLE = {
    "unet": ("in_channels", "out_channels"),
    "vae": ("latent_channels",),
    "text_encoder": ("max_position_embeddings", "vocab_size", "projection_dim"),
}
_WHOLE_OR_NULL = {
    "unet": ("sample_size", "addition_time_embed_dim", "time_cond_proj_dim"),
    "text_encoder": ("hidden_size",),
}
_ANY_OR_NULL = {"vae": ("scaling_factor", "shift_factor")}
MAX_CONFIG_NUMBER = 1_000_000  # CLIP knows 49,408 words; no width is near that
MAX_LAYERS = 128  # of a text encoder, or of one level of a UNet or an autoencoder; SDXL has 32 and 12
MAX_LEVELS = 16  # of a UNet or an autoencoder, each of which halves a picture; there are four in each

# How many layers there are, by the start of the component's name: numbers, or lists of them by level and layer.
_LAYERS = {
    "unet": ("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block"),
    "vae": ("layers_per_block", "num_encoder_blocks", "num_decoder_blocks"),
    "text_encoder": ("num_hidden_layers",),
}
LEAST_GUIDANCE_NUMBERS, MOST_GUIDANCE_NUMBERS = 4, 4096  # that a bundle may tell a guidance scale in; 256 is usual

# UNet options that need inputs or layers which no traced graph has.
_UNSUPPORTED_UNET_OPTIONS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")
# Classes that stand in for another: the same inputs and outputs, other layers.
STAND_INS = {"AutoencoderKL": ("AutoencoderTiny",)}


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of checkpoint, by what diffusers calls its parts."""

    name: str  # in a bundle's manifest
    known_as: str  # to people
    pipelines: tuple[str, ...]
    components: Mapping[str, str]  # those with weights, and the class of each
    addition_embed_type: str | None = None  # of the UNet: what it takes besides words
    # Of XL: original height and width, crop top and left, then target height and width, or an aesthetic score.
    time_ids: int = 0
    takes_picture: bool = False  # the UNet takes a picture's latents beside the noisy ones

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self.components if name.startswith("text_encoder"))

    @property
    def is_xl(self) -> bool:
        return self.addition_embed_type == "text_time"


_ONE_TEXT_ENCODER = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
STABLE_DIFFUSION = Family(
    "stable-diffusion",
    "Stable Diffusion 1.x and 2.x",
    (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ),
    _ONE_TEXT_ENCODER,
)
INSTRUCT_PIX2PIX = Family(
    "instruct-pix2pix",
    "InstructPix2Pix",
    ("StableDiffusionInstructPix2PixPipeline",),
    _ONE_TEXT_ENCODER,
    takes_picture=True,
)
STABLE_DIFFUSION_XL = Family(
    "stable-diffusion-xl",
    "Stable Diffusion XL",
    ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline", "StableDiffusionXLImg2ImgPipeline"),
    {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    },
    "text_time",
    time_ids=6,
)
REFINER = Family(
    "stable-diffusion-xl-refiner",
    "the refiner of Stable Diffusion XL",
    ("StableDiffusionXLImg2ImgPipeline",),
    {
        "text_encoder_2": "CLIPTextModelWithProjection",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    },
    "text_time",
    time_ids=5,
)
FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, REFINER, INSTRUCT_PIX2PIX)
PIPELINES = frozenset(pipeline for family in FAMILIES for pipeline in family.pipelines)


def tokenizer_of(text_encoder: str) -> str:
    """The folder of the tokenizer that feeds a text encoder: text_encoder_2 -> tokenizer_2."""
    return text_encoder.replace("text_encoder", "tokenizer")


def family_of(folder: Path, index: Mapping[str, Any]) -> Family:
    """What model_index.json says the checkpoint is. Raises ExportError for what isn't known, by name."""
    pipeline = index.get("_class_name")
    known = [family for family in FAMILIES if pipeline in family.pipelines]
    if not known:
        raise unknown_family(folder, index)
    first = class_of(index, "text_encoder")  # what a refiner lacks, which an XL model is called by too
    family = next(
        (family for family in known if ("text_encoder" in family.components) == (first is not None)), known[0]
    )
    for name, wanted in family.components.items():
        found = class_of(index, name)
        if found != wanted and found not in STAND_INS.get(wanted, ()):
            raise ExportError(
                f"the {name} of {folder} is a {found}, which this exporter doesn't know",
                fix=f"export a checkpoint whose {name} is a {wanted}",
            )
    return family


def unknown_family(place: Path, index: Mapping[str, Any]) -> ExportError:
    """The error for a model_index.json of no family here."""
    return foreign_model(place, index, {family.known_as: family.pipelines for family in FAMILIES})


def class_of(index: Mapping[str, Any], component: str) -> str | None:
    """What model_index.json says a component is; None where there is none."""
    entry = index.get(component)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def check_configs(family: Family, configs: Configs) -> None:
    """ExportError, by name, for settings that aren't done here and for parts that don't belong together."""
    _check_numbers(family, configs)
    unet, vae = configs["unet"], configs["vae"]
    for option in ("addition_embed_type", *_UNSUPPORTED_UNET_OPTIONS):
        wanted = family.addition_embed_type if option == "addition_embed_type" else None
        if unet.get(option) != wanted:
            raise ExportError(
                f"the UNet sets {option}={unet.get(option)!r}, which this exporter can't trace",
                fix=f"export a plain {family.known_as} checkpoint",
            )
    told = unet.get("time_cond_proj_dim")
    if told is not None and not LEAST_GUIDANCE_NUMBERS <= told <= MOST_GUIDANCE_NUMBERS:
        raise _unusable("unet", "time_cond_proj_dim", told)
    _check_channels(family, unet, vae)
    for option in ("latents_mean", "latents_std"):
        if vae.get(option) is not None:
            raise ExportError(
                f"the VAE sets {option}, and its latents would be decoded with the wrong colours",
                fix="export a checkpoint whose VAE has a scaling_factor alone",
            )
    _check_words(family, configs)
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ExportError(
            f"the scheduler predicts {prediction!r}, which the samplers don't know",
            fix=f"prediction_type should be one of {', '.join(PREDICTION_TYPES)}",
        )


def check_tiny_vae(config: Mapping[str, Any], latent_channels: int, vae_scale_factor: int) -> None:
    """ExportError for an AutoencoderTiny that makes pictures of other latents."""
    channels, levels = config.get("latent_channels", 4), config.get("block_out_channels", [64] * 4)
    for name, value in (("latent_channels", channels), ("upsampling_scaling_factor", 2), ("scaling_factor", 1.0)):
        value = config.get(name, value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_CONFIG_NUMBER:
            raise _unusable("tiny_vae", name, value)
    if not isinstance(levels, list) or not 1 <= len(levels) <= MAX_LEVELS:
        raise _unusable("tiny_vae", "block_out_channels", levels)
    _check_layers("tiny_vae", "vae", config)
    if channels != latent_channels or 2 ** (len(levels) - 1) != vae_scale_factor:
        raise ExportError(
            f"the tiny autoencoder has {channels} channels and factor {2 ** (len(levels) - 1)}, the checkpoint's VAE "
            f"{latent_channels} and {vae_scale_factor}: they don't belong together",
            fix="give the one that was made for this family: TAESD for 1.x and 2.x, TAESDXL for XL",
        )


def _check_numbers(family: Family, configs: Configs) -> None:
    """Every number that is read later is one, of a sensible size."""
    for component in family.components:
        config, kind = configs[component], "text_encoder" if component in family.text_encoders else component
        for name in (*_WHOLE.get(kind, ()), *_WHOLE_OR_NULL.get(kind, ()), *_ANY_OR_NULL.get(kind, ())):
            value, may_be_null = config.get(name), name not in _WHOLE.get(kind, ())
            if name not in config or (value is None and may_be_null):
                continue
            least, kinds = (-MAX_CONFIG_NUMBER, (int, float)) if name in _ANY_OR_NULL.get(kind, ()) else (1, (int,))
            sound = isinstance(value, kinds) and not isinstance(value, bool)
            if not sound or not least <= value <= MAX_CONFIG_NUMBER:  # type: ignore[operator]
                raise _unusable(component, name, value)
        _check_layers(component, kind, config)
        if kind != "text_encoder":
            levels = config.get("block_out_channels")
            if not isinstance(levels, list) or not 1 <= len(levels) <= MAX_LEVELS:
                raise _unusable(component, "block_out_channels", levels)


def _check_layers(component: str, kind: str, config: Mapping[str, Any]) -> None:
    """Every number of layers is one that a module can be made of in no time."""
    for name in _LAYERS[kind]:
        left = [config.get(name)]
        for _ in range(3):  # a list of lists at most
            left = [each for value in left for each in (value if isinstance(value, list) else [value])]
        for value in left:
            sound = value is None or (isinstance(value, int) and not isinstance(value, bool))
            if not sound or (value is not None and not 0 <= value <= MAX_LAYERS) or len(left) > MAX_LEVELS * MAX_LAYERS:
                raise _unusable(component, name, config.get(name))


def _unusable(component: str, name: str, value: object) -> ExportError:
    return ExportError(
        f"{component}/config.json sets {name} to {str(value)[:60]}, of which no model can be made",
        fix="download the checkpoint's config.json again",
    )


def _check_channels(family: Family, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """The UNet takes latents, or with them a mask and the latents of a (masked) picture; it gives latents."""
    taken, given = (unet.get(name, 4) for name in ("in_channels", "out_channels"))
    latent_channels = vae.get("latent_channels", 4)
    plain = (latent_channels, inpainting_channels(latent_channels))
    if taken not in ((2 * latent_channels,) if family.takes_picture else plain):
        raise ExportError(
            f"the UNet takes {taken} channels and the VAE has {latent_channels}: a depth, upscaling or editing model",
            fix="export the text-to-image checkpoint that it was made from, or one for inpainting",
        )
    if given != latent_channels:
        raise ExportError(
            f"the UNet gives {given} channels and the VAE has {latent_channels}: they don't belong together",
            fix="copy unet/ and vae/ from the same checkpoint",
        )


def inpainting_channels(latent_channels: int) -> int:
    """What the UNet of an inpainting model takes: noisy latents, one for the mask, latents of the masked picture."""
    return 2 * latent_channels + 1


def _check_words(family: Family, configs: Configs) -> None:
    """What the text encoders give is what the UNet takes."""
    unet = configs["unet"]
    widths = [configs[name].get("hidden_size") for name in family.text_encoders]
    told = sum(widths) if all(isinstance(width, int) for width in widths) else None  # type: ignore[arg-type]
    taken = unet.get("cross_attention_dim")
    if told is None or told != taken:
        who = "the text encoder gives" if len(widths) == 1 else "the text encoders give together"
        raise ExportError(
            f"{who} {told} numbers a token, the UNet takes {taken}: they don't belong together",
            fix=f"copy {', '.join(f'{name}/' for name in family.text_encoders)} and unet/ from the same checkpoint",
        )
    if not family.is_xl:
        return
    added = int(configs["text_encoder_2"].get("projection_dim", 512)) + family.time_ids * int(
        unet.get("addition_time_embed_dim") or 0
    )
    if added != unet.get("projection_class_embeddings_input_dim"):
        raise ExportError(
            f"text_encoder_2 and {family.time_ids} sizes make {added} numbers, the UNet adds "
            f"{unet.get('projection_class_embeddings_input_dim')}: they don't belong together",
            fix="copy text_encoder_2/ and unet/ from the same checkpoint",
        )
