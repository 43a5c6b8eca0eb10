"""A picture's record: everything needed to make it again, and to say how it was made. It holds no clock and no path.

In a PNG it stands twice: as A1111's `parameters` text, which other tools read, and whole as JSON under `tintype`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from tintype import strict_json
from tintype.errors import RecordError, RequestError
from tintype.image.tiles import Tiling
from tintype.memory.holding import parse_holding
from tintype.memory.plan import Arrangement
from tintype.request import ResolvedRequest

RECORD_VERSION = 1
TIMED, BY_PRIORS = "timed", "priors"  # how a build's kernels were chosen
TEXT_KEY = "tintype"
A1111_KEY = "parameters"

A1111_SAMPLERS = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}
A1111_NOISE = {"philox": "NV", "torch-cpu": "CPU", "numpy": "numpy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What besides the request decides the bytes of a picture."""

    tintype: str  # version
    onnxruntime: str  # version
    bundle: str  # name
    bundle_hash: str
    precision: str  # of the denoiser's weights
    target: str
    builds: Mapping[str, str]  # role -> build key: bundle, lowering, ONNX Runtime and processor in one digest
    threads: int
    holdings: Mapping[str, str] = field(default_factory=dict)  # role -> how a memory budget had its graph held
    split_guidance: bool = False
    kernels: Mapping[str, str] = field(default_factory=dict)  # role -> how its build's were chosen: timed, or by priors


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """Of a picture that was made within a budget."""

    budget_bytes: int
    planned_peak_bytes: int
    peak_rss_bytes: int  # the most that the process had, over its life
    device_bytes: int = 0  # the most that was seen in a device's memory, beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One picture: the request without gaps, which of its pictures this is, and the circumstances."""

    record_version: int = RECORD_VERSION
    request: ResolvedRequest
    picture: int  # index within the request's count
    made_with: Circumstances
    tiling: Tiling | None = None  # the tiles that it was decoded in, in latent cells; None is whole
    memory: MemoryFacts | None = None  # None: there was no budget
    notes: tuple[str, ...] = field(default=())  # what the device made differently, such as a graph run again in fp32

    @property
    def seed(self) -> int:
        return self.request.seed + self.picture

    def texts(self) -> dict[str, str]:
        """The PNG's texts by keyword."""
        return {A1111_KEY: parameters_text(self), TEXT_KEY: json.dumps(json.loads(strict_json.dump(self)))}


def parse_record(text: str) -> Record:
    """The record in a PNG's `tintype` text. Raises RecordError when it is none, or a newer one."""
    try:
        value = strict_json.parse(text)
        version = value.get("record_version") if isinstance(value, dict) else None
        if isinstance(version, int) and version > RECORD_VERSION:
            raise RecordError(f"the record is of format {version}, newer than this tintype", fix="upgrade tintype")
        record = strict_json.read(Record, value)
        if not 0 <= record.picture < record.request.count:
            raise strict_json.Misfit(f"it has no picture {record.picture}")
    except (strict_json.Misfit, RequestError) as misfit:
        raise RecordError(f"the record cannot be read: {misfit}", fix="give a picture as tintype wrote it") from None
    return record


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record of a picture file. Raises RecordError when there is no file, or no record in it."""
    from tintype.image.png import read_texts

    texts = read_texts(path)
    if TEXT_KEY not in texts:
        told = "only A1111's parameters" if A1111_KEY in texts else "no record"
        raise RecordError(f"{path} holds {told}", fix="give a PNG that tintype wrote and nothing has saved again since")
    return parse_record(texts[TEXT_KEY])


def arrangement_of(made_with: Circumstances) -> Arrangement:
    """How graphs were held when a picture was made: part of what decides its bytes.

    Raises RecordError when it names a way that isn't known.
    """
    try:
        holdings = {role: parse_holding(words) for role, words in made_with.holdings.items()}
    except ValueError as error:
        raise RecordError(f"the record cannot be read: {error}", fix="upgrade tintype") from None
    timed = {role: how == TIMED for role, how in made_with.kernels.items()}
    return Arrangement(holdings=holdings, split_guidance=made_with.split_guidance, keep=not holdings, timed=timed)


def differences(record: Record, here: Circumstances) -> list[str]:
    """Why the same picture can't be promised here: a sentence for each circumstance that differs."""
    there = record.made_with
    found = []
    if there.bundle_hash != here.bundle_hash:
        found.append(f"it was made with another bundle: {there.bundle} {there.bundle_hash[:12]}")
    for name in ("tintype", "onnxruntime", "target", "threads"):
        was, now = getattr(there, name), getattr(here, name)
        if was != now:
            found.append(f"{name} was {was}, here it is {now}")
    rebuilt = [role for role, key in there.builds.items() if here.builds.get(role) != key]
    if rebuilt and not found:
        found.append(f"this processor or lowering gives other builds of {', '.join(rebuilt)}")
    return found


def unrepeatable(record: Record) -> list[str]:
    """Why not even the machine that made a picture can promise its bytes again."""
    if record.made_with.target == "cuda" and record.request.exactness == "balanced":
        return ["balanced pictures on cuda differ in their last bits from run to run; exact ones don't"]
    return []


def parameters_text(record: Record) -> str:
    """The request as A1111 writes it under a picture."""
    request, made_with = record.request, record.made_with
    facts = {
        "Steps": request.num_inference_steps,
        "Sampler": A1111_SAMPLERS.get(request.sampler, request.sampler),
        "Schedule type": request.sigmas.capitalize() if request.sigmas else None,
        "CFG scale": f"{request.guidance_scale:g}",
        "CFG Rescale": f"{request.guidance_rescale:g}" if request.guidance_rescale else None,
        "Seed": record.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": made_with.bundle_hash[:10],
        "Model": made_with.bundle,
        "RNG": A1111_NOISE[request.noise],
        "Version": f"tintype {made_with.tintype}",
    }
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in facts.items() if value is not None))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',\n:"') else text
