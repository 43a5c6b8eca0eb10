"""`tintype edit`: the short way to image to image, inpainting and outpainting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tintype.cli.generate import generate

_OTHERWISE = {
    "prompt",
    "image",
    "latents",
    "from_record",
    "from_latents",
    "force",
    "variation_of",
    "like_picture",
}  # said here, or of no use


@click.command(
    params=[
        click.Argument(["picture"], type=click.Path(path_type=Path)),
        click.Argument(["prompt"], metavar="WORDS"),
        *(param for param in generate.params if param.name not in _OTHERWISE),
    ]
)
@click.pass_context
def edit(context: click.Context, /, picture: Path, prompt: str, **options: Any) -> None:
    """Make a picture from PICTURE that shows what WORDS say.

    All of it changes by --strength, or what is white in --mask is made new, or what --outpaint adds around it. The
    picture itself stays as it is: the new one is written beside you, or to -o.
    """
    context.invoke(generate, prompt=prompt, image=picture, **options)
