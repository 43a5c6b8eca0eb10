"""`tintype calibrate`: ordinary prompts are drawn once, so that words that a model answers too strongly are told of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintype.cli.converted import runnable
from tintype.cli.options import (
    Size,
    json_option,
    memory_option,
    provider_option,
    request_options,
    threads_option,
    typed,
)
from tintype.cli.progress import spinner
from tintype.cli.say import say, say_json

if TYPE_CHECKING:
    from tintype.trust.thresholds import Calibration


@click.command()
@click.argument("bundle", default="postcard")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="A text file of ordinary prompts, one a line, 100 or more [default: 200 that come with Tintype].",
)
@click.option("--size", type=Size(), help="Of the pictures to come, as in 512x384 [default: the model's own].")
@request_options(
    "negative_prompt", "num_inference_steps", "guidance_scale", "sampler", "sigmas", "exactness", "clip_skip",
)  # fmt: skip
@memory_option
@provider_option
@threads_option
@click.option("--anew", is_flag=True, help="Draw all of them again, whatever is there already.")
@json_option
def calibrate(
    bundle: str,
    prompts: Path | None,
    size: tuple[int, int] | None,
    memory: str | None,
    provider: str,
    threads: int | None,
    anew: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Draw ordinary prompts with BUNDLE (a folder, or a model's name), and keep what 99 in 100 of them stay below.

    A picture whose words draw it more strongly may be close to one that the model was trained on (Wen et al. 2024):
    from then on its record and a note say so. Nothing is blocked. It holds for pictures of the same size and negative
    prompt, with about as many steps and as much guidance. Ctrl-C keeps what is done; the same command goes on.
    """
    from tintype import calibrate as measure
    from tintype import load
    from tintype.trust.ordinary import read_prompts
    from tintype.trust.thresholds import own_place

    lines = None if prompts is None else read_prompts(prompts)
    with load(runnable(bundle), provider=provider, memory=memory, threads=threads) as pipeline:
        with spinner("calibrating") as tell:
            pipeline.on_progress = tell
            found = measure(
                pipeline,
                lines,
                anew=anew,
                on_progress=lambda done, total: tell(f"{done} of {total} prompts"),
                **typed(size, fields),
            )
        place = own_place(pipeline.bundle)
        facts = {"bundle": pipeline.bundle.name, "hash": pipeline.bundle.hash, "file": str(place)}
    if as_json:
        say_json({**facts, "threshold": found.threshold, "scores": found.scores, **found.way})
    else:
        say(f"{place}  {describe(found)}")


def describe(calibration: Calibration) -> str:
    """In a line: what a calibration is of, and its threshold."""
    done = f"{calibration.prompts} prompts"
    if not calibration.is_complete:
        done = f"{len(calibration.scores)} of {calibration.prompts} prompts: the same command goes on"
    else:
        done = f"{done}, threshold {calibration.threshold:.4g}"
    negative = f", negative prompt {calibration.negative_prompt!r}" if calibration.negative_prompt else ""
    return (
        f"{calibration.width}x{calibration.height}, {calibration.num_inference_steps} steps of {calibration.sampler}, "
        f"guidance {calibration.guidance_scale:g}{negative}: {done}"
    )
