"""`tintype generate`: words, the record of a picture, or latents that were kept, become PNG files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from tintype.cli.again import FROM_INPUTS, reproduce, resume, whole_record
from tintype.cli.contradictions import refuse_contradictions, refuse_gaps, refuse_pairs
from tintype.cli.converted import runnable, with_image_encoder
from tintype.cli.making import Way, finish, new_path, tell
from tintype.cli.options import (
    Size,
    asked,
    json_option,
    memory_option,
    operator_options,
    provider_option,
    request_options,
    threads_option,
    typed,
)
from tintype.cli.progress import StepBar
from tintype.cli.say import say
from tintype.cli.show import demand_pictures
from tintype.errors import RecordError

if TYPE_CHECKING:
    from tintype import Bundle, Request
    from tintype.request import InputFields, RequestFields
    from tintype.trust.choices import OperatorFields


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The PNG to write; one that is there is replaced [default: a new one here, named by words and seed].",
)
@click.option(
    "--model", help="A model's name (tintype models), a bundle's folder, or optimum's ONNX folder [default: postcard]."
)
@click.option("--refiner", help="A model that draws the last steps, as Stable Diffusion XL's refiner does.")
@click.option("--size", type=Size(), help="Width and height in pixels, as in 512x384.")
@request_options()
@memory_option
@provider_option
@threads_option
@json_option
@operator_options
@click.option(
    "--show", is_flag=True, help="Show each picture in the terminal (kitty, iTerm, WezTerm, foot and others)."
)
@click.option(
    "--variation-of",
    type=click.Path(path_type=Path),
    help="--image FILE, with the words of its own record where none are given.",
)
@click.option(
    "--like",
    "like_picture",
    type=click.Path(path_type=Path),
    help="Ask for what this picture of A1111's, ComfyUI's or ours was asked for; what is given here counts before it.",
)
@click.option(
    "--from-record", type=click.Path(path_type=Path), help="Make the picture in this PNG again, byte for byte."
)
@click.option(
    "--from-latents", type=click.Path(path_type=Path), help="Decode the latents that were kept when decoding failed."
)
@click.option(
    "--force", is_flag=True, help="With --from-record, --from-latents: try even where the bytes can't be promised."
)
@click.pass_context
def generate(
    context: click.Context,
    /,
    prompt: str | None,
    output: Path | None,
    model: str | None,
    refiner: str | None,
    size: tuple[int, int] | None,
    memory: str | None,
    provider: str,
    threads: int | None,
    as_json: bool,
    operator: OperatorFields,
    show: bool,
    variation_of: Path | None,
    like_picture: Path | None,
    from_record: Path | None,
    from_latents: Path | None,
    force: bool,
    **fields: Any,
) -> None:
    """Make a picture from the words of PROMPT.

    What isn't given is the model's default (tintype info MODEL). Words in round brackets weigh more, (sunset:1.3)
    says how much, words in square brackets weigh less. [house:boat:0.5] changes half-way, [house|boat] at every
    step, and AND joins prompts that are drawn together, as in "a house AND a boat:0.7".
    """
    refuse_pairs({"--from-record": from_record, "--from-latents": from_latents, "--like": like_picture})
    if variation_of is not None and from_record is None and from_latents is None:
        refuse_contradictions(context, "--variation-of", {"image"})
        fields["image"] = variation_of
        prompt = _words_of(variation_of) if prompt is None else prompt
    with_image_encoder(fields)
    inputs = cast("InputFields", {name: fields[name] for name in FROM_INPUTS if fields[name] not in (None, ())})
    protocol = demand_pictures(sys.stdout) if show else None
    way = Way(output, model, refiner, provider, memory, threads, operator, force, as_json, protocol, inputs)
    if from_record is not None:
        reproduce(whole_record(from_record, prompt, fields, context), way)
        return
    if from_latents is not None:
        said = {"prompt", "size", "variation_of", *fields} - {*FROM_INPUTS}
        refuse_contradictions(context, "--from-latents", said)
        resume(from_latents, way)
        return
    refuse_gaps(prompt, like_picture, force=force)
    if like_picture is not None:
        _draw_like(like_picture, prompt, typed(size, fields), way)
    else:
        _draw(asked(size, fields, prompt or ""), way)


def _draw(request: Request | Callable[[Bundle], Request], way: Way) -> None:
    """request: what is drawn, or what tells it of the bundle that draws."""
    from tintype import Request, load
    from tintype.events import picture_paths

    model = runnable("postcard" if way.model is None else way.model)
    with (
        StepBar() as bar,
        load(
            model,
            provider=way.provider,
            memory=way.memory,
            threads=way.threads,
            refiner=way.refiner,
            **way.operator,
        ) as pipeline,
    ):
        pipeline.on_progress = bar.tell
        run = pipeline.steps(request if isinstance(request, Request) else request(pipeline.bundle))
        output = way.output or new_path(run.request, run.request.seed, run.request.count)
        paths = picture_paths(output, run.request.count)
        result = finish(run, dict(enumerate(paths)), bar, output, way)
    tell(result, paths, way)


def _draw_like(picture: Path, prompt: str | None, fields: RequestFields, way: Way) -> None:
    """A picture like another one; what of that could not be taken is said on stderr, a line each."""
    from tintype import like

    likeness = like(picture)

    def request(bundle: Bundle) -> Request:
        found = likeness.for_bundle(bundle)
        for sentence in found.left_out:
            say(f"not taken: {sentence}", err=True)
        return found.request(prompt, **fields)

    _draw(request, way)


def _words_of(picture: Path) -> str | None:
    """The words of a picture's own record; None where it tells none."""
    from tintype import read_record

    try:
        record = read_record(picture)
    except RecordError:
        return None
    return None if record.withheld else record.request.prompt
