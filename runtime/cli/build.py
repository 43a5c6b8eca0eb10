"""`tintype build`: pay for lowering now, so that the first picture doesn't; and tell which kernels were chosen."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

from tintype.cli.converted import runnable
from tintype.cli.options import Size, asked, json_option, provider_option, request_options, threads_option
from tintype.cli.progress import spinner
from tintype.cli.say import say, say_json


@click.command()
@click.argument("bundle", default="postcard")
@click.option("--size", type=Size(), help="Of the pictures, in pixels, as in 512x384 [default: the model's own].")
@click.option("--refiner", help="A model that draws the last steps: its graphs are built too.")
@request_options(
    "batch_size", "guidance_scale", "guidance_interval", "cache_interval", "cache_branch", "gate_start",
    "token_merging", "exactness", "image", "strength", "fit", "mask", "outpaint",
    "fast", "decoder", "encoder", "refiner_start", "num_inference_steps",
)  # fmt: skip
@provider_option
@threads_option
@click.option("--explain", is_flag=True, help="Print what was measured for each layer, and what was chosen.")
@json_option
def build(
    bundle: str,
    size: tuple[int, int] | None,
    refiner: str | None,
    provider: str,
    threads: int | None,
    explain: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Prepare BUNDLE (a folder, or an embedded name) for this machine ahead of time.

    A build is for one size, batch size, exactness and thread count: those of the pictures to come.
    """
    from tintype import load
    from tintype.engine.build.cache import read_report

    request = asked(size, {**fields, "count": fields["batch_size"]})
    rows: list[dict[str, Any]] = []
    width = 14 if refiner is None else 22
    with load(runnable(bundle), provider=provider, threads=threads, refiner=refiner) as pipeline:
        building = pipeline.build(pipeline.resolve(request))
        started = time.perf_counter()
        while True:
            with spinner("building"):
                role, folder = next(building, (None, None))
            if role is None or folder is None:
                break
            seconds, started = time.perf_counter() - started, time.perf_counter()
            choices = read_report(folder).get("choices", [])
            rows.append({"role": role, "path": str(folder), "seconds": round(seconds, 3), "choices": choices})
            if not as_json:
                say(f"{role:<{width}} {seconds:7.2f} s  {folder}")
            if explain and not as_json:
                for line in explanation(choices):
                    say(line)
        facts = {"bundle": pipeline.bundle.name, "hash": pipeline.bundle.hash, "target": pipeline.target.name}
    if as_json:
        say_json({**facts, "builds": rows})


def by_kind(choices: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Choices for layers of one kind that were the same, together; in the order of the first of each."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for choice in choices:
        kinds.setdefault((choice["layer"], choice["chosen"]), []).append(choice)
    return list(kinds.values())


def explanation(choices: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A table of what was chosen: for each kind of layer, how many there are and what each way takes."""
    kinds = by_kind(choices)
    if not kinds:
        yield "  no layer here has more than one way"
        return
    yield f"  {'layer':<40} {'count':>5}  {'way':<20} {'ms':>9} {'weights, MiB':>13} {'dB':>6}"
    for members in kinds:
        first = members[0]
        for index, (name, way) in enumerate(sorted(first["ways"].items(), key=lambda item: item[1]["seconds"])):
            lead = f"  {first['layer']:<40} {len(members):>5}" if index == 0 else " " * 48
            mark = "*" if name == first["chosen"] else " "
            yield (
                f"{lead} {mark} {name:<20} {way['seconds'] * 1e3:9.3f} {way['weight_bytes'] / 2**20:13.2f} "
                f"{way['psnr_db']:6.0f}"
            )
