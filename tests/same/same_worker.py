"""One side of `same`: its cases, drawn by the tintype that stands first on the path.

That may be of any commit that loads and generates, so this keeps to the public API, and is run as a file:

    python -P same_worker.py FOLDER PLANNED CASE...
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tintype

ASKED = {"prompt": "a red sailboat on a calm sea at sunset", "seed": 7, "num_inference_steps": 3}
LARGE = {**ASKED, "width": 256, "height": 256}  # so that its maps, not its weights, are what a budget is short of
LONG = "a blue house in front of the mountains, clear sky, at noon, " * 8  # two chunks of tokens
CUT = {"denoiser": "segments of 2 MiB", "vae_decoder": "strips of 1 MiB"}

# Fields of a request. made_with: changes of the record that is then reproduced. memory: the pipeline's budget.
CASES: dict[str, Mapping[str, Any]] = {
    "exact": ASKED,
    "exact-unguided-ancestral": {**ASKED, "guidance_scale": 1.0, "sampler": "euler_a"},
    "balanced-ancestral": {**ASKED, "exactness": "balanced", "sampler": "euler_a"},
    "balanced-unguided": {**ASKED, "exactness": "balanced", "guidance_scale": 1.0},
    "three-in-twos": {**ASKED, "guidance_scale": 1.0, "count": 3, "batch_size": 2},
    "two-chunks": {**ASKED, "prompt": LONG},
    "cut": {**ASKED, "made_with": {"modes": CUT, "split_guidance": True}},
    "budget": {**LARGE, "memory": "150MiB"},
}


def draw(name: str, folder: Path, planned: Path) -> None:
    """Save a case's pictures with their records in a folder of its name, or what refused it as error.txt.

    planned: a plan goes by what it measures, so each side makes one, and both draw by that of the first, kept here.
    """
    folder = folder / name
    folder.mkdir()
    request = dict(CASES[name])
    memory, made_with = request.pop("memory", None), dict(request.pop("made_with", {}))
    try:
        with tintype.load("postcard", provider="cpu", memory=memory) as pipeline:
            result = pipeline.generate(**request)
            if made_with:
                if "modes" not in dataclasses.asdict(result.record.made_with):  # of a commit that named them so
                    made_with["holdings"] = made_with.pop("modes")
                changed = dataclasses.replace(result.record.made_with, **made_with)
                result = pipeline.reproduce(dataclasses.replace(result.record, made_with=changed), anyway=True)
            if memory is not None:
                if not planned.exists():
                    result.save(planned)
                result = pipeline.reproduce(tintype.read_record(planned), anyway=True)
        result.save(folder / "picture.png")
    except Exception as error:  # what one side refuses is compared with what the other does
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")


if __name__ == "__main__":
    folder, planned, *names = sys.argv[1:]
    if (home := Path(tintype.__file__).parent) != Path(folder, "site", "tintype"):
        sys.exit(f"tintype was imported from {home}")
    for name in names:
        draw(name, Path(folder), Path(planned))
