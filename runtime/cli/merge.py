"""`tintype merge`: LoRAs become part of a bundle's weights, in a folder that holds what changed and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import click

from tintype.cli.converted import runnable
from tintype.cli.options import human_bytes, json_option
from tintype.cli.progress import spinner
from tintype.cli.say import say, say_json


@click.command()
@click.argument("bundle")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--lora",
    "loras",
    multiple=True,
    required=True,
    help="A LoRA, LoCon, LoHa, LoKr or DoRA, again for more: FILE, FILE=0.8, FILE=0.8,down=0.5,text=0.",
)
@json_option
def merge(bundle: str, out: Path, loras: tuple[str, ...], as_json: bool) -> None:
    """Merge LoRAs into BUNDLE, and write OUT: what changed of it. OUT is drawn with as BUNDLE is, at no cost a step.

    Weights that are stored as int8 or int4 are rounded anew. BUNDLE stays as it is, and has to stay where it is.
    """
    from tintype import strict_json
    from tintype.bundle import open_bundle
    from tintype.bundle.merging import merge as write_overlay

    started = time.perf_counter()
    with spinner("merging"):
        facts = write_overlay(open_bundle(runnable(bundle)), loras, out)
    seconds = time.perf_counter() - started
    if as_json:
        say_json({"folder": str(out), "seconds": round(seconds, 3), **strict_json.plain(facts)})
        return
    for role, changed in facts.changed.items():
        size = human_bytes(facts.files[changed.file].bytes)
        near = "" if changed.snr_db is None else f", {changed.snr_db:.1f} dB to the same in float"
        say(f"{role}: {changed.layers} layers, {size}{near}")
    say(f"{out}  {facts.name}, in {seconds:.1f} s; draw with it: tintype generate ... --model {out}")
