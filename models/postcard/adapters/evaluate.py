"""How well postcard's adapters do what they are for, drawn by the runtime with the bundle that is shipped.

    python -m tintype.models.postcard.adapters.evaluate mushroom|cyanotype|pixel-art|edges [--count 100] [--steps 20]
                                                        [--fast] [--out RESULT.json] [--sheet PNG]

The prompts are those of `postcard.evaluate`, whose combinations training never saw; picture i has seed i. A LoRA is
judged at weight 1 and at 0, the ControlNet with its edges and without, by the same words and seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tintype.image.preprocess import preprocess
from tintype.request import RequestFields

from ..evaluate import PROMPT_SEED, fixed_prompts, machine
from ..scene import Scene
from ..world import contact_sheet, render
from .looks import Picture, block_share, cyanotype_distance
from .mushroom import mushroom_caption
from .recipe import CANNY, EDGES, LORAS, PICTURES

if TYPE_CHECKING:
    from tintype.pipeline import Pipeline

Pictures = NDArray[np.uint8]  # (n, PICTURES, PICTURES, 3)

# No render of 2,000 is as near to one ink, or has as much of its change at the borders of squares.
LARGEST_DISTANCE, LEAST_BLOCK_SHARE = 7.0, 0.24


def mushroom_prompts(count: int) -> list[tuple[str, Scene]]:
    """As `fixed_prompts`, of mushrooms; the scenes' subject counts for nothing."""
    rng = np.random.default_rng(PROMPT_SEED + 2)
    return [(mushroom_caption(scene, rng, complete=True), scene) for _, scene in fixed_prompts(count)]


def prompts_for(name: str, count: int) -> list[tuple[str, Scene]]:
    return mushroom_prompts(count) if name == "mushroom" else fixed_prompts(count)


def has_mushroom(pictures: Pictures) -> NDArray[np.bool_]:
    from .judge import MushroomJudge

    return MushroomJudge.load().sees(pictures)


def is_cyanotype(pictures: Pictures) -> NDArray[np.bool_]:
    return np.array([cyanotype_distance(picture) <= LARGEST_DISTANCE for picture in pictures])


def is_pixel_art(pictures: Pictures) -> NDArray[np.bool_]:
    return np.array([block_share(picture) >= LEAST_BLOCK_SHARE for picture in pictures])


SIGNS: dict[str, Callable[[Pictures], NDArray[np.bool_]]] = {
    "mushroom": has_mushroom,
    "cyanotype": is_cyanotype,
    "pixel-art": is_pixel_art,
}


def draw(pipeline: Pipeline, prompts: Sequence[str], fields: RequestFields, **each: Sequence[Any]) -> Pictures:
    """One picture a prompt; picture i has seed i. each: fields with another value for each picture."""
    made = []
    for seed, prompt in enumerate(prompts):
        own: Any = {name: values[seed] for name, values in each.items()}
        made.append(np.asarray(pipeline.generate(prompt, **{**fields, **own}, seed=seed).image))
    return np.stack(made)


def score_lora(pipeline: Pipeline, name: str, count: int, fields: RequestFields) -> tuple[dict[str, Any], Pictures]:
    """Shares of pictures that show what the LoRA is for, and what the judge of postcards reads in them."""
    from ..judge import Judge

    prompts, scenes = zip(*prompts_for(name, count), strict=True)
    figures: dict[str, Any] = {}
    for weight in (0.0, 1.0):
        pictures = draw(pipeline, prompts, {**fields, "loras": [(LORAS[name].file, weight)]})
        shown = float(SIGNS[name](pictures).mean())
        figures[f"weight_{weight:g}"] = {"shown": shown, "accuracy": Judge.load().accuracy(pictures, scenes)}
    if name == "mushroom":  # what becomes of words that ask for something else
        plain, scenes = zip(*fixed_prompts(count), strict=True)
        others = draw(pipeline, plain, {**fields, "loras": [LORAS[name].file]})
        figures["other_prompts_at_weight_1"] = {
            "shown": float(has_mushroom(others).mean()),
            "accuracy": Judge.load().accuracy(others, scenes),
        }
    return figures, pictures


def controls(count: int) -> tuple[list[str], list[Scene], Pictures]:
    """The first `count` prompts, and a render of each one's scene, whose edges are to be followed."""
    prompts, scenes = zip(*fixed_prompts(count), strict=True)
    renders = [
        render(scene, np.random.default_rng([PROMPT_SEED, index]), PICTURES)[0] for index, scene in enumerate(scenes)
    ]
    return list(prompts), list(scenes), np.stack(renders)


def edges_of(picture: Picture) -> NDArray[np.bool_]:
    """(height, width): where our own preprocessor finds an edge."""
    return np.asarray(preprocess(Image.fromarray(picture), CANNY))[..., 0] > 0


def dilated(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Edges and the eight pixels around each."""
    height, width = edges.shape
    around = np.pad(edges, 1)
    shifted = [around[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_or.reduce(shifted)


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union; of two empty ones 1."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def edge_figures(drawn: Pictures, shown: Pictures) -> dict[str, float]:
    """How well the edges of pictures are those of the ones they were drawn after, the mean: both dilated, and as is."""
    pairs = [(edges_of(one), edges_of(other)) for one, other in zip(drawn, shown, strict=True)]
    return {
        "iou_dilated": float(np.mean([iou(dilated(one), dilated(other)) for one, other in pairs])),
        "iou": float(np.mean([iou(one, other) for one, other in pairs])),
    }


def score_edges(pipeline: Pipeline, count: int, fields: RequestFields) -> tuple[dict[str, Any], Pictures]:
    from ..judge import Judge

    prompts, scenes, renders = controls(count)
    control = [[{"model": EDGES, "image": Image.fromarray(each), "preprocess": CANNY}] for each in renders]
    figures: dict[str, Any] = {"preprocess": CANNY}
    for name, each in (("without", {}), ("with_edges", {"control": control})):
        pictures = draw(pipeline, prompts, fields, **each)
        figures[name] = edge_figures(pictures, renders) | {"accuracy": Judge.load().accuracy(pictures, scenes)}
    return figures, pictures


def main() -> None:
    import tintype

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*LORAS, "edges"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fast", action="store_true", help="by the bundle's fast denoiser, in 4 steps")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path, help="also write the first 24 pictures with their prompts")
    options = parser.parse_args()
    fields: RequestFields = {"fast": True} if options.fast else {"num_inference_steps": options.steps}
    with tintype.load("postcard", provider="cpu") as pipeline:
        if options.what == "edges":
            figures, pictures = score_edges(pipeline, options.count, fields)
        else:
            figures, pictures = score_lora(pipeline, options.what, options.count, fields)
    if options.sheet:
        prompts = [prompt for prompt, _ in prompts_for(options.what, 24)]
        contact_sheet(list(pictures[:24]), 6, prompts[: len(pictures)]).save(options.sheet)
    settings = {"pictures": options.count, "fast": options.fast, "steps": None if options.fast else options.steps}
    text = json.dumps({"what": options.what, **settings, **figures, **machine()}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
