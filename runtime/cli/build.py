"""`tintype build`: pay for lowering now, so that the first picture doesn't."""

from __future__ import annotations

import json
import time

import click

from tintype.cli.options import json_option, provider_option
from tintype.cli.progress import spinner


@click.command()
@click.argument("bundle", default="postcard")
@provider_option
@json_option
def build(bundle: str, provider: str, as_json: bool) -> None:
    """Prepare BUNDLE (a folder, or an embedded name) for this machine ahead of time."""
    from tintype.bundle import open_bundle
    from tintype.engine import ensure_build, resolve_provider

    opened = open_bundle(bundle)
    target = resolve_provider(provider)
    rows = []
    for role, variants in opened.manifest.graphs.items():
        for variant in variants:
            started = time.perf_counter()
            with spinner(f"building {role}"):
                folder = ensure_build(opened, role, target, variant=variant)
            seconds = time.perf_counter() - started
            rows.append({"role": role, "variant": variant, "path": str(folder), "seconds": round(seconds, 3)})
            if not as_json:
                click.echo(f"{role:<14} {seconds:7.2f} s  {folder}")
    if as_json:
        click.echo(json.dumps({"bundle": opened.name, "hash": opened.hash, "target": target.name, "builds": rows}))
