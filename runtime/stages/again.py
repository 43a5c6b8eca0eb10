"""What was made before, made again or finished: whether it can be promised, and the pictures of latents that waited."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from tintype.adapters.facts import Lora, LoraFacts, parse_parts
from tintype.adapters.files import open_adapter
from tintype.adapters.given import adapters_in, parse_lora
from tintype.errors import RecordError
from tintype.events import Picture
from tintype.record import Record
from tintype.record.latents_file import SavedLatents
from tintype.record.provenance import mismatches, nondeterminism
from tintype.record.record import PolicyFacts
from tintype.request import InputFields, Request, ResolvedRequest, fields_of
from tintype.request.control import controls_again, demand_same_control
from tintype.request.embeddings import files_of
from tintype.request.image_prompts import demand_same_image_prompts, image_prompts_again
from tintype.stages.context import Context
from tintype.stages.finish import circumstances, decoded, provenance_of, to_picture
from tintype.trust.keys import key_name

NAMES = {"image": "a picture", "mask": "a mask", "latents": "given noise"}


def demand_kind(value: object, kind: type, reader: str) -> None:
    """RecordError where a caller gave something else than what a file was read as."""
    if not isinstance(value, kind):
        raise RecordError(f"{type(value).__name__} is no {kind.__name__}", fix=f"read it from its file: {reader}(FILE)")


def request_of(record: Record, given: InputFields) -> Request:
    """The request of a record, as somebody would ask for it again.

    given: the inputs themselves, of which a record has hashes alone. Raises RecordError where some are missing.
    """
    known = record.request
    for name in NAMES:
        wanted = getattr(known, name) is not None and getattr(getattr(known, name), "sha256", "text") is not None
        if wanted != (given.get(name) is not None):
            began = "began with" if wanted else "did not begin with"
            fix = f"give that one: {name}=, or --{name} FILE" if wanted else f"leave {name} out"
            raise RecordError(f"the record's picture {began} {NAMES[name]}", fix=fix)
    inputs: dict[str, Any] = {
        **{name: value for name, value in given.items() if name != "lora_dir"},
        "loras": _loras_of(record, given),
        "embeddings": files_of(known.embeddings, given.get("embeddings") or ()),
        "control": controls_again(known.control, given.get("control") or ()),
        **image_prompts_again(known.ip_adapter, known.image_prompts, given),
    }
    return Request(**fields_of(known), **inputs)


def _loras_of(record: Record, given: InputFields) -> list[Lora]:
    """A record's LoRAs with their files, of those that are given, or that lie in a folder that is. Raises RecordError
    for one that is missing, by its name, and for one that the picture was drawn without."""
    known = record.request.loras
    said = [parse_lora(each) for each in given.get("loras") or ()]
    files = {open_adapter(each.file).sha256: each.file for each in said}
    folder = given.get("lora_dir")
    for path in adapters_in(folder) if known and folder is not None else ():
        if any(path.stem == each.name for each in known):
            files.setdefault(open_adapter(path).sha256, path)
    for each in known:
        if each.sha256 not in files:
            raise RecordError(
                f"the record's picture was drawn with the LoRA {each.name}, sha256 {each.sha256[:12]}",
                fix="give that file: loras=[FILE], --lora FILE; or the folder where it lies: --lora-dir FOLDER",
            )
    others = [file for sha256, file in files.items() if all(sha256 != each.sha256 for each in known)]
    if others and folder is None:
        raise RecordError(f"the record's picture was drawn without the LoRA {others[0]}", fix="leave it out")
    for lora in said:
        _demand_as_recorded(lora, [each for each in known if each.sha256 == open_adapter(lora.file).sha256])
    return [
        Lora(
            file=files[each.sha256], weight=each.weight, start=each.start, stop=each.stop, parts=parse_parts(each.parts)
        )
        for each in known
    ]


def _demand_as_recorded(lora: Lora, known: Sequence[LoraFacts]) -> None:
    """RecordError where a file comes with a weight, steps or parts of its own that the record says otherwise of."""

    def told(weight: float, start: float, stop: float, parts: Mapping[str, float]) -> tuple[Any, ...]:
        return weight, start, stop, dict(parts)

    here = told(lora.weight, lora.start, lora.stop, lora.parts)
    recorded = [told(each.weight, each.start, each.stop, parse_parts(each.parts)) for each in known]
    if recorded and here not in (told(1.0, 0.0, 1.0, {}), *recorded):
        weight = " and ".join(f"{each.weight:g}" for each in known)
        raise RecordError(
            f"the record's picture has the LoRA {known[0].name} with a weight of {weight} at its own steps and parts",
            fix="give the file alone: loras=[FILE], --lora FILE",
        )


def needs_inputs(request: ResolvedRequest) -> bool:
    """Whether a picture can't be finished from its latents alone: its outside is another picture's, or what decides
    its builds are others' files."""
    kept = request.mask is not None and request.mask.keep_outside == "exact"
    return kept or bool(request.loras or request.embeddings or request.control or request.image_prompts)


def demand_inputs(record: Record, request: ResolvedRequest) -> None:
    """Raises RecordError where the inputs are not those that a record's picture was made of."""
    known = record.request
    for name in NAMES:
        was, now = (getattr(each, name) for each in (known, request))
        if name == "image" and was is not None and now is not None:
            was, now = (dataclasses.replace(each, parent=None) for each in (was, now))
        if was != now:
            raise RecordError(
                f"the record's picture began with another {NAMES[name].split()[-1]}", fix="give that one, unchanged"
            )
    demand_same_control(known.control, request.control)
    was_seen, now_seen = ((each.ip_adapter, each.image_prompts) for each in (known, request))
    demand_same_image_prompts(was_seen, now_seen)
    for was_one, now_one in zip(known.embeddings, request.embeddings, strict=True):
        if was_one != now_one:
            raise RecordError(
                f"the record's picture had the embedding {was_one.word!r}, which is called {now_one.word!r} here",
                fix=f"give the file the name that it had: {was_one.word}.safetensors",
            )


def demand_one_wording(records: Sequence[Record]) -> None:
    """Raises RecordError where latents that were kept together were asked for in different words."""
    requests = [record.typed_request for record in records]
    if len({(request.prompt, request.negative_prompt) for request in requests}) > 1:
        raise RecordError("the latents' records have different prompts", fix="give a file as tintype wrote it")


def about_policy(here: PolicyFacts | None, record: Record) -> list[str]:
    """A sentence where a record's picture was made under another policy than the one that is in force."""
    was, now = (None if each is None else each.sha256 for each in (record.policy, here))
    if was == now:
        return []
    shown = ("none" if each is None else f"{each.name} {each.sha256[:12]}" for each in (record.policy, here))
    return ["its policy on words was {}, here it is {}".format(*shown)]


def demand_promise(ctx: Context, record: Record) -> None:
    """Raises RecordError, naming each reason, when a run can't promise the bytes of a record's picture."""
    made_with, here = record.made_with, circumstances(ctx, record.made_with.builds)
    # Builds last: one that isn't there yet has to be made before it can be compared.
    reasons = nondeterminism(made_with, record.request.exactness) + mismatches(made_with, here)
    reasons = reasons or mismatches(made_with, provenance_of(ctx, record.picture))
    if record.watermark is not None and ctx.marker is not None and key_name(ctx.marker.key) != record.watermark.key:
        reasons.append(f"its watermark is by another key, {record.watermark.key}")
    theirs, ours = record.trustmark, ctx.trustmark
    if (None if theirs is None else theirs.sha256) != (None if ours is None else ours.sha256):
        reasons.append("its TrustMark is by other files" if theirs is not None else "it has no TrustMark")
    if record.coded_noise is not None and ctx.coder is not None and key_name(ctx.coder.key) != record.coded_noise.key:
        reasons.append(f"its noise is coded by another key, {record.coded_noise.key}")
    if reasons:
        raise RecordError(
            f"the same picture can't be promised: {'; '.join(reasons)}",
            fix="use what made it, or let it try anyway; the picture may then differ",
            reasons=tuple(reasons),
        )


def demand_home(ctx: Context, record: Record) -> None:
    """Raises RecordError, naming each reason, when latents with this record were made elsewhere."""
    reasons = mismatches(record.made_with, provenance_of(ctx, record.picture))
    if reasons:
        raise RecordError(
            f"these latents belong elsewhere: {'; '.join(reasons)}",
            fix="use what made them, or let it try anyway; the picture may then differ",
            reasons=tuple(reasons),
        )


def finish_saved(ctx: Context, saved: SavedLatents, foreign: tuple[str, ...]) -> Generator[Picture]:
    """The pictures of saved latents: each decoded whole, or in pieces where memory runs out again.

    foreign: why they belong elsewhere.
    """
    elsewhere = (f"its latents come from elsewhere: {'; '.join(foreign)}",) if foreign else ()
    about_words = {record.picture: tuple(ctx.part(record.picture).warnings) for record in saved.records}
    for index, record in enumerate(saved.records):
        part = ctx.part(record.picture)
        made = decoded(part, record.picture, saved.latents[index : index + 1])
        if made is None:
            continue
        made_with = provenance_of(part, record.picture)  # a picture in pieces has another build of the decoder
        if foreign:
            made_with = dataclasses.replace(record.made_with, modes={**record.made_with.modes, **made_with.modes})
        notes = tuple(dict.fromkeys((*record.notes, *elsewhere, *about_words[record.picture], *made.notes)))
        yield to_picture(part, made, dataclasses.replace(record, made_with=made_with, notes=notes))
