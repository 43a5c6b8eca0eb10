"""One .safetensors file in latent-diffusion's naming: configs made from its shapes, tensors by diffusers' names.

Nothing is looked up by a model's name, so finetunes and pruned models are read as they are. What such a file never
holds is how noise was scheduled, which is the family's own here, and a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.export.sources.autoencoder import vae_config, vae_entries
from tintype.export.sources.clip import clip_config, clip_entries, open_clip_entries
from tintype.export.sources.entries import Entries, Entry
from tintype.export.sources.ldm_unet import LdmUNet
from tintype.export.sources.scaled import with_scales, without_scales
from tintype.export.sources.source import CheckpointSource, SourceOptions
from tintype.export.sources.tokenizers import find_tokenizers
from tintype.sources.header import Header, broken, read_header
from tintype.sources.licence import licence_of, origin_of
from tintype.sources.one_file import (
    LATENT_CELL,
    REFINER,
    SD1,
    SD2,
    UNET,
    VAE,
    XL,
    Layout,
    demand_layout,
    has_vae,
    pipeline_of,
)
from tintype.sources.prediction import Prediction, prediction_of, resolution_of

# The noise that all of them were trained with, and diffusers' published sampler of each family.
_NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
_PNDM = {"_class_name": "PNDMScheduler", "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
_EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "use_karras_sigmas": False}


def open_file(path: Path, options: SourceOptions) -> CheckpointSource:
    """Look at one file. Raises ExportError for one that isn't sound or known, or that lacks a VAE or a tokenizer."""
    header, scales = without_scales(read_header(path))
    layout = demand_layout(header)
    if options.vae is None and not has_vae(header):
        raise ExportError(
            f"{path} has no VAE in it", fix=f"give one of {layout.known_as} as --vae (a file, or a diffusers folder)"
        )
    text = _text_encoders(header, layout)
    prediction = prediction_of(header, layout, options.prediction_type)
    configs = {name: _text_config(path, name, entries, layout) for name, entries in text.items()}
    shapes = {name: facts.shape for name, facts in header.under(UNET).items()}
    unet = LdmUNet.of(path, shapes)
    configs["unet"] = unet.config(
        is_sd1=layout is SD1,
        sample_size=resolution_of(header, layout, prediction) // LATENT_CELL,
        projection_dim=int(configs.get("text_encoder_2", {}).get("projection_dim", 0)),
        time_ids=layout.time_ids,
    )
    entries: dict[str, Entries] = {**text, "unet": _unet_entries(header, unet)}
    if has_vae(header):
        entries["vae"] = vae_entries(header, VAE)
        configs["vae"] = vae_config(path, entries["vae"], scaling_factor=layout.scaling_factor, is_xl=layout.is_xl)
    configs["scheduler"] = _scheduler(layout, prediction)
    return CheckpointSource(
        location=path,
        index=_index(header, layout),
        configs=configs,
        weights=dict.fromkeys((*text, "unet", "vae"), (path,)),
        entries=with_scales(entries, scales) if scales else entries,
        tokenizers=find_tokenizers(path, layout, options.tokenizer),
        licence=licence_of(header.metadata),
        origin=origin_of(header.metadata),
        assumed=(f"prediction_type is {prediction.kind}, {prediction.how}",) if prediction.assumed else (),
    )


def open_unet(header: Header) -> Entries:
    """Where the tensors of a file's UNet lie, whatever else is in it. Raises ExportError for one that has none."""
    header, scales = without_scales(header)
    demand_layout(header)
    unet = LdmUNet.of(header.path, {name: facts.shape for name, facts in header.under(UNET).items()})
    return with_scales({"unet": _unet_entries(header, unet)}, scales)["unet"]


def _text_encoders(header: Header, layout: Layout) -> dict[str, Entries]:
    return {
        name: open_clip_entries(header, prefix, without_last=layout is SD2)
        if name in layout.open_clip
        else clip_entries(header, prefix)
        for name, prefix in layout.text_encoders.items()
    }


def _unet_entries(header: Header, unet: LdmUNet) -> Entries:
    found: dict[str, Entry] = {}
    for old, new in unet.names().items():
        if new in found:
            raise broken(header.path, f"{UNET}{old} and {found[new].name} are the same tensor")
        found[new] = Entry.of(header, UNET + old)
    return found


def _text_config(path: Path, name: str, entries: Entries, layout: Layout) -> dict[str, Any]:
    kind = "CLIPTextModelWithProjection" if name == "text_encoder_2" else "CLIPTextModel"
    return clip_config(path, entries, kind=kind, is_open=name in layout.open_clip)


def _scheduler(layout: Layout, prediction: Prediction) -> dict[str, Any]:
    """With zero terminal SNR, steps must begin at the last timestep (Lin et al. 2023), which leading ones don't."""
    config = {**(_EULER if layout.is_xl else _PNDM), **_NOISE, "prediction_type": prediction.kind}
    if prediction.zero_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _index(header: Header, layout: Layout) -> Mapping[str, Any]:
    """model_index.json of the pipeline that the file's UNet is for."""
    scheduler = _EULER if layout.is_xl else _PNDM
    index: dict[str, Any] = {
        "_class_name": pipeline_of(header, layout),
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if not layout.is_xl:
        return index | {"feature_extractor": [None, None], "safety_checker": [None, None]}
    index |= {
        "force_zeros_for_empty_prompt": layout is XL,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    if layout is REFINER:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    return index
