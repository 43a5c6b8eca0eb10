"""`tintype licence`: accept, once, what binds how a model's pictures may be used."""

from __future__ import annotations

import click

from tintype.cli.converted import runnable
from tintype.cli.options import json_option
from tintype.cli.say import say, say_json


@click.group()
def licence() -> None:
    """Accept a model's licence, where it binds how pictures may be used; once, and never again."""


@licence.command()
@click.argument("model")
@json_option
def accept(model: str, as_json: bool) -> None:
    """Accept the licence of MODEL (a bundle's folder, or a model's name). Read it first, where the model comes from."""
    from tintype.bundle.licence import accept as keep
    from tintype.bundle.licence import is_binding
    from tintype.bundle.opening import open_any

    bundle = open_any(runnable(model))
    binds = is_binding(bundle.manifest.licence)
    file = keep(bundle) if binds else None
    if as_json:
        kept = None if file is None else str(file)
        say_json({"bundle": bundle.name, "hash": bundle.hash, "licence": bundle.manifest.licence, "kept": kept})
    elif binds:
        say(f"{bundle.name}: {bundle.manifest.licence} is accepted")
    else:
        say(f"{bundle.name}: {bundle.manifest.licence} needs no acceptance")
