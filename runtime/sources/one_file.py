"""One .safetensors file in the naming of latent-diffusion (LDM), which kohya's trainers and A1111 write too.

The family is told from prefixes of names and the shapes behind them. What a file may hold beside a model (EMA weights,
noise schedules, positions) is left alone: only what lies under a part's prefix is the part.
"""

from __future__ import annotations

from dataclasses import dataclass

from tintype.errors import ExportError
from tintype.sources.header import Header
from tintype.sources.looks import EMA_ALONE, Look, looks_like

UNET = "model.diffusion_model."
VAE = "first_stage_model."
FIRST_CONVOLUTION = f"{UNET}input_blocks.0.0.weight"
EMA = "model_ema."
LATENT_CELL = 8  # pixels a side of a latent cell in every family here
EDM_MARKS = ("edm_mean", "edm_vpred.sigma_max")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one family's file has its parts; text encoders in transformers' names, but for those in open_clip's."""

    known_as: str
    text_encoders: dict[str, str]  # by component: its prefix
    open_clip: tuple[str, ...]  # those components that are of OpenCLIP
    scaling_factor: float  # of the VAE that the family was trained with
    resolution: int  # pixels a side that it was trained at, where the file says nothing
    time_ids: int = 0  # numbers that the UNet is told beside words: sizes, in the refiner with a score

    @property
    def is_xl(self) -> bool:
        return self.time_ids > 0


SD1 = Layout("Stable Diffusion 1.x", {"text_encoder": "cond_stage_model.transformer."}, (), 0.18215, 512)
SD2 = Layout("Stable Diffusion 2.x", {"text_encoder": "cond_stage_model.model."}, ("text_encoder",), 0.18215, 512)
XL = Layout(
    "Stable Diffusion XL",
    {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
    ("text_encoder_2",),
    0.13025,
    1024,
    6,
)
REFINER = Layout(
    "the refiner of Stable Diffusion XL",
    {"text_encoder_2": "conditioner.embedders.0.model."},
    ("text_encoder_2",),
    0.13025,
    1024,
    5,
)
LAYOUTS = (XL, REFINER, SD2, SD1)

# What a UNet takes beside 4 channels of latents makes it another kind of model; UNDONE ones take other pictures.
KINDS = {4: "", 5: "depth", 7: "upscaling", 8: "editing (InstructPix2Pix)", 9: "inpainting"}
UNDONE = (5, 7)
# diffusers' pipelines by that, of 1.x and 2.x, and of XL; of another count they are refused when channels are checked.
_PIPELINES = {
    9: ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
    8: ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"),
}
_TEXT_TO_IMAGE = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def layout_of(header: Header) -> Layout | None:
    """The family that a file's names are of; None where it is none that has all parts but perhaps the VAE."""
    if FIRST_CONVOLUTION not in header.tensors or any(mark in header.tensors for mark in EDM_MARKS):
        return None
    starts = {name.split(".", 3)[0] + "." for name in header.tensors}  # cheap: most files are none of these
    if not starts & {"cond_stage_model.", "conditioner."}:
        return None
    if any(".time_stack." in name for name in header.tensors):
        return None
    return next(
        (
            layout
            for layout in LAYOUTS
            if all(any(name.startswith(prefix) for name in header.tensors) for prefix in layout.text_encoders.values())
        ),
        None,
    )


def look_of(header: Header) -> Look:
    """What a file without a layout looks like."""
    names = header.tensors
    if any(name.startswith(EMA) for name in names) and not any(name.startswith(UNET) for name in names):
        return EMA_ALONE
    return looks_like(names)


def demand_layout(header: Header) -> Layout:
    """The family of a file. Raises ExportError for any other file, which says what it looks like."""
    layout = layout_of(header)
    if layout is None:
        look = look_of(header)
        raise ExportError(
            f"{header.path} is no checkpoint that is known here: it looks like {look.name}", fix=look.need
        )
    return layout


def latent_inputs(header: Header) -> int:
    """Channels that the UNet of a file takes, which say what kind of model it is."""
    shape = header.tensors[FIRST_CONVOLUTION].shape
    return shape[1] if len(shape) == 4 else 0


def has_vae(header: Header) -> bool:
    """Whether a file holds both halves of a VAE."""
    halves = (f"{VAE}encoder.conv_in.weight", f"{VAE}decoder.conv_in.weight")
    return all(name in header.tensors for name in halves)


def pipeline_of(header: Header, layout: Layout) -> str:
    """What diffusers calls the pipeline that a file's UNet is for."""
    if layout is REFINER:
        return "StableDiffusionXLImg2ImgPipeline"
    return _PIPELINES.get(latent_inputs(header), _TEXT_TO_IMAGE)[layout.is_xl]
