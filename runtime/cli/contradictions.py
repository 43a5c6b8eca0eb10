"""Command lines of `tintype generate` that say too little, or two things at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import click
from click.core import ParameterSource

from tintype.errors import RequestError


def refuse_contradictions(context: click.Context, source: str, said: Iterable[str]) -> None:
    for name in sorted(said):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "PROMPT" if name == "prompt" else f"--{name.replace('_', '-')}"
            raise RequestError(f"{source} and {option} contradict each other", fix=f"leave {option} out")


def refuse_pairs(sources: Mapping[str, Path | None]) -> None:
    given = [name for name, file in sources.items() if file is not None]
    if len(given) > 1:
        raise RequestError(f"{given[0]} and {given[1]} contradict each other", fix="leave one of them out")


def refuse_gaps(prompt: str | None, like_picture: Path | None, *, force: bool) -> None:
    if prompt is None and like_picture is None:
        raise RequestError("there is no PROMPT", fix='say what to draw: tintype generate "a red house" -o picture.png')
    if force:
        raise RequestError("--force belongs to --from-record and --from-latents", fix="leave --force out")
