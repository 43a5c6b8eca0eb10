"""What every way to pictures has in common on the command line: drawn, written each when it is there, and told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tintype import strict_json
from tintype.cli.progress import StepBar
from tintype.cli.say import say, say_json
from tintype.cli.show import LivePreview
from tintype.cli.show import show as show_picture
from tintype.errors import BlockedError, MemoryBudgetError, OutputError, TintypeError

if TYPE_CHECKING:
    from tintype import Picture, Result, Run, Step
    from tintype.request import InputFields, ResolvedRequest
    from tintype.trust.choices import OperatorFields


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


def finish(run: Run, places: Mapping[int, Path], bar: StepBar, output: Path, way: Way) -> Result:
    """Take every step and write every picture, once it is known that they can be written."""
    check_writable(places.values())
    # What is drawn half is judged by nobody, so that with a safety checker it isn't shown.
    is_live = not way.as_json and way.operator.get("safety") is None
    live = LivePreview(way.protocol) if is_live and way.protocol is not None else None

    def on_step(step: Step) -> None:
        bar.advance(step.index + 1, step.total)
        if live is not None:
            with bar.hidden():
                live.show(step, sys.stdout)

    try:
        return save_each(run.events(), places, on_step)
    except (OutputError, BlockedError):
        raise
    except (TintypeError, MemoryError) as error:
        raise _keep_latents(run, output, way.inputs, error) from None
    finally:
        if live is not None:
            with bar.hidden():
                live.close(sys.stdout)


def check_writable(paths: Iterable[Path]) -> None:
    from tintype.image.png import check_writable

    for path in paths:
        check_writable(path)


def save_each(
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


_OPTIONS = {
    "embeddings": "embedding",
    "image_prompts": "image-prompt",
    "ip_adapter": "ip-adapter",
    "image_encoder": "image-encoder",
}


def _keep_latents(run: Run, output: Path, inputs: InputFields, error: TintypeError | MemoryError) -> Exception:
    """The error with the way to go on, once the latents of what was denoised are on disk."""
    from tintype.record.latents_file import latents_path
    from tintype.stages.again import needs_inputs

    if run.latents is None:
        return error
    try:
        kept = run.save_latents(latents_path(output))
        needed = inputs if needs_inputs(run.request) else {}
        again = "".join(
            f" --{_OPTIONS.get(name, name)} {file}"
            for name, given in needed.items()
            if name not in ("loras", "lora_dir")
            for file in (given if isinstance(given, tuple) else (given,))
        )
        again += "".join(f" --lora {lora.file.path}" for lora in run.request.inputs.loras)
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


def tell(result: Result, written: list[Path], way: Way) -> None:
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


def new_path(request: ResolvedRequest, seed: int, count: int = 1) -> Path:
    """Where pictures go that nobody named; private ones tell neither words nor seed."""
    from tintype import events

    return events.new_path("private", None, count) if request.private else events.new_path(request.prompt, seed, count)
