"""Thousands of pictures in one process, of every kind, some cancelled, some failing: `make soak COUNT=n`.

A kiosk's months in minutes. Between pictures nothing may pile up: resident memory, open files and threads of the last
tenth are compared with those of the tenth after the first. Each picture is drawn from a seed that its kind draws again
and again, and has to have the bytes that it had the first time, whatever failed in between.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import tintype
from tintype.errors import CancelledError, TintypeError

PROMPT = "a red sailboat on a calm sea at sunset"
SIDE = 64  # pixels
STEPS = 2
MOST_GROWTH = 0.02
SEEDS = 3  # of each kind


def photo() -> Image.Image:
    rows = np.linspace(0, 255, SIDE, dtype=np.uint8)
    return Image.fromarray(
        np.stack([np.tile(rows, (SIDE, 1)), np.tile(rows[:, None], (1, SIDE)), np.full((SIDE, SIDE), 90, np.uint8)], -1)
    )


def mask() -> Image.Image:
    drawn = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(drawn).ellipse((12, 12, 50, 44), fill=255)
    return drawn


# Kinds of request, by name; each is drawn with the same few seeds throughout.
KINDS: dict[str, dict[str, Any]] = {
    "words": {},
    "other words": {"negative_prompt": "a house, (night:1.3)", "guidance_scale": 4.0},
    "ancestral": {"sampler": "euler_a"},
    "dpm": {"sampler": "dpmpp_2m_sde", "sigmas": "karras"},
    "unguided": {"guidance_scale": 1.0},
    "guided in part": {"guidance_interval": "0.0,0.5"},
    "deep part kept": {"cache_interval": 2},
    "gated": {"gate_start": 0.5},
    "tokens merged": {"token_merging": 0.5},
    "cfg++": {"sampler": "euler_cfg_pp"},
    "exact": {"exactness": "exact"},
    "balanced": {"exactness": "balanced"},
    "oblong": {"width": 96, "height": 64},
    "two at once": {"count": 2, "batch_size": 2},
    "one after the other": {"count": 2},
    "from a picture": {"image": photo(), "strength": 0.6},
    "stretched": {"image": photo().resize((40, 90)), "fit": "pad", "strength": 1.0},
    "inpainted": {"image": photo(), "mask": mask(), "mask_blur": 2.0},
    "exact outside": {"image": photo(), "mask": mask(), "keep_outside": "exact", "mask_grow": 2},
    "outpainted": {"image": photo(), "outpaint": "32,0,0,0"},
    "enlarged": {"hires": 1.5, "hires_strength": 0.6},
    "enlarged as pixels": {"hires": 1.5, "hires_upscale": "pixel", "hires_strength": 0.6},
    "torch's noise": {"noise": "torch-cpu"},
}


class Broken(Exception):
    """A fault that is put in."""


def _cancelled(pipeline: tintype.Pipeline, request: dict[str, Any], chance: random.Random, folder: Path) -> None:
    """Ended by another thread at a random moment."""
    run = pipeline.steps(PROMPT, **request)
    timer = threading.Timer(chance.uniform(0, 0.2), run.cancel)
    timer.start()
    try:
        for _ in run.events():
            pass
    except CancelledError:
        pass
    finally:
        timer.cancel()
        timer.join()


def _left(pipeline: tintype.Pipeline, request: dict[str, Any], chance: random.Random, folder: Path) -> None:
    """Closed after a step."""
    run = pipeline.steps(PROMPT, **request)
    next(run)
    run.close()


def _thrown_into(pipeline: tintype.Pipeline, request: dict[str, Any], chance: random.Random, folder: Path) -> None:
    """The caller fails between two steps."""
    try:
        for _ in pipeline.steps(PROMPT, **request):
            raise Broken
    except Broken:
        pass


def _refused(pipeline: tintype.Pipeline, request: dict[str, Any], chance: random.Random, folder: Path) -> None:
    wrong = (
        {"sampler": "none"},
        {"width": 65},
        {"num_inference_steps": 0},
        {"image": io.BytesIO(b"GIF89a")},
        {"mask": mask()},
    )
    _fails(
        lambda: pipeline.generate(
            "(" * 100, **{**request, "image": None, "mask": None, "outpaint": None, **chance.choice(wrong)}
        )
    )


def _no_room(pipeline: tintype.Pipeline, request: dict[str, Any], chance: random.Random, folder: Path) -> None:
    """The disk is full when the picture is written."""
    result = pipeline.generate(PROMPT, **{**request, "count": 1})
    _fails(lambda: result.save("/dev/full"))
    _fails(lambda: result.save(folder / "nowhere" / "x.png"))


def _kept(pipeline: tintype.Pipeline, request: dict[str, Any], chance: random.Random, folder: Path) -> None:
    """Latents are written, read and decoded; a picture is written, its record read, and made again."""
    run = pipeline.steps(PROMPT, **request)
    list(run)
    inputs = {name: request[name] for name in ("image", "mask") if name in request}
    saved = tintype.read_latents(run.save_latents(folder / "latents.safetensors"))
    again = pipeline.resume(saved, **inputs)
    if [image.tobytes() for image in again.images] != [image.tobytes() for image in run.result.images]:
        raise AssertionError("saved latents are decoded to another picture")
    record = tintype.read_record(run.result.save(folder / "x.png")[0])
    if pipeline.reproduce(record, **inputs).images[0].tobytes() != run.result.images[0].tobytes():
        raise AssertionError("a record gives another picture")


def _fails(call: Callable[[], object]) -> None:
    try:
        call()
    except TintypeError:
        return
    raise AssertionError("what can't be done was done")


BETWEEN = (_cancelled, _left, _thrown_into, _refused, _no_room, _kept)


@dataclass(slots=True)
class Tally:
    """What the process held after each picture, and what came of what."""

    rss_bytes: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    between: Counter[str] = field(default_factory=Counter)
    digests: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def look(self) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.rss_bytes.append(int(status["VmRSS"].split()[0]) * 1024)
        self.threads.append(int(status["Threads"]))
        self.files.append(len(list(Path("/proc/self/fd").iterdir())))

    def growth(self, values: list[int]) -> tuple[int, int]:
        """The most of the second tenth, and the most of the last."""
        tenth = len(values) // 10
        return max(values[tenth : 2 * tenth]), max(values[-tenth:])

    def judge(self) -> list[str]:
        problems = list(self.problems)
        before, after = self.growth(self.rss_bytes)
        if after > before * (1 + MOST_GROWTH):
            problems.append(f"resident memory grew by {after / before - 1:.1%}")
        for name, values in (("open files", self.files), ("threads", self.threads)):
            before, after = self.growth(values)
            if after > before:
                problems.append(f"there are {after} {name}, and were {before}")
        return problems


def soak(count: int, seed: int, memory: str | None = None) -> Tally:
    """Make so many pictures; what was seen."""
    chance, tally, names = random.Random(seed), Tally(), list(KINDS)
    with (
        tempfile.TemporaryDirectory(prefix="tintype-soak-") as place,
        tintype.load("postcard", provider="cpu", memory=memory) as pipeline,
    ):
        for number in range(count):
            name = names[number] if number < len(names) else chance.choice(names)
            request = {
                "num_inference_steps": STEPS,
                "width": SIDE,
                "height": SIDE,
                "seed": chance.randrange(SEEDS),
                **KINDS[name],
            }
            if name == "outpainted":
                request.pop("width"), request.pop("height")
            try:
                result = pipeline.generate(PROMPT, **request)
                _same(tally, f"{name} {request['seed']}", result)
                tally.kinds[name] += len(result.images)
                if number >= len(names) and chance.random() < 0.25:
                    between = chance.choice(BETWEEN)
                    tally.between[between.__name__.strip("_")] += 1
                    between(pipeline, request, chance, Path(place))
                del result
            except Exception as error:  # whatever it is, the next picture has to be made
                tally.problems.append(f"{number}, {name}: {type(error).__name__}: {error}")
            if number % 50 == 49:
                gc.collect()
            tally.look()
            if number % 200 == 199:
                print(
                    f"{number + 1:,} requests: {tally.rss_bytes[-1] / 2**20:.0f} MiB, {tally.files[-1]} files, "
                    f"{tally.threads[-1]} threads, {len(tally.problems)} problems",
                    flush=True,
                )
    return tally


def _same(tally: Tally, name: str, result: tintype.Result) -> None:
    digest = hashlib.sha256(b"".join(image.tobytes() for image in result.images)).hexdigest()
    if tally.digests.setdefault(name, digest) != digest:
        raise AssertionError(f"{name} has other bytes than the first time")


def main() -> int:
    parser = argparse.ArgumentParser(description="Pictures of every kind in one process, some cancelled, some failing.")
    parser.add_argument("--count", type=int, default=2000, help="requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", help="a budget, as in 200MiB")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    started = time.perf_counter()
    tally = soak(options.count, options.seed, options.memory)
    problems = tally.judge()
    if options.out is not None:
        write_report(options.out, tally, problems, {**vars(options), "out": None}, time.perf_counter() - started)
    print(*problems or ["nothing grew, nothing failed"], sep="\n")
    return 1 if problems else 0


def write_report(path: Path, tally: Tally, problems: list[str], options: dict[str, Any], seconds: float) -> None:
    from tintype.bench.measurement import machine_facts

    report = {
        "command": "tests/soak/soak.py",
        "options": options,
        "machine": machine_facts(2),
        "seconds": round(seconds, 1),
        "pictures": sum(tally.kinds.values()),
        "kinds": dict(tally.kinds),
        "between": dict(tally.between),
        "problems": problems,
        **{
            name: {"second_tenth": before, "last_tenth": after}
            for name, (before, after) in (
                ("rss_bytes", tally.growth(tally.rss_bytes)),
                ("files", tally.growth(tally.files)),
                ("threads", tally.growth(tally.threads)),
            )
        },
        "every_fiftieth_rss_bytes": tally.rss_bytes[::50],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
