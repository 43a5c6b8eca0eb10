"""LoRAs that a request names: opened, and each with how strongly, at which steps and in which parts it counts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tintype.adapters.facts import MAX_WEIGHT, NUMBER, PART, PARTS, Lora, LoraFacts, parse_parts
from tintype.adapters.files import AdapterFile, open_adapter
from tintype.bounds import MAX_LORA_FOLDER, MAX_LORAS
from tintype.errors import LoraError, near_names

_SPEC = re.compile(rf"(.+?)=({NUMBER})(?:@({NUMBER})-({NUMBER}))?(?:,({PARTS}))?", re.DOTALL)
_TAG = re.compile(r"<lora:([^<>:]{1,200})(?::([^<>:]{0,60}))?>", re.IGNORECASE)
_HOW = "give FILE, FILE=0.8, FILE=0.8@0.2-0.7 (from and to which share of the steps) or FILE=0.8,down=0.5,text=0"


@dataclass(frozen=True, slots=True)
class GivenLora:
    """One that is there, with its file."""

    facts: LoraFacts
    file: AdapterFile = field(compare=False)


def parse_lora(given: Any) -> Lora:
    """A Lora as a user may say it: itself, a file, (file, weight), or FILE=WEIGHT@START-STOP,PART=FACTOR,..."""
    if isinstance(given, Lora):
        return given
    if isinstance(given, str) and not Path(given).is_file():  # a file may be called so
        spec, (file, _, rest) = _SPEC.fullmatch(given), given.partition("=")
        if rest and (spec is None or spec[1] != file) and Path(file).is_file():
            raise LoraError(f"{rest[:60]!r} behind the LoRA {file} says no weight", fix=_HOW)
        if spec is not None:
            start, stop = (float(spec[3]), float(spec[4])) if spec[3] else (0.0, 1.0)
            parts = parse_parts(spec[5])
            return Lora(file=spec[1], weight=float(spec[2]), start=start, stop=stop, parts=parts)
    if isinstance(given, str | os.PathLike):
        return Lora(file=given)
    if isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[0], str | os.PathLike):
        return Lora(file=given[0], weight=given[1])
    raise LoraError(f"{str(given)[:60]!r} is no LoRA", fix="give a file, (file, weight) or tintype.Lora(file=...)")


def open_loras(given: Any) -> tuple[GivenLora, ...]:
    """Those that a request names, opened and checked. Raises LoraError."""
    if given is None:
        return ()
    if isinstance(given, str | os.PathLike) or not isinstance(given, Iterable):
        given = [given]
    wanted = list(given)
    if len(wanted) > MAX_LORAS:
        raise LoraError(f"{len(wanted):,} LoRAs are given; {MAX_LORAS} are the most", fix="merge some of them")
    return tuple(_opened(parse_lora(each)) for each in wanted)


def _opened(lora: Lora) -> GivenLora:
    weight = _number("the weight", lora.weight, -MAX_WEIGHT, MAX_WEIGHT)
    start, stop = (
        _number(name, value, 0.0, 1.0) for name, value in (("the start", lora.start), ("the stop", lora.stop))
    )
    if start >= stop:
        raise LoraError(f"a LoRA from {start:g} to {stop:g} of the steps never counts", fix=_HOW)
    for part, factor in dict(lora.parts).items():
        if not isinstance(part, str) or re.fullmatch(PART, part) is None:
            raise LoraError(
                f"{str(part)[:40]!r} is no part of a model", fix="say text, unet, down, mid, up, down.0, up.3"
            )
        _number(f"the factor of {part}", factor, -MAX_WEIGHT, MAX_WEIGHT)
    parts = ",".join(f"{part}={_plain(float(factor))}" for part, factor in dict(lora.parts).items()) or None
    file = open_adapter(lora.file)
    name = "".join(letter if letter.isprintable() else "?" for letter in file.name)[:255]
    return GivenLora(LoraFacts(name=name, sha256=file.sha256, weight=weight, start=start, stop=stop, parts=parts), file)


def _plain(number: float) -> str:
    """A number without an exponent, as `NUMBER` reads it."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _number(what: str, value: Any, least: float, most: float) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise LoraError(f"{what} of a LoRA is {str(value)[:40]}, not {least:g} to {most:g}", fix=_HOW)
    return number


def split_tags(prompt: str, folder: str | os.PathLike[str] | None) -> tuple[str, list[Lora]]:
    """A prompt without its <lora:NAME:WEIGHT>, and those that they name, of a folder. Raises LoraError."""
    tags = list(_TAG.finditer(prompt))
    if not tags:
        return prompt, []
    if folder is None:
        raise LoraError(
            f"the prompt names the LoRA {tags[0][1]!r}, and no folder is given to look for it",
            fix="say where LoRAs lie: --lora-dir FOLDER, lora_dir=; or give the file itself: --lora FILE=WEIGHT",
        )
    found = [Lora(weight=_tag_weight(tag), file=_in_folder(tag[1], Path(folder))) for tag in tags]
    return re.sub(r"[ \t]{2,}", " ", _TAG.sub("", prompt)).strip(), found


def _tag_weight(tag: re.Match[str]) -> float:
    text = (tag[2] or "1").strip()
    if re.fullmatch(NUMBER, text) is None:
        raise LoraError(f"{tag[0]!r} has no number for its weight", fix=f"say <lora:{tag[1]}:0.8>")
    return float(text)


def adapters_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The .safetensors files of a folder and those below it, by name. Raises LoraError."""
    root, found = Path(folder), list[Path]()
    try:
        if not root.is_dir():
            raise LoraError(f"there is no folder {root} to look for LoRAs", fix="check its name: --lora-dir FOLDER")
        for count, path in enumerate(root.rglob("*")):
            if count >= MAX_LORA_FOLDER:
                raise LoraError(f"{root} has more than {MAX_LORA_FOLDER:,} entries", fix="give a folder of LoRAs alone")
            if path.suffix.lower() == ".safetensors":
                found.append(path)
    except OSError as error:
        raise LoraError(f"the folder {root} cannot be read: {error.strerror}", fix="check its permissions") from None
    return sorted(found)


def _in_folder(name: str, folder: Path) -> Path:
    """By its name alone: a prompt, which a stranger may have written, names no path."""
    files = adapters_in(folder)
    same = [path for path in files if path.stem == name or path.name == name]
    if not same:
        raise LoraError(f"there is no LoRA {name!r} in {folder}", fix=near_names(name, [path.stem for path in files]))
    if len(same) > 1:
        raise LoraError(f"{folder} has {len(same)} LoRAs called {name!r}", fix=f"give the one: --lora {same[0]}")
    return same[0]
