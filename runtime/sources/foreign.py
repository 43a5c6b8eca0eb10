"""Models that people know and that can't be exported: named by what they look like, with what they would need.

Nothing of them is read but model_index.json, which has passed as JSON of bounded size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintype.errors import ExportError, printable

_FLOW = "a transformer of rectified flow"
_T5 = "a T5 text encoder"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A kind of model, and what the runtime would have to learn for it."""

    known_as: str
    needs: str


# By the beginning of a pipeline's class name, the longer ones first where one begins as another does.
FOREIGN: dict[str, Foreign] = {
    "StableDiffusion3": Foreign("Stable Diffusion 3", f"{_FLOW}, latents of 16 channels and {_T5}"),
    "StableDiffusionXLInstructPix2Pix": Foreign("InstructPix2Pix of XL", "a UNet of 8 channels that is told of sizes"),
    "StableDiffusionXLControlNet": Foreign(
        "Stable Diffusion XL with a ControlNet", "ControlNets as a part of a bundle"
    ),
    "StableDiffusionControlNet": Foreign("Stable Diffusion with a ControlNet", "ControlNets as a part of a bundle"),
    "StableDiffusionUpscale": Foreign("the x4 upscaler of Stable Diffusion", "a UNet that is told of a noise level"),
    "StableDiffusionLatentUpscale": Foreign("the latent upscaler of Stable Diffusion", "a UNet of k-diffusion's kind"),
    "StableDiffusionDepth2Img": Foreign("Stable Diffusion 2 with depth", "a depth estimator, and a UNet of 5 channels"),
    "StableDiffusionImageVariation": Foreign("Stable Diffusion for variations", "an image encoder in place of words"),
    "StableUnCLIP": Foreign("Stable unCLIP", "an image encoder and class embeddings"),
    "StableVideoDiffusion": Foreign("Stable Video Diffusion", "frames, and an image encoder"),
    "StableCascade": Foreign("Stable Cascade", "three denoisers one after another"),
    "Wuerstchen": Foreign("Wuerstchen", "three denoisers one after another"),
    "Flux2": Foreign("FLUX.2", f"{_FLOW}, packed latents of 32 channels and a language model as text encoder"),
    "Flux": Foreign("FLUX", f"{_FLOW}, packed latents of 16 channels and {_T5}"),
    "Chroma": Foreign("Chroma", f"{_FLOW}, packed latents of 16 channels and {_T5}"),
    "PixArt": Foreign("PixArt", f"a transformer as denoiser and {_T5}"),
    "AuraFlow": Foreign("AuraFlow", f"{_FLOW} and {_T5}"),
    "Sana": Foreign("Sana", f"{_FLOW}, a VAE of factor 32 and a language model as text encoder"),
    "HunyuanVideo": Foreign("HunyuanVideo", "frames, and a language model as text encoder"),
    "HunyuanDiT": Foreign("Hunyuan-DiT", f"a transformer as denoiser, a BERT and {_T5}"),
    "Lumina": Foreign("Lumina", f"{_FLOW} and a language model as text encoder"),
    "QwenImage": Foreign("Qwen-Image", f"{_FLOW}, packed latents of 16 channels and a language model as text encoder"),
    "ZImage": Foreign("Z-Image", f"{_FLOW} and a language model as text encoder"),
    "Kandinsky": Foreign("Kandinsky", "a prior, or a transformer, and other text encoders"),
    "Kolors": Foreign("Kolors", "a language model (ChatGLM) as text encoder"),
    "Wan": Foreign("Wan", f"frames, a VAE in three dimensions and {_T5}"),
    "LTX": Foreign("LTX-Video", f"frames, a VAE in three dimensions and {_T5}"),
    "CogVideoX": Foreign("CogVideoX", f"frames, a VAE in three dimensions and {_T5}"),
    "CogView": Foreign("CogView", "a transformer as denoiser and a language model as text encoder"),
    "HiDream": Foreign("HiDream", f"{_FLOW}, latents of 16 channels, {_T5} and a language model beside it"),
    "Cosmos": Foreign("Cosmos", f"frames, a VAE in three dimensions and {_T5}"),
    "Mochi": Foreign("Mochi", f"frames, a VAE in three dimensions and {_T5}"),
    "AnimateDiff": Foreign("AnimateDiff", "frames, and motion layers in the UNet"),
    "IF": Foreign("DeepFloyd IF", f"pixels in place of latents and {_T5}"),
    "LDMTextToImage": Foreign("latent diffusion of 2022", "a BERT as text encoder"),
}
# By the class of a part, where the pipeline's name says nothing.
_BY_PART: dict[str, Foreign] = {
    "transformer": Foreign("a model with a transformer as denoiser", "that transformer, and its text encoders"),
    "prior": Foreign("a model with a prior", "the prior"),
    "unet": Foreign("a model with a UNet", "another text encoder, or other inputs of the UNet"),
}


def foreign_model(place: Path, index: Mapping[str, Any], known: Mapping[str, Sequence[str]]) -> ExportError:
    """The error for a model_index.json of no family here. known: by what people call it, the pipelines of each."""
    pipeline = str(index.get("_class_name"))[:100]
    doable = "; ".join(f"{', '.join(pipelines)} ({name})" for name, pipelines in known.items())
    looks_like = next((kind for start, kind in FOREIGN.items() if pipeline.startswith(start)), None)
    looks_like = looks_like or next((kind for part, kind in _BY_PART.items() if index.get(part)), None)
    what = f"{place} holds a {printable(pipeline)}, which this exporter doesn't know"
    if looks_like is None:
        return ExportError(what, fix=f"export one of {doable}")
    return ExportError(
        f"{what}: it looks like {looks_like.known_as}, which would need {looks_like.needs}",
        fix=f"export one of {doable}",
    )
