"""`tintype build`: pay for lowering now, so that the first picture doesn't; and tell which kernels were chosen."""

from __future__ import annotations

import time
from typing import Any

import click

from tintype.cli.converted import runnable, with_image_encoder
from tintype.cli.explain import explanation
from tintype.cli.options import Size, asked, json_option, provider_option, request_options, threads_option
from tintype.cli.progress import spinner
from tintype.cli.say import say, say_json


@click.command()
@click.argument("bundle", default="postcard")
@click.option("--size", type=Size(), help="Of the pictures, in pixels, as in 512x384 [default: the model's own].")
@click.option("--refiner", help="A model that draws the last steps: its graphs are built too.")
@request_options(
    "batch_size", "guidance_scale", "guidance_interval", "cache_interval", "cache_branch", "gate_start",
    "token_merging", "loras", "exactness", "image", "strength", "fit", "mask", "outpaint",
    "fast", "decoder", "encoder", "refiner_start", "num_inference_steps",
)  # fmt: skip
@provider_option
@threads_option
@click.option("--explain", is_flag=True, help="Print what was timed for each layer, what was chosen, and why.")
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
    from tintype.engine import explained, read_report

    with_image_encoder(fields)
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
            report = read_report(folder)
            choices = report.get("choices", [])
            row = {"role": role, "path": str(folder), "seconds": round(seconds, 3), "choices": choices}
            rows.append({**row, "explained": explained(report)} if explain else row)
            if not as_json:
                say(f"{role:<{width}} {seconds:7.2f} s  {folder}")
            if explain and not as_json:
                for line in explanation(explained(report)):
                    say(line)
        facts = {"bundle": pipeline.bundle.name, "hash": pipeline.bundle.hash, "target": pipeline.target.name}
    if as_json:
        say_json({**facts, "builds": rows})
