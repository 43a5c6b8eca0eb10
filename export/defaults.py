"""What a bundle does where a request says nothing: steps, sampler, spacing, guidance and size, from the checkpoint.

A model that was distilled to few steps looks like any other by its weights. Its scheduler tells, or its UNet, or what
its folder, its files and the head of its model card are called; where none of these tells, the user does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tintype.bounds import MAX_CONFIG_BYTES
from tintype.bundle import DefaultRequest, SizeLimits
from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint
from tintype.files import read_plain
from tintype.sources.families import REFINER
from tintype.strict_json import Misfit

LARGEST_SIDE = 2048  # pixels; beyond it these models repeat themselves
MAX_FEW_STEPS = 32
UNGUIDED = 1.0  # 0 is off too in a bundle of which this is the default
REFINER_STRENGTH = 0.3  # as StableDiffusionXLImg2ImgPipeline has it
RESCALE = 0.7  # of guidance, for zero terminal SNR (Lin et al. 2023, section 3.4)


@dataclass(frozen=True, slots=True)
class FewSteps:
    """How a distilled model is drawn, as its model card says."""

    steps: int
    sampler: str
    sigmas: str | None = "trailing"


TURBO = FewSteps(1, "euler_a")
LCM = FewSteps(4, "lcm", None)
# By a word in a name. A finetune that calls itself turbo takes more steps than the models that it was made of.
DISTILLED: dict[str, FewSteps] = {
    r"sd(xl)?[-_ ]?turbo": TURBO,
    r"sdxs": FewSteps(1, "euler"),
    r"lightning": FewSteps(4, "euler"),
    r"hyper[-_ ]?sd(xl)?": FewSteps(8, "ddim"),
    r"dmd2?": LCM,
    r"lcm": LCM,
    r"turbo": FewSteps(4, "euler_a"),
}
BY_SCHEDULER = {"LCMScheduler": LCM, "TCDScheduler": FewSteps(4, "tcd", None)}


def size_limits(checkpoint: Checkpoint) -> SizeLimits:
    """Sizes the graphs can do: the UNet halves latents once a level, the VAE has its factor.

    Raises ExportError where none of them makes a picture.
    """
    multiple = checkpoint.vae_scale_factor * checkpoint.latent_multiple
    try:
        return SizeLimits(multiple=multiple, minimum=multiple, maximum=max(1, LARGEST_SIDE // multiple) * multiple)
    except Misfit as misfit:
        raise ExportError(
            f"the UNet and the VAE have so many levels that {misfit}", fix="download the checkpoint's config.json again"
        ) from None


def usual_request(checkpoint: Checkpoint, few_steps: int | None = None) -> DefaultRequest:
    """What a newcomer's first picture is drawn with, at the size the UNet was made for.

    20 steps of dpmpp_2m with guidance 7.5, for XL 5, on the checkpoint's own spacing; but a model that was distilled
    takes the steps that it was distilled to, unguided; one of zero terminal SNR the spacing that reaches the last
    timestep, and a rescaled guidance; InstructPix2Pix and the refiner what their pipelines take.

    few_steps: how many the model was distilled to, where its names don't say. Raises ExportError for none of them.
    """
    limits = size_limits(checkpoint)
    side = checkpoint.latent_size * checkpoint.vae_scale_factor
    side = max(limits.minimum, min(limits.maximum, side // limits.multiple * limits.multiple))
    request = DefaultRequest(
        width=side,
        height=side,
        num_inference_steps=20,
        guidance_scale=5.0 if checkpoint.family.is_xl else 7.5,
        sampler="dpmpp_2m",
        strength=REFINER_STRENGTH if checkpoint.family is REFINER else None,
    )
    if checkpoint.family.takes_picture:
        request = replace(request, sampler="euler_a", image_guidance_scale=1.5)
    if checkpoint.configs["scheduler"].get("rescale_betas_zero_snr") is True:
        request = replace(
            request,
            num_inference_steps=28,
            guidance_scale=5.0,
            guidance_rescale=RESCALE,
            sampler="euler",
            sigmas="trailing",
        )
    few = few_steps_of(checkpoint, few_steps)
    if few is None:
        return request
    return replace(
        request,
        num_inference_steps=few.steps,
        sampler=few.sampler,
        sigmas=few.sigmas,
        guidance_scale=8.5 if checkpoint.guidance_embedding is not None else UNGUIDED,
        guidance_rescale=0.0,
    )


def few_steps_of(checkpoint: Checkpoint, steps: int | None = None) -> FewSteps | None:
    """How a distilled checkpoint is drawn; None for one that isn't. steps: that many, where the user says so."""
    if steps is not None and not 1 <= steps <= MAX_FEW_STEPS:
        raise ExportError(
            f"{steps} steps are not what a model is distilled to", fix=f"give 1 to {MAX_FEW_STEPS}, or leave it out"
        )
    kind, said = _kind_of(checkpoint)
    if steps is None:
        return kind if kind is None or said is None else replace(kind, steps=said)
    return replace(kind or FewSteps(steps, "euler"), steps=steps)


def _kind_of(checkpoint: Checkpoint) -> tuple[FewSteps | None, int | None]:
    """The kind, and the number of steps that a name says."""
    if checkpoint.guidance_embedding is not None:
        return LCM, None
    scheduler = checkpoint.configs["scheduler"]
    by_scheduler = BY_SCHEDULER.get(str(scheduler.get("_class_name")))
    for name in _names(checkpoint):
        for word, kind in DISTILLED.items():
            if re.search(rf"(?<![a-z]){word}(?![a-z])", name):
                steps = re.search(r"(?<![0-9])([1-9][0-9]?)[-_ ]?steps?(?![a-z])", name)
                return kind, int(steps[1]) if steps and int(steps[1]) <= MAX_FEW_STEPS else None
    if by_scheduler is not None:
        return by_scheduler, None
    return (TURBO, None) if _is_turbo(checkpoint) else (None, None)


def _is_turbo(checkpoint: Checkpoint) -> bool:
    """The published SD-Turbo and SDXL-Turbo alone have an Euler scheduler on trailing timesteps for noise as usual."""
    scheduler = checkpoint.configs["scheduler"]
    kinds = ["EulerAncestralDiscreteScheduler"]
    if not checkpoint.family.is_xl:
        kinds.append("EulerDiscreteScheduler")
    usual = checkpoint.prediction_type == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
    return usual and scheduler.get("timestep_spacing") == "trailing" and scheduler.get("_class_name") in kinds


def _names(checkpoint: Checkpoint) -> Iterator[str]:
    """What the checkpoint is called, in small letters, the nearest name first."""
    source = checkpoint.source
    yield (source.address or source.location.resolve().name).lower()
    for config in (checkpoint.index, checkpoint.configs["unet"]):
        place = str(config.get("_name_or_path", "")).replace("\\", "/")
        yield "/".join(place.split("/")[-2:])[-500:].lower()
    for path in checkpoint.weights["unet"]:
        yield path.name.lower()
    yield from _card_names(checkpoint)


def _card_names(checkpoint: Checkpoint) -> Iterator[str]:
    """The base models and the title of its model card; what the text goes on to say is of other models too."""
    try:
        card = read_plain(checkpoint.source.location / "README.md", MAX_CONFIG_BYTES).decode(errors="replace")
    except OSError:
        return
    card = card[:20_000]
    bases = re.search(r"^base_model:[^\n]*(?:\n[ \t]*- [^\n]*)*", card, re.MULTILINE)  # one, or a list of them
    title = re.search(r"^# [^\n]*", card, re.MULTILINE)
    yield from (found[0][:500].lower() for found in (title, bases) if found)
