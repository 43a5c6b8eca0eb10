"""`tintype generate`: words, the record of a picture, or latents that were kept, become PNG files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from tintype import strict_json
from tintype.cli.contradictions import refuse_contradictions, refuse_gaps, refuse_pairs
from tintype.cli.converted import runnable
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
from tintype.cli.progress import StepBar, spinner
from tintype.cli.say import say, say_json
from tintype.cli.show import LivePreview, demand_pictures
from tintype.cli.show import show as show_picture
from tintype.errors import BlockedError, MemoryBudgetError, OutputError, RecordError, TintypeError

if TYPE_CHECKING:
    from tintype import Bundle, Picture, Pipeline, Record, Request, Result, Run, Step
    from tintype.request import InputFields, RequestFields
    from tintype.trust.choices import OperatorFields

FROM_INPUTS = ("image", "mask", "latents")  # what a record has hashes of alone


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
    inputs = cast("InputFields", {name: fields[name] for name in FROM_INPUTS if fields[name] is not None})
    protocol = demand_pictures(sys.stdout) if show else None
    way = Way(output, model, refiner, provider, memory, threads, operator, force, as_json, protocol, inputs)
    if from_record is not None:
        # What a record already says, giving it once more could only contradict it.
        said = {"prompt", "size", "memory", "variation_of", *fields} - {*FROM_INPUTS}
        refuse_contradictions(context, "--from-record", said)
        _reproduce(from_record, way)
        return
    if from_latents is not None:
        said = {"prompt", "size", "variation_of", *fields} - {*FROM_INPUTS}
        refuse_contradictions(context, "--from-latents", said)
        _resume(from_latents, way)
        return
    refuse_gaps(prompt, like_picture, force=force)
    if like_picture is not None:
        _draw_like(like_picture, prompt, typed(size, fields), way)
    else:
        _draw(asked(size, fields, prompt or ""), way)


@dataclass(frozen=True, slots=True)
class Way:
    """How the command goes about it, whatever it makes."""

    output: Path | None
    model: str | None
    refiner: str | None
    provider: str
    memory: str | None
    threads: int | None
    operator: OperatorFields
    force: bool
    as_json: bool
    protocol: str | None  # how the terminal shows pictures, where it is to
    inputs: InputFields


def _draw(request: Request | Callable[[Bundle], Request], way: Way) -> None:
    """request: what is drawn, or what tells it of the bundle that draws."""
    from tintype import Request, load
    from tintype.events import new_path, picture_paths

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
        output = way.output or new_path(run.request.prompt, run.request.seed, run.request.count)
        paths = picture_paths(output, run.request.count)
        result = _finish(run, dict(enumerate(paths)), bar, output, way)
    _tell(result, paths, way)


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


def _reproduce(picture: Path, way: Way) -> None:
    """The picture of a record, with the bundle, device and thread count that it names unless others are given."""
    from tintype import read_record
    from tintype.events import new_path

    record = read_record(picture)
    output = way.output or new_path(record.request.prompt, record.seed)
    with StepBar() as bar, _load_as_in(record, way) as pipeline:
        result = _finish(_promised(pipeline, record, way), {record.picture: output}, bar, output, way)
    _tell(result, [output], way)


def _resume(file: Path, way: Way) -> None:
    """The pictures of latents that were kept, with the bundle, device and thread count of their records."""
    from tintype.events import new_path, picture_paths
    from tintype.record.latents_file import read_latents

    saved = read_latents(file)
    first = saved.records[0]
    output = way.output or new_path(first.request.prompt, first.seed, len(saved.records))
    paths = picture_paths(output, len(saved.records))
    places = {record.picture: path for record, path in zip(saved.records, paths, strict=True)}
    _check_writable(paths)
    with spinner("decoding"), _load_as_in(first, way) as pipeline:
        try:
            result = _save_each(pipeline.resume_pictures(saved, anyway=way.force, **way.inputs), places)
        except RecordError as error:
            if not error.reasons:
                raise
            raise error.with_fix("use what made them, or try all the same with --force") from None
        except MemoryBudgetError as error:
            raise error.with_fix("close other programs, then give the same command") from None
    _tell(result, paths, way)


def _load_as_in(record: Record, way: Way) -> Pipeline:
    from tintype import load

    made_with = record.made_with
    return load(
        _bundle_of(record) if way.model is None else runnable(way.model),
        provider=made_with.target if way.provider == "auto" else way.provider,
        memory=way.memory,
        threads=made_with.threads if way.threads is None else way.threads,
        refiner=_refiner_of(record) if way.refiner is None else way.refiner,
        **way.operator,
    )


def _words_of(picture: Path) -> str | None:
    """The words of a picture's own record; None where it has none."""
    from tintype import read_record

    try:
        return read_record(picture).request.prompt
    except RecordError:
        return None


def _promised(pipeline: Pipeline, record: Record, way: Way) -> Run:
    try:
        return pipeline.reproduce_steps(record, anyway=way.force, **way.inputs)
    except RecordError as error:
        if not error.reasons:
            raise
        raise error.with_fix("use what made it, or try all the same with --force") from None


def _bundle_of(record: Record) -> str:
    name = record.made_with.bundle
    if not _is_here(name):
        raise RecordError(f"the picture was made with the bundle {name!r}", fix="say where it is: --model FOLDER")
    return name


def _refiner_of(record: Record) -> str | None:
    known = record.made_with.refiner
    if known is not None and not _is_here(known.bundle):
        raise RecordError(f"the picture was refined by {known.bundle!r}", fix="say where it is: --refiner FOLDER")
    return None if known is None else known.bundle


def _is_here(name: str) -> bool:
    """Whether a model is found by its name, which a stranger may have written."""
    from tintype.bundle import EMBEDDED
    from tintype.bundle.library import library_bundle

    return name in EMBEDDED or library_bundle(name) is not None


def _finish(run: Run, places: Mapping[int, Path], bar: StepBar, output: Path, way: Way) -> Result:
    """Take every step and write every picture, once it is known that they can be written."""
    _check_writable(places.values())
    # What is drawn half is judged by nobody, so that with a safety checker it isn't shown.
    is_live = not way.as_json and way.operator.get("safety") is None
    live = LivePreview(way.protocol) if is_live and way.protocol is not None else None

    def on_step(step: Step) -> None:
        bar.advance(step.index + 1, step.total)
        if live is not None:
            with bar.hidden():
                live.show(step, sys.stdout)

    try:
        return _save_each(run.events(), places, on_step)
    except (OutputError, BlockedError):
        raise
    except (TintypeError, MemoryError) as error:
        raise _keep_latents(run, output, way.inputs, error) from None
    finally:
        if live is not None:
            with bar.hidden():
                live.close(sys.stdout)


def _check_writable(paths: Iterable[Path]) -> None:
    from tintype.image.png import check_writable

    for path in paths:
        check_writable(path)


def _save_each(
    events: Generator[Step | Picture, None, Result] | Generator[Picture, None, Result],
    places: Mapping[int, Path],
    on_step: Callable[[Step], None] = lambda step: None,
) -> Result:
    """Write each picture when it is there, to its own of the places; the result when the last one is written.

    What ends it before, Ctrl-C too, has a note that says which pictures are written.
    """
    from tintype import Step

    written: list[Path] = []
    try:
        while True:
            event = next(events)
            if not isinstance(event, Step):
                written.append(event.save(places[event.index]))
            else:
                on_step(event)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    except BaseException as error:
        if written:
            error.add_note(f"written: {', '.join(map(str, written))}")
        raise


def _keep_latents(run: Run, output: Path, inputs: InputFields, error: TintypeError | MemoryError) -> Exception:
    """The error with the way to go on, once the latents of what was denoised are on disk."""
    from tintype.record.latents_file import latents_path

    if run.latents is None:
        return error
    try:
        kept = run.save_latents(latents_path(output))
        mask = run.request.mask
        needed = inputs if mask is not None and mask.keep_outside == "exact" else {}
        again = "".join(f" --{name} {file}" for name, file in needed.items())
        told = f"the latents are kept: go on with tintype generate --from-latents {kept}{again} -o {output}"
    except (OutputError, MemoryError) as problem:
        reason = problem.message if isinstance(problem, OutputError) else "there is no memory left"
        told = f"the latents could not be kept: {reason}"
    if isinstance(error, MemoryError):
        failure = MemoryBudgetError("there was not enough memory", fix=f"close other programs; {told}")
        failure.__dict__.update(vars(error))  # its notes
        return failure
    first = "close other programs" if isinstance(error, MemoryBudgetError) else error.fix
    return error.with_fix(f"{first}; {told}")


def _tell(result: Result, written: list[Path], way: Way) -> None:
    """What was made, on stdout: a line a picture, and the picture where it is to be shown; or one JSON object."""
    if way.as_json:
        made = zip(written, result.records, strict=True)
        pictures = [{"file": str(path), "record": strict_json.plain(record)} for path, record in made]
        plan = result.plan.as_dict() if result.plan is not None else None
        say_json({"pictures": pictures, "timings": asdict(result.timings), "plan": plan})
        return
    for path, image, record in zip(written, result.images, result.records, strict=True):
        request = record.request
        words = () if record.deal is None else record.deal.words
        say(
            f"{path}  {request.width}x{request.height}, seed {record.seed}, {request.num_inference_steps} steps of "
            f"{request.sampler} on {record.made_with.target}, {result.timings.total_seconds:.2f} s"
            + "".join(f", dealt {each.word!r}" for each in words)
        )
        if way.protocol is not None:
            show_picture(image, way.protocol, sys.stdout)
    for note in dict.fromkeys(note for record in result.records for note in record.notes):
        say(f"note: {note}", err=True)
