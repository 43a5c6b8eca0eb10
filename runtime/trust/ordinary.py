"""Ordinary prompts, which no model has by heart: what a score is held against."""

from __future__ import annotations

import importlib.resources
import os

from tintype.bounds import MAX_CALIBRATION_PROMPTS, MAX_PROMPTS_BYTES
from tintype.bundle import EMBEDDED, Bundle
from tintype.bundle.bundle import embedded_folder
from tintype.errors import RequestError
from tintype.files import read_given_text

GENERAL = "ordinary-prompts.txt"  # beside this module
OF_WORLD = "prompts.txt"  # beside the folder of an embedded bundle, which knows no other words


def ordinary_prompts(bundle: Bundle) -> list[str]:
    """Those that come with Tintype: of an embedded bundle's own world, or of the world at large."""
    if bundle.name in EMBEDDED:
        file = embedded_folder(bundle.name).with_name(OF_WORLD)
        if file.is_file():
            return lines_of(file.read_text(encoding="utf-8"))
    return lines_of((importlib.resources.files("tintype.trust") / GENERAL).read_text(encoding="utf-8"))


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """A user's own: a text in UTF-8, a prompt a line. Raises RequestError."""
    fix = "give a text file in UTF-8, one prompt a line"
    prompts = lines_of(read_given_text(path, MAX_PROMPTS_BYTES, what="prompts", fix=fix))
    if len(prompts) > MAX_CALIBRATION_PROMPTS:
        most = f"{MAX_CALIBRATION_PROMPTS:,} are the most"
        raise RequestError(f"{path} has {len(prompts):,} prompts; {most}", fix="leave some of them out")
    return prompts


def lines_of(text: str) -> list[str]:
    """The lines that say something, each once."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
