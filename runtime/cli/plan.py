"""`tintype plan`: what a picture will take, stage by stage, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tintype.cli.converted import runnable, with_image_encoder
from tintype.cli.explain import explanation
from tintype.cli.options import (
    Size,
    asked,
    json_option,
    memory_option,
    provider_option,
    request_options,
    threads_option,
)
from tintype.cli.progress import spinner
from tintype.cli.say import say, say_json

if TYPE_CHECKING:
    from tintype.memory.plan import Plan

ANY_WORDS = "words"  # other ones than the negative prompt's

# Fields that change what a picture takes.
ONLY_OF_REQUESTS = (
    "count", "batch_size", "num_inference_steps", "guidance_scale", "guidance_interval", "cache_interval",
    "cache_branch", "gate_start", "token_merging", "loras", "sampler", "image", "strength", "fit", "mask", "outpaint",
    "refiner_start", "fast", "decoder", "encoder", "embeddings", "control", "control_preprocess", "control_guess",
    "ip_adapter", "image_encoder", "image_prompts",
)  # fmt: skip


@click.command()
@click.argument("bundle", default="postcard")
@memory_option
@click.option("--size", type=Size(), help="Of the pictures, in pixels, as in 512x384 [default: the model's own].")
@click.option("--refiner", help="A model that draws the last steps: the plan is of whichever takes more memory.")
@click.option("--prompt", default=ANY_WORDS, help="Words to plan for: parts joined by AND take more than one.")
@request_options(*ONLY_OF_REQUESTS, "exactness")
@provider_option
@threads_option
@click.option("--encode", is_flag=True, help="Plan turning one picture of that size into latents instead.")
@click.option("--no-build", is_flag=True, help="Build and measure nothing; what isn't known yet is reckoned.")
@click.option("--explain", is_flag=True, help="Say which kernel each kind of operator has, and why; builds nothing.")
@json_option
def plan(
    bundle: str,
    memory: str | None,
    size: tuple[int, int] | None,
    refiner: str | None,
    prompt: str,
    provider: str,
    threads: int | None,
    encode: bool,
    no_build: bool,
    explain: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Say what pictures of BUNDLE (a folder, or an embedded name) take in memory and time.

    Bytes are of the process as a whole, with what it has of a device's own memory. The first plan for a size makes the
    builds that it consists of and measures each of them once; --no-build reckons instead.
    """
    from tintype import load

    if encode:
        _refuse_what_no_encoding_has(click.get_current_context())
    with_image_encoder(fields)
    request, build = asked(size, fields, prompt), not (no_build or explain)
    with load(runnable(bundle), provider=provider, memory=memory, threads=threads, refiner=refiner) as pipeline:
        with spinner("planning") as pipeline.on_progress:
            if encode:
                found = pipeline.plan_encoding(request.width, request.height, exactness=request.exactness, build=build)
            else:
                found = pipeline.plan(request, build=build)
        facts = {"bundle": pipeline.bundle.name, "hash": pipeline.bundle.hash, "target": pipeline.target.name}
        kernels = _kernels(found, on_processor=pipeline.target.is_host) if explain else {}
    if as_json:
        say_json({**facts, "plan": found.as_dict(), **({"explained": kernels} if explain else {})})
        return
    for line in found.lines():
        say(line)
    for role, explained in kernels.items():
        say(f"{role}:")
        for line in explanation(explained):
            say(line)


def _kernels(plan: Plan, *, on_processor: bool) -> dict[str, dict[str, Any]]:
    """By a stage's name what its build says of its kernels; of one that isn't there yet, how it is planned to be held,
    and of which processors the priors are that its kernels will be chosen by (None: a device has no choice)."""
    from tintype.engine import explained, processor_kind, read_report

    processor = processor_kind() if on_processor else None
    return {
        stage.role: explained(read_report(stage.build))
        if stage.build
        else {"by": None, "held": str(stage.mode), "processor": processor}
        for stage in plan.stages
    }


def _refuse_what_no_encoding_has(context: click.Context) -> None:
    """UsageError for an option, typed beside --encode, that only pictures from words have."""
    for name in ("prompt", *ONLY_OF_REQUESTS):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"--encode plans for one picture that is there already: leave out {option}", context)
