"""How well postcard makes pictures from pictures: the judge's word on another colour and on another sky.

    python -m tintype.models.postcard.edits inpaint [--bundle FOLDER] [--count 200] [--out RESULT.json]
    python -m tintype.models.postcard.edits image-to-image [--bundle FOLDER] [--count 100] [--out RESULT.json]

inpaint: a render, a mask over its subject, and the words for it in another colour. image-to-image: a render, and the
words for it at another time of day and in other weather. What is asked for are the prompts of `evaluate`, whose
combinations training never saw; picture i has seed i. Every render is one that the judge reads without an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tintype.image.mask import prepare_mask
from tintype.request import RequestFields

from .captions import caption
from .evaluate import PROMPT_SEED, fixed_prompts, machine
from .recipe import BUNDLE
from .scene import ATTRIBUTES, Scene
from .world import render

if TYPE_CHECKING:
    from tintype.pipeline import Pipeline

    from .judge import Judge

Row = dict[str, object]  # a way's name, how many pictures, its figures

SIDE = 128  # pixels
SKY = ("time", "weather")
FAR = 8  # pixels from a mask's edge on which the picture should be the old one: two cells, and what a decoder smears
BAR = 0.9  # of inpainted pictures have the new colour


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A picture, and the words for what it is to become."""

    index: int  # also the seed
    original: Scene
    picture: NDArray[np.uint8]  # (SIDE, SIDE, 3)
    subject: NDArray[np.uint8]  # (SIDE, SIDE), the subject's own mask, 0..255
    wanted: Scene
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way that a user may ask. fields: of the request, beside words, picture, mask and seed."""

    name: str
    mask: str | None = None  # of MASKS
    drawn: bool = False  # the picture is one that the bundle drew from the original's words, not a render
    fields: RequestFields = field(default_factory=RequestFields)


def _box(subject: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The smallest rectangle over the subject, and 4 pixels more to each side."""
    mask = np.zeros_like(subject)
    rows, columns = (np.flatnonzero(subject.max(axis=axis) > 127) for axis in (1, 0))
    mask[max(rows[0] - 4, 0) : rows[-1] + 5, max(columns[0] - 4, 0) : columns[-1] + 5] = 255
    return mask


MASKS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "subject": lambda subject: subject,
    "box": _box,
    "all but the subject": lambda subject: 255 - subject,
}

INPAINT = Way(name="mask grown by 4", mask="subject", fields={"mask_grow": 4})
OTHER_INPAINTS = (
    Way(name="mask as it is", mask="subject"),
    Way(name="grown by 8, blurred by 4", mask="subject", fields={"mask_grow": 8, "mask_blur": 4.0}),
    Way(name="grown by 4, strength 0.8", mask="subject", fields={"mask_grow": 4, "strength": 0.8}),
    Way(name="grown by 4, outside exact", mask="subject", fields={"mask_grow": 4, "keep_outside": "exact"}),
    Way(name="box over the subject", mask="box"),
    Way(name="the same, on a drawn picture", mask="box", drawn=True),
)
NEW_SKIES = (
    *(Way(name=f"strength {each:g}", fields={"strength": each}) for each in (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)),
    Way(name="strength 0.9, guidance 10", fields={"strength": 0.9, "guidance_scale": 10.0}),
    Way(name="mask of all but the subject", mask="all but the subject"),
)


def recolourings(count: int) -> list[Edit]:
    """The first `count` of evaluate's prompts, each with a render of the same scene in another colour."""
    return [_edit(index, prompt, wanted, ("colour",)) for index, (prompt, wanted) in enumerate(fixed_prompts(count))]


def new_skies(count: int) -> list[Edit]:
    """The same, each with a render at another time of day and in other weather."""
    return [_edit(index, prompt, wanted, SKY) for index, (prompt, wanted) in enumerate(fixed_prompts(count))]


def _edit(index: int, prompt: str, wanted: Scene, changes: Sequence[str]) -> Edit:
    rng = np.random.default_rng([PROMPT_SEED, index])
    others = {
        name: str(rng.choice([value for value in ATTRIBUTES[name] if value != getattr(wanted, name)]))
        for name in changes
    }
    original = dataclasses.replace(wanted, **others)
    picture, subject = render(original, rng, SIDE)
    return Edit(index, original, picture, subject, wanted, prompt)


def drawn(pipeline: Pipeline, edits: Sequence[Edit]) -> list[Edit]:
    """The same edits, of pictures that the bundle drew from the originals' words. The masks are still the renders'."""
    pictures = []
    for edit in edits:
        words = caption(edit.original, np.random.default_rng([PROMPT_SEED, edit.index]), complete=True)[0]
        pictures.append(np.asarray(pipeline.generate(words, seed=edit.index, width=SIDE, height=SIDE).image))
    return [dataclasses.replace(edit, picture=picture) for edit, picture in zip(edits, pictures, strict=True)]


def make(pipeline: Pipeline, edits: Sequence[Edit], way: Way) -> NDArray[np.uint8]:
    """What becomes of each picture, (n, SIDE, SIDE, 3)."""
    made = []
    for edit in edits:
        fields: RequestFields = {**way.fields, "image": edit.picture, "seed": edit.index}
        if way.mask is not None:
            fields["mask"] = MASKS[way.mask](edit.subject)
        made.append(np.asarray(pipeline.generate(edit.prompt, **fields).image))
    return np.stack(made)


def score_inpaints(judge: Judge, edits: Sequence[Edit], made: NDArray[np.uint8], way: Way) -> dict[str, float]:
    """Shares of the pictures, and the median of how near they are to the originals far from the mask, in dB."""
    before, after = judge.read(np.stack([edit.picture for edit in edits])), judge.read(made)
    return {
        "new_colour": _share(new.colour == edit.wanted.colour for new, edit in zip(after, edits, strict=True)),
        "old_colour": _share(new.colour == old.colour for new, old in zip(after, before, strict=True)),
        "subject_kept": _share(new.subject == old.subject for new, old in zip(after, before, strict=True)),
        "sky_kept": _share(_sky(new) == _sky(old) for new, old in zip(after, before, strict=True)),
        "outside_psnr_db": _median_psnr(edits, made, [_far_outside(edit, way) for edit in edits]),
    }


def score_new_skies(judge: Judge, edits: Sequence[Edit], made: NDArray[np.uint8]) -> dict[str, float]:
    """Shares of the pictures, and the median of how near their subjects are to the originals', in dB."""
    before, after = judge.read(np.stack([edit.picture for edit in edits])), judge.read(made)
    return {
        "new_sky": _share(_sky(new) == _sky(edit.wanted) for new, edit in zip(after, edits, strict=True)),
        "new_time": _share(new.time == edit.wanted.time for new, edit in zip(after, edits, strict=True)),
        "new_weather": _share(new.weather == edit.wanted.weather for new, edit in zip(after, edits, strict=True)),
        "subject_kept": _share(_thing(new) == _thing(old) for new, old in zip(after, before, strict=True)),
        "subject_psnr_db": _median_psnr(edits, made, [edit.subject > 127 for edit in edits]),
    }


def _sky(scene: Scene) -> tuple[str, str]:
    return scene.time, scene.weather


def _thing(scene: Scene) -> tuple[str, str]:
    return scene.subject, scene.colour


def _share(right: Iterable[bool]) -> float:
    return float(np.mean(list(right)))


def _far_outside(edit: Edit, way: Way) -> NDArray[np.bool_]:
    from PIL import Image

    assert way.mask is not None
    mask = prepare_mask(
        Image.fromarray(MASKS[way.mask](edit.subject)),
        grow=way.fields.get("mask_grow", 0) + math.ceil(way.fields.get("mask_blur", 0.0)) + FAR,
    )
    return mask == 0


def _median_psnr(edits: Sequence[Edit], made: NDArray[np.uint8], where: Sequence[NDArray[np.bool_]]) -> float:
    errors = [
        np.mean((new[chosen].astype(np.float64) - edit.picture[chosen]) ** 2)
        for edit, new, chosen in zip(edits, made, where, strict=True)
    ]
    return float(np.median([10 * math.log10(255**2 / error) if error else math.inf for error in errors]))


def measure_inpaints(pipeline: Pipeline, judge: Judge, count: int) -> list[Row]:
    """INPAINT on all pictures, the other ways on the first quarter of them."""
    every = recolourings(count)
    some = every[: max(count // 4, 1)]
    rows = []
    for way in (INPAINT, *OTHER_INPAINTS):
        edits = every if way is INPAINT else drawn(pipeline, some) if way.drawn else some
        made = _timed(pipeline, edits, way)
        rows.append(_row(way, edits, score_inpaints(judge, edits, made, way)))
    return rows


def measure_new_skies(pipeline: Pipeline, judge: Judge, count: int) -> list[Row]:
    """Every way on all pictures."""
    edits = new_skies(count)
    return [_row(way, edits, score_new_skies(judge, edits, _timed(pipeline, edits, way))) for way in NEW_SKIES]


def _timed(pipeline: Pipeline, edits: Sequence[Edit], way: Way) -> NDArray[np.uint8]:
    begun = time.perf_counter()
    made = make(pipeline, edits, way)
    print(f"{len(made)} pictures in {time.perf_counter() - begun:.0f} s: {way.name}", file=sys.stderr, flush=True)
    return made


def _row(way: Way, edits: Sequence[Edit], figures: dict[str, float]) -> Row:
    # JSON has no infinity, which bytes that are the same have.
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return {"way": way.name, "pictures": len(edits), **finite}


def table(rows: Sequence[Row]) -> str:
    """Rows of the same names, for people."""
    names = list(rows[0])[1:]
    lines = ["  ".join([f"{'':28}", *names])]
    for row in rows:
        cells = [_cell(name, row[name]).rjust(len(name)) for name in names]
        lines.append("  ".join([f"{row['way']:28}", *cells]))
    return "\n".join(lines)


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float):
        return "same bytes" if value is None else str(value)
    return f"{value:.1f} dB" if name.endswith("_db") else f"{100 * value:.1f} %"


def main() -> None:
    import tintype

    from .judge import Judge

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("inpaint", "image-to-image"))
    parser.add_argument("--bundle", default=str(BUNDLE))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--threads", type=int, help="one wastes the least where other programs run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    measure = measure_inpaints if options.what == "inpaint" else measure_new_skies
    with tintype.load(options.bundle, provider="cpu", threads=options.threads) as pipeline:
        bundle, threads = pipeline.bundle, pipeline.graphs.threads
        rows = measure(pipeline, Judge.load(), options.count)
    print(table(rows))
    if options.out:
        facts = {"bundle": bundle.name, "bundle_hash": bundle.hash, "threads": threads, "prompt_seed": PROMPT_SEED}
        result = {"what": options.what, **facts, "ways": rows, **machine()}
        options.out.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
