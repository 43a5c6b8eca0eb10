"""The door to pictures of other tools: what they were asked for, read of whatever their files say of them.

Our own record counts before A1111's parameters, and these before ComfyUI's graph.
"""

from __future__ import annotations

import dataclasses
import os

from tintype.bounds import MAX_PARAMETERS_CHARS, MAX_RECORD_BYTES
from tintype.errors import RecordError
from tintype.image.comments import PARAMETERS_KEY, read_comments
from tintype.image.png import RECORD_KEY
from tintype.record import a1111_reader, comfyui
from tintype.record.likeness import MAX_LEFT_OUT, OF_MASK, Likeness
from tintype.record.private import OF_REQUEST
from tintype.record.record import Record, parse_record
from tintype.request import ResolvedRequest, fields_of

OF_IMAGE = ("strength", "fit", "background", "outpaint", *OF_MASK)


def like(picture: str | os.PathLike[str]) -> Likeness:
    """What a picture that Tintype, A1111 or ComfyUI wrote (PNG, JPEG, WebP) was asked for.

        likeness = tintype.like("theirs.png").for_bundle(pipeline.bundle)
        print(*likeness.left_out, sep="\\n")
        pipeline.generate(likeness.request(num_inference_steps=20))

    Raises RecordError when the file is no picture, or says nothing of what it was asked for.
    """
    comments = read_comments(picture)
    for keyword, most in {PARAMETERS_KEY: MAX_PARAMETERS_CHARS, "prompt": MAX_RECORD_BYTES}.items():
        if len(comments.get(keyword, "")) > most:
            raise RecordError(f"{picture} says more than {most:,} characters of itself", fix="give another picture")
    if RECORD_KEY in comments:
        found = _of_record(parse_record(comments[RECORD_KEY]))
    elif PARAMETERS_KEY in comments:
        found = a1111_reader.read_parameters(comments[PARAMETERS_KEY])
    elif "prompt" in comments:
        found = comfyui.read_graph(comments["prompt"])
    else:
        told = "ComfyUI's drawing of a graph alone" if "workflow" in comments else "nothing of what it was asked for"
        raise RecordError(
            f"{picture} says {told}", fix="give a picture as Tintype, A1111 or ComfyUI wrote it, not saved again since"
        )
    return dataclasses.replace(found, left_out=_bounded(found.left_out))


def _of_record(record: Record) -> Likeness:
    known = record.request
    fields = {**fields_of(known), "seed": record.seed, "count": 1, "batch_size": 1}
    private = [] if record.withheld is None else ["its words and its seed: it is private, and leaves them out"]
    fields = {name: value for name, value in fields.items() if not private or name not in OF_REQUEST}
    of_image = {name: fields.pop(name) for name in OF_IMAGE if name in fields}
    left_out = private + [
        f"{what} that it began with: give it again, --{name} FILE"
        for name, what in (("image", "the picture"), ("mask", "the mask"), ("latents", "the noise"))
        if getattr(known, name) is not None
    ]
    fields.pop("control_guess", None)  # it goes with what controls
    left_out += _adapters_of(known)
    start = fields.pop("refiner_start")
    if start is not None:
        name = record.made_with.refiner.bundle if record.made_with.refiner else "another model"
        left_out.append(f"the refiner {name}: give it again, --refiner FOLDER --refiner-start {start:g}")
    return Likeness(
        fields=fields,
        left_out=tuple(left_out),
        model=record.made_with.bundle,
        model_hash=record.made_with.bundle_hash,
        of_image=of_image,
    )


def _adapters_of(known: ResolvedRequest) -> list[str]:
    """A sentence for each file that a picture was drawn with beside its model: its hash is no file."""
    found = []
    for lora in known.loras:
        span = "" if (lora.start, lora.stop) == (0.0, 1.0) else f"@{lora.start:g}-{lora.stop:g}"
        parts = "" if lora.parts is None else f",{lora.parts}"
        found.append(f"the LoRA {lora.name}: give it again, --lora FILE={lora.weight:g}{span}{parts}")
    found += [f"the embedding {each.word}: give it again, --embedding FILE" for each in known.embeddings]
    for each in known.control:
        asked = f"--control {each.model}=PICTURE={each.weight:g}@{each.start:g}-{each.end:g}"
        asked += "" if each.preprocess is None else f" --control-preprocess {each.preprocess}"
        asked += " --control-guess" if known.control_guess else ""
        found.append(f"what controlled it, {each.model}, and its picture: give them again, {asked}")
    if known.ip_adapter is not None:
        count = len(known.image_prompts)
        what = f"the IP-Adapter {known.ip_adapter.name} and its {count} picture{'s' * (count > 1)}"
        found.append(f"{what}: give them again, --ip-adapter FILE --image-prompt PICTURE")
    return found


def _bounded(sentences: tuple[str, ...]) -> tuple[str, ...]:
    more = len(sentences) - MAX_LEFT_OUT
    return sentences if more <= 0 else (*sentences[:MAX_LEFT_OUT], f"{more:,} more things")
