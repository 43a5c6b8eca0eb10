"""A1111's parameters under a picture, read: the prompt, the negative prompt, then one line of `Key: value, ...`.

Forge, SD.Next and stable-diffusion.cpp write the same. Reading takes time that grows with the text's length alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tintype.errors import RecordError
from tintype.record.a1111 import A1111_NOISE
from tintype.record.foreign_names import sampler_named
from tintype.record.likeness import ClipLayer, Likeness, quoted

NEGATIVE = "Negative prompt:"
LEAST_FACTS = 3  # of the last line, or it is part of a prompt

_FACT = re.compile(r'\s*+(?P<key>\w[\w \-/]*+):\s*+(?P<value>"(?:[^"\\]|\\.)*+"|[^,]*+)(?:,|\Z)')
_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>:]{1,200})(?::([^<>]{0,60}))?>", re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")

# Keys that say nothing of the picture, or say once more what another one says.
_SILENT = {
    "Version", "Hashes", "Lora hashes", "VAE hash", "TI hashes", "Batch size", "Batch pos", "User", "RNG",
    "Model", "Model hash", "Sampler", "Schedule type", "Clip skip", "Denoising strength", "Hires upscale",
    "Hires upscaler", "Hires resize", "Civitai resources", "Civitai metadata", "Created Date",
}  # fmt: skip


def read_parameters(text: str) -> Likeness:
    """What A1111's text asks for. Raises RecordError where it is none."""
    lines = text.strip().split("\n")
    facts = dict(_facts(lines[-1]))
    if len(facts) < LEAST_FACTS:
        raise RecordError(
            "the picture's parameters are not as A1111 writes them: their last line has no Steps, Sampler and Seed",
            fix="give a picture as the tool wrote it",
        )
    reader = _Reader(facts)
    reader.words("\n".join(lines[:-1]))
    reader.numbers()
    reader.sampler()
    reader.noise()
    reader.strength()
    skip = reader.number("Clip skip", int, 1, 100)
    reader.rest()
    return Likeness(
        fields=reader.fields,
        left_out=tuple(reader.left_out),
        model=facts.get("Model"),
        model_hash=facts.get("Model hash"),
        clip_layer=None if skip is None else ClipLayer(skip, also_of_xl=facts.get("Version", "").startswith("tintype")),
        of_image=reader.of_image,
    )


def _facts(line: str) -> Iterator[tuple[str, str]]:
    """Key and value of each fact; what is none is passed over up to the next comma."""
    place = 0
    while 0 <= place < len(line):
        fact = _FACT.match(line, place)
        if fact is None:
            place = line.find(",", place) + 1 or -1
            continue
        place = fact.end()
        yield fact["key"].strip(), _unquoted(fact["value"].strip())


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


class _Reader:
    """Facts that become fields one after another; sentences for what is left."""

    def __init__(self, facts: dict[str, str]) -> None:
        self.facts = facts
        self.known = set(_SILENT)
        self.fields: dict[str, Any] = {}
        self.of_image: dict[str, Any] = {}
        self.left_out: list[str] = []

    def words(self, text: str) -> None:
        prompt, _, negative = text.partition(NEGATIVE) if text.startswith(NEGATIVE) else _split(text)
        for name, words in (("prompt", prompt), ("negative_prompt", negative)):
            for network in _NETWORK.finditer(words):
                weight = f" at {network[3]}" if network[3] else ""
                self.left_out.append(f"the {network[1].lower()} {quoted(network[2])}{quoted(weight)}")
            self.fields[name] = _NETWORK.sub("", words).strip()

    def number(self, key: str, kind: Callable[[str], Any], least: float, most: float) -> Any:
        """A fact as a number; None where it is missing, or with a sentence where it is none."""
        self.known.add(key)
        text = self.facts.get(key)
        if text is None:
            return None
        try:
            number = kind(text[:40])
            if least <= number <= most:
                return number
        except ValueError:
            pass
        self.left_out.append(f"{key}: {quoted(text)}")
        return None

    def numbers(self) -> None:
        for key, name, kind, least, most in (
            ("Steps", "num_inference_steps", int, 1, 1000),
            ("Seed", "seed", int, 0, 2**64 - 1),
            ("CFG scale", "guidance_scale", float, -100, 100),
            ("CFG Rescale", "guidance_rescale", float, 0, 1),
        ):
            number = self.number(key, kind, least, most)
            if number is not None:
                self.fields[name] = number
        self.known |= {"Size", "CFG Interval"}
        size = _SIZE.fullmatch(self.facts.get("Size", ""))
        if size is not None:
            self.fields |= {"width": int(size[1]), "height": int(size[2])}
        elif "Size" in self.facts:
            self.left_out.append(f"Size: {quoted(self.facts['Size'])}")
        if "CFG Interval" in self.facts:  # ours alone
            self.fields["guidance_interval"] = self.facts["CFG Interval"]

    def sampler(self) -> None:
        if "Sampler" not in self.facts:
            return
        named = sampler_named(self.facts["Sampler"], self.facts.get("Schedule type"))
        self.fields |= {"sampler": named.sampler, "sigmas": named.sigmas}
        self.left_out += named.left_out

    def noise(self) -> None:
        """A1111's usual noise is that of a GPU, which is `philox`; stable-diffusion.cpp calls it cuda."""
        kind = self.facts.get("RNG", "NV")
        names = {**{name: noise for noise, name in A1111_NOISE.items()}, "GPU": "philox", "cuda": "philox"}
        if kind in names:
            self.fields["noise"] = names[kind]
        else:
            self.left_out.append(f"RNG: {quoted(kind)}")

    def strength(self) -> None:
        """Of a hires fix; or of a picture to begin with, which is not in the file."""
        strength = self.number("Denoising strength", float, 0, 1)
        factor = self.number("Hires upscale", float, 1, 8) or self._resized()
        if factor is not None:
            self.fields["hires"] = factor
            if strength is not None:
                self.fields["hires_strength"] = strength
            upscaler = self.facts.get("Hires upscaler", "Latent")
            self.fields["hires_upscale"] = "latent" if upscaler.startswith("Latent") else "pixel"
            if upscaler != "Latent":
                self.left_out.append(f"the upscaler {quoted(upscaler)}: it is enlarged without a model")
        elif strength is not None:
            self.of_image["strength"] = strength
            self.left_out.append("the picture that it began with, which isn't in the file: give it, --image FILE")

    def _resized(self) -> float | None:
        """How many times larger the second picture is; None where there is none, or where its shape is another."""
        text = self.facts.get("Hires resize")
        if text is None:
            return None
        size, width, height = _SIZE.fullmatch(text), self.fields.get("width"), self.fields.get("height")
        if size is not None and width and height and int(size[1]) * height == int(size[2]) * width:
            factor = int(size[1]) / width
            if 1 <= factor <= 8:
                return factor
        self.left_out.append(f"Hires resize: {quoted(text)}")
        return None

    def rest(self) -> None:
        if "TI hashes" in self.facts:
            named = quoted(self.facts["TI hashes"])
            self.left_out.append(f"the textual inversions {named}: their names are read as words")
        for key, value in self.facts.items():
            if key not in self.known:
                self.left_out.append(f"{quoted(key)}: {quoted(value)}")


def _split(text: str) -> tuple[str, str, str]:
    """Prompt and negative prompt, which begins a line."""
    return text.partition(f"\n{NEGATIVE}")
