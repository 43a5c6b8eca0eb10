"""How well postcard's adapters do what they are for, drawn by the runtime with the bundle that is shipped.

    python -m tintype.models.postcard.adapters.evaluate mushroom cyanotype pixel-art edges [--count 100]
                                                        [--steps 20] [--fast] [--out FOLDER] [--sheets FOLDER]

The prompts are those of `postcard.evaluate`, whose combinations training never saw; picture i has seed i. A LoRA is
judged at weight 1 and at 0, the ControlNet with its edges and without, by the same words and seeds. At weight 0 a LoRA
leaves every byte as it is (a test holds that), so those pictures are drawn once for all.
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

# Between what the model draws with a LoRA and without, chosen on prompts of training.
LARGEST_DISTANCE, LEAST_BLOCK_SHARE = 29.0, 0.165


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


class Studio:
    """Draws prompts by a pipeline with the same fields each time; picture i of each list has seed i."""

    def __init__(self, pipeline: Pipeline, fields: RequestFields) -> None:
        self._pipeline, self._fields = pipeline, fields
        self._plain: dict[tuple[str, ...], Pictures] = {}

    def draw(self, prompts: Sequence[str], fields: RequestFields | None = None, **each: Sequence[Any]) -> Pictures:
        """One picture a prompt. each: fields with another value for each picture."""
        made = []
        for seed, prompt in enumerate(prompts):
            own: Any = {**self._fields, **(fields or {}), **{name: values[seed] for name, values in each.items()}}
            made.append(np.asarray(self._pipeline.generate(prompt, **own, seed=seed).image))
        return np.stack(made)

    def plain(self, prompts: Sequence[str]) -> Pictures:
        """Those without an adapter, drawn once."""
        key = tuple(prompts)
        if key not in self._plain:
            self._plain[key] = self.draw(prompts)
        return self._plain[key]

    def with_lora(self, name: str, prompts: Sequence[str], weight: float = 1.0) -> Pictures:
        return self.draw(prompts, {"loras": [(LORAS[name].file, weight)]})

    def after_edges(self, prompts: Sequence[str], renders: Pictures) -> Pictures:
        """Each after the edges of a picture."""
        asked = [[{"model": EDGES, "image": Image.fromarray(each), "preprocess": CANNY}] for each in renders]
        return self.draw(prompts, control=asked)


def score_lora(studio: Studio, name: str, count: int) -> tuple[dict[str, Any], Pictures]:
    """Shares of pictures that show what the LoRA is for, and what the judge of postcards reads in them."""
    from ..judge import Judge

    prompts, scenes = zip(*prompts_for(name, count), strict=True)

    def figures_of(pictures: Pictures, scenes: Sequence[Scene]) -> dict[str, Any]:
        return {"shown": float(SIGNS[name](pictures).mean()), "accuracy": Judge.load().accuracy(pictures, scenes)}

    pictures = studio.with_lora(name, prompts)
    figures = {"weight_1": figures_of(pictures, scenes), "weight_0": figures_of(studio.plain(prompts), scenes)}
    if name == "mushroom":  # what becomes of words that ask for something else
        others, scenes = zip(*fixed_prompts(count), strict=True)
        figures["other_prompts_at_weight_1"] = figures_of(studio.with_lora(name, others), scenes)
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


def score_edges(studio: Studio, count: int) -> tuple[dict[str, Any], Pictures]:
    from ..judge import Judge

    prompts, scenes, renders = controls(count)
    pictures = studio.after_edges(prompts, renders)
    figures: dict[str, Any] = {"preprocess": CANNY}
    for name, made in (("with_edges", pictures), ("without", studio.plain(prompts))):
        figures[name] = edge_figures(made, renders) | {"accuracy": Judge.load().accuracy(made, scenes)}
    return figures, pictures


def main() -> None:
    import tintype

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=(*LORAS, "edges"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fast", action="store_true", help="by the bundle's fast denoiser, in 4 steps")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="a folder for postcard-adapter-NAME.json")
    parser.add_argument("--sheets", type=Path, help="a folder for the first 24 pictures of each with their prompts")
    options = parser.parse_args()
    fields: RequestFields = {"fast": True} if options.fast else {"num_inference_steps": options.steps}
    settings = {"pictures": options.count, "fast": options.fast, "steps": None if options.fast else options.steps}
    with tintype.load("postcard", provider="cpu", threads=options.threads) as pipeline:
        studio = Studio(pipeline, fields)
        for name in options.names:
            count = options.count
            figures, pictures = score_edges(studio, count) if name == "edges" else score_lora(studio, name, count)
            text = json.dumps({"what": name, **settings, **figures, **machine()}, indent=2)
            print(text, flush=True)
            if options.out:
                (options.out / f"postcard-adapter-{name}.json").write_text(text + "\n")
            if options.sheets:
                prompts = [prompt for prompt, _ in prompts_for(name, min(count, 24))]
                contact_sheet(list(pictures[:24]), 6, prompts).save(options.sheets / f"{name}.png")


if __name__ == "__main__":
    main()
