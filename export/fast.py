"""A second denoiser in a bundle: one that was distilled from the first and draws in few steps.

It comes from the bundle of the distilled checkpoint, whose default request says how it is drawn. Text encoder, VAE,
tokenizer and noise schedule are those of the bundle that it is added to; where the two can be seen to differ in them,
it is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tintype.bounds import MAX_SCHEDULER_BYTES
from tintype.bundle import Bundle, FastRequest, Manifest, ReplacedPart, file_facts, open_bundle, write_manifest
from tintype.bundle.manifest import FAST, FULL
from tintype.bundle.verify import read_json
from tintype.errors import ExportError
from tintype.sampling import SchedulerConfig
from tintype.strict_json import Misfit

DENOISER = "denoiser"
FOLDER = "unet_fast"
MAX_STEPS = 32  # of a fast denoiser: with more it isn't
SHARED = (
    "family", "prediction_type", "latent_channels", "vae_scale_factor", "scaling_factor", "shift_factor", "size",
)  # fmt: skip


def add_fast(bundle: Path, distilled: Path) -> Manifest:
    """Let requests with `fast` be drawn by the denoiser of another bundle, in place; returns the new manifest.

    A fast denoiser that was there is replaced. The manifest is written last: until then the bundle is as it was, or,
    where an older fast denoiser was half replaced, refused.

    Raises ExportError where the two bundles don't go together, and BundleError for what is none.
    """
    receiver, giver = open_bundle(bundle), open_bundle(distilled)
    reason = next(_differences(receiver, giver), None)
    if reason is not None:
        raise ExportError(
            f"the denoiser of {giver.name} can't draw in {receiver.name}: {reason}",
            fix="export the checkpoint that was distilled from this bundle's own, with --few-steps",
        )
    theirs = giver.graph(DENOISER)
    shutil.rmtree(receiver.folder / FOLDER, ignore_errors=True)
    shutil.copytree((giver.folder / theirs.file).parent, receiver.folder / FOLDER)
    manifest = receiver.manifest
    usual, name = giver.manifest.default_request, f"{DENOISER}.{FAST}"
    denoisers = {FULL: receiver.graph(DENOISER), FAST: replace(theirs, file=f"{FOLDER}/{Path(theirs.file).name}")}
    source = giver.manifest.source
    try:
        made = replace(
            manifest,
            fast=FastRequest(
                num_inference_steps=usual.num_inference_steps,
                guidance_scale=usual.guidance_scale,
                sampler=usual.sampler,
                sigmas=usual.sigmas,
            ),
            graphs={**manifest.graphs, DENOISER: denoisers},
            parity=(
                *(each for each in manifest.parity if each.graph != name),
                *(replace(each, graph=name) for each in giver.manifest.parity if each.graph == DENOISER),
            ),
            source=replace(manifest.source, fast=ReplacedPart(location=source.location, sha256=source.sha256)),
            files=file_facts(receiver.folder),
        )
    except Misfit as misfit:
        raise ExportError(f"the bundle would not open: {misfit}", fix="export both checkpoints again") from None
    write_manifest(receiver.folder, made)
    return made


def _inputs(bundle: Bundle) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    """Types and shapes by name; of the timestep, which older bundles have as one number in a list, no shape."""
    ports = bundle.graph(DENOISER).inputs
    return {port.name: (port.dtype, () if port.name == "timestep" else port.shape) for port in ports}


def _differences(receiver: Bundle, giver: Bundle) -> Iterator[str]:
    """Why the second's denoiser can't draw in the first, a clause each."""
    ours, theirs = receiver.manifest, giver.manifest
    for name in SHARED:
        if getattr(ours, name) != getattr(theirs, name):
            yield f"its {name} is {getattr(theirs, name)}, not {getattr(ours, name)}"
    if _inputs(receiver) != _inputs(giver):
        yield "it takes other inputs"
    first, second = (
        SchedulerConfig.from_json(read_json(each.folder, each.manifest.scheduler, MAX_SCHEDULER_BYTES)).alphas_cumprod
        for each in (receiver, giver)
    )
    if first.shape != second.shape or not np.allclose(first, second):
        yield "it was trained on another noise schedule"
    steps = theirs.default_request.num_inference_steps
    if steps > MAX_STEPS:
        yield f"it takes {steps} steps, and {MAX_STEPS} are the most of a fast one"
