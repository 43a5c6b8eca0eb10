"""Whether a device draws what the processor draws: postcard's picture, the same bytes twice, heavy nodes placed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import tintype
from tintype.bench.bars import verdict
from tintype.bench.figures import picture_psnr_db
from tintype.bench.job import PROMPT
from tintype.bundle import Bundle, open_bundle
from tintype.engine import BuildOptions, Session, ensure_build, open_role, open_session, resolve_provider
from tintype.engine.device.providers import TARGETS
from tintype.pipeline import Pipeline

PICTURE_GATE_DB = 45.0
PLAIN = "openvino"  # the target whose lowering leaves float operators that any provider runs
SEED = 7


class OnTheProcessor(Pipeline):
    """Float graphs run by the processor: what a device that computes in floats is compared with.

    The processor's own builds of postcard round to 8 bits, which no GPU's do.
    """

    def open(self, role: str, options: BuildOptions, device_bytes: int | None = None) -> Session:
        plain = BuildOptions.for_shape(dict(options.dims))
        folder = ensure_build(self.bundle, role, TARGETS[PLAIN], options=plain)
        return open_session(folder, TARGETS["cpu"], optimize=True)


def check(device: str, *, steps: int | None = None, size: int | None = None) -> dict[str, Any]:
    """The verdicts on one device, and what they rest on. steps, size: smaller than postcard's own, to try it."""
    bundle = open_bundle("postcard")
    fields: dict[str, Any] = {"seed": SEED, "num_inference_steps": steps, "width": size, "height": size}
    request = {name: value for name, value in fields.items() if value is not None}
    with OnTheProcessor(bundle, TARGETS["cpu"]) as pipeline:
        expected = _pixels(pipeline.generate(PROMPT, **request))
    found: dict[str, Any] = {"pictures": {}, "bars": []}
    for exactness in ("exact", "balanced"):
        pictures = [_draw(device, {**request, "exactness": exactness}) for _ in range(2)]
        told = {
            "psnr_db": round(picture_psnr_db(expected, pictures[0]), 2),
            "same_bytes_twice": bool(np.array_equal(*pictures)),
            "psnr_db_twice": round(picture_psnr_db(*pictures), 2),
            "placement": placement(bundle, device, exactness),
        }
        if device == "cuda":
            uncaptured = _uncaptured(device, request, exactness)
            told["psnr_db_without_cuda_graphs"] = round(picture_psnr_db(pictures[0], uncaptured), 2)
        found["pictures"][exactness] = told
        found["bars"] += _judge(exactness, told)
    return found


def placement(bundle: Bundle, device: str, exactness: str) -> dict[str, Any]:
    """By role, nodes by provider; opening refuses a heavy node off the device, so that being here is the proof."""
    found = {}
    for role, dims in shapes_of(bundle).items():
        options = BuildOptions.for_shape(dims, exactness=exactness)
        with open_role(bundle, role, resolve_provider(device), options=options) as session:
            found[role] = {name: sum(nodes.values()) for name, nodes in session.placement.nodes.items()}
    return found


def shapes_of(bundle: Bundle) -> dict[str, dict[str, int]]:
    """The dims of a small guided picture, by role."""
    side = max(1, bundle.manifest.size.minimum // bundle.manifest.vae_scale_factor)
    picture = {"height": side, "width": side}
    return {
        "text_encoder": {"batch": 1},
        "denoiser": {"batch": 2, "sequence": bundle.manifest.tokenizer.max_length, **picture},
        "vae_decoder": {"batch": 1, **picture},
    }


def _judge(exactness: str, told: dict[str, Any]) -> list[dict[str, Any]]:
    bars = [verdict(f"{exactness}: postcard, dB to the processor", told["psnr_db"], at_least=PICTURE_GATE_DB)]
    # Balanced builds on CUDA normalize with atomic sums; there the figure is told and not judged.
    if exactness == "exact":
        bars.append(verdict("exact: the same bytes twice", float(told["same_bytes_twice"]), at_least=1.0))
    return bars


def _draw(device: str, request: dict[str, Any]) -> Any:
    with tintype.load("postcard", provider=device) as pipeline:
        return _pixels(pipeline.generate(PROMPT, **request))


def _uncaptured(device: str, request: dict[str, Any], exactness: str) -> Any:
    usual = os.environ.get("TINTYPE_CUDA_GRAPHS")
    os.environ["TINTYPE_CUDA_GRAPHS"] = "0"
    try:
        return _draw(device, {**request, "exactness": exactness})
    finally:
        os.environ.pop("TINTYPE_CUDA_GRAPHS")
        if usual is not None:
            os.environ["TINTYPE_CUDA_GRAPHS"] = usual


def _pixels(result: Any) -> Any:
    return np.asarray(result.image)
