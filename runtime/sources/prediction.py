"""What a checkpoint's denoiser predicts, and how that is known: a file of weights alone can't always say it.

A file may carry a mark (the empty tensor `v_pred` of finetunes of XL, with `ztsnr` where the last timestep has no
picture left), or the ModelSpec metadata that trainers write (https://github.com/Stability-AI/ModelSpec). Stable
Diffusion 2.x was published both ways with the same names and shapes; where nothing says which, what is assumed is
called so.
"""

from __future__ import annotations

from dataclasses import dataclass

from tintype.sources.header import Header
from tintype.sources.one_file import SD2, Layout, latent_inputs

EPSILON, V_PREDICTION = "epsilon", "v_prediction"
CHOICES = (EPSILON, V_PREDICTION)  # of --prediction-type

_SPELLINGS = {
    "epsilon": EPSILON,
    "eps": EPSILON,
    "v": V_PREDICTION,
    "v_prediction": V_PREDICTION,
    "vpred": V_PREDICTION,
}
_SIZES = range(256, 2049)  # pixels a side that a file may say it was trained at


@dataclass(frozen=True, slots=True)
class Prediction:
    """kind: epsilon, v_prediction or sample. how: a sentence's end. zero_snr: the last timestep is noise alone."""

    kind: str
    how: str
    assumed: bool = False
    zero_snr: bool = False


def prediction_of(header: Header, layout: Layout, wanted: str | None = None) -> Prediction:
    """What one file's UNet predicts. wanted: what the user says, who may know better than the file."""
    zero_snr = "ztsnr" in header.tensors
    if wanted is not None:
        return Prediction(wanted, "as --prediction-type says", zero_snr=zero_snr)
    if "v_pred" in header.tensors:
        return Prediction(V_PREDICTION, "by its mark v_pred", zero_snr=zero_snr)
    metadata = header.metadata
    spelled = _SPELLINGS.get(metadata.get("modelspec.prediction_type", "").strip().lower())
    if spelled is not None:
        return Prediction(spelled, "by its modelspec.prediction_type", zero_snr=zero_snr)
    if layout is not SD2:
        how = f"as {layout.known_as} was trained; the file says nothing"
        return Prediction(EPSILON, how, assumed=True, zero_snr=zero_snr)
    if latent_inputs(header) != 4:
        how = "as the inpainting, depth and upscaling models of 2.x were; the file says nothing"
        return Prediction(EPSILON, how, assumed=True)
    architecture = metadata.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2-"):
        kind = V_PREDICTION if "-v" in architecture.removeprefix("stable-diffusion-v2-") else EPSILON
        return Prediction(kind, "by its modelspec.architecture", zero_snr=zero_snr)
    how = "as 2.x of 768 pixels was trained; the file says nothing, and 2.x-base predicts epsilon"
    return Prediction(V_PREDICTION, how, assumed=True, zero_snr=zero_snr)


def resolution_of(header: Header, layout: Layout, prediction: Prediction) -> int:
    """Pixels a side that a file's UNet was trained at: as its metadata says, else as its family was.

    2.x that predicts v was trained at 768 pixels.
    """
    stated = _square(header.metadata.get("modelspec.resolution", ""))
    if stated is not None:
        return stated
    return 768 if layout is SD2 and prediction.kind == V_PREDICTION else layout.resolution


def _square(text: str) -> int | None:
    """The side of a size such as 768x768, where that is one of sense."""
    sides = text.lower().split("x")
    if len(sides) == 2 and sides[0] == sides[1] and sides[0].isascii() and sides[0].isdigit() and len(sides[0]) <= 4:
        side = int(sides[0])
        return side if side in _SIZES and side % 64 == 0 else None
    return None
