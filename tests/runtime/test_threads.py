"""Threads share one pipeline: each gets the bytes that it gets alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pictures import PROMPT, middle, photo

import tintype
from tintype.errors import CancelledError
from tintype.recent import Recent

ASKED = {"num_inference_steps": 3, "sampler": "euler_a"}
TOGETHER: dict[str, list[dict[str, Any]]] = {
    "one shape": [{"seed": 1}, {"seed": 2, "guidance_scale": 3.0}],
    "two shapes": [{"seed": 1, "width": 64, "height": 64}, {"seed": 2, "width": 96, "height": 32}],
    "words and a picture": [{"seed": 1}, {"seed": 2, "image": photo(), "mask": middle(), "keep_outside": "exact"}],
    "unguided": [{"seed": 1, "guidance_scale": 1.0}, {"seed": 2, "guidance_scale": 1.0}],
    "guided or not": [{"seed": 1}, {"seed": 2, "guidance_scale": 1.0, "count": 2}],
}


@pytest.fixture(scope="module", autouse=True)
def _quick_turns():
    """Threads take turns often, wherever they are."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each call returns, all begun at the same time."""
    begin = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        begin.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(120) for future in [pool.submit(run, call) for call in calls]]


@pytest.mark.parametrize(("name", "memory"), [*((name, None) for name in TOGETHER), ("unguided", "4GiB")])
def test_each_thread_gets_what_it_gets_alone(tiny_bundle: Path, name: str, memory: str | None) -> None:
    requests = [{**ASKED, **fields} for fields in TOGETHER[name]]

    def alone(pipeline: tintype.Pipeline, fields: dict[str, Any]) -> tintype.Result:
        return pipeline.generate(PROMPT, **fields)

    with tintype.load(tiny_bundle, provider="cpu", threads=1, memory=memory) as pipeline:  # nothing is open or planned
        each = [at_once([lambda fields=fields: alone(pipeline, fields) for fields in requests]) for _ in range(2)]
        expected = [alone(pipeline, fields) for fields in requests]
        for made in each:
            for result, known in zip(made, expected, strict=True):
                assert [image.tobytes() for image in result.images] == [image.tobytes() for image in known.images]
                assert [record.made_with for record in result.records] == [record.made_with for record in known.records]
                assert [record.notes for record in result.records] == [record.notes for record in known.records]
                times = result.timings
                stages = (times.encode_seconds, times.denoise_seconds, times.decode_seconds)
                assert min(*stages, times.load_seconds, times.denoise_graph_seconds) >= 0
                assert sum(stages) + times.load_seconds <= times.total_seconds


def test_loading_is_told_of_the_run_that_did_it(tiny_bundle: Path) -> None:
    """While one thread's run waits between two steps, another one opens graphs of its own."""
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        pipeline.generate(PROMPT, seed=1, **ASKED)
        run = pipeline.steps(PROMPT, seed=1, **ASKED)
        next(run)
        other = at_once([lambda: pipeline.generate(PROMPT, seed=1, guidance_scale=1.0, **ASKED)])[0]
        pipeline.generate(PROMPT, seed=1, **ASKED)  # whose graphs take their places again
        list(run)
    assert other.timings.load_seconds > 0
    assert run.result.timings.load_seconds == 0


def test_a_thread_that_is_cancelled_leaves_the_other_as_it_is(tiny_bundle: Path) -> None:
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        asked = {**ASKED, "num_inference_steps": 8}
        expected = pipeline.generate(PROMPT, seed=1, **asked).image.tobytes()
        for _ in range(3):
            doomed = pipeline.steps(PROMPT, seed=2, **{**asked, "num_inference_steps": 999})

            def end(run: tintype.Run) -> bool:
                try:
                    list(run)
                except CancelledError:
                    return True
                return False

            def draw(run: tintype.Run) -> bytes:
                image = pipeline.generate(PROMPT, seed=1, **asked).image
                run.cancel()
                return image.tobytes()

            ended, drawn = at_once([lambda run=doomed: end(run), lambda run=doomed: draw(run)])
            assert ended
            assert drawn == expected


def test_a_pipeline_that_is_closed_meanwhile_opens_again(tiny_bundle: Path) -> None:
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        expected = pipeline.generate(PROMPT, seed=1, **ASKED).image.tobytes()

        def close() -> None:
            for _ in range(5):
                pipeline.close()

        drawn, _ = at_once([lambda: pipeline.generate(PROMPT, seed=1, **ASKED).image.tobytes(), close])
    assert drawn == expected


def test_what_was_found_out_lately_may_be_put_and_got_by_many_threads() -> None:
    class Yielding(int):
        """A key whose hash gives other threads their turn, as any that is computed in Python may."""

        def __hash__(self) -> int:
            time.sleep(0)
            return int(self)

    recent = Recent[int, int](2)

    def use(first: int) -> None:
        for number in range(500):
            key = Yielding((first + number) % 5)
            assert recent.get(key) in (None, key)
            assert recent.put(key, key) == key

    at_once([lambda first=first: use(first) for first in range(4)])
    assert len(recent) == 2


def test_a_hundred_runs_from_sixteen_threads_are_each_what_they_are_alone(tiny_bundle: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {"sampler": "euler"},
        {"sampler": "dpmpp_2m", "guidance_scale": 3.0, "exactness": "balanced"},
        {"sampler": "euler_a", "negative_prompt": "rain"},
        {"image": photo(), "strength": 0.6},
        {"image": photo(), "mask": middle(), "keep_outside": "exact"},
        {"sampler": "lcm", "guidance_scale": 1.0},
    ]
    requests = [{"num_inference_steps": 2, "seed": number % 9, **kinds[number % 6]} for number in range(100)]
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:

        def draw(fields: dict[str, Any]) -> tuple[bytes, str]:
            made = pipeline.generate(PROMPT, **fields)
            return made.image.tobytes(), made.record.texts()["tintype"]

        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(draw, requests, timeout=300))
        alone = [draw(fields) for fields in requests[:18]]  # from there on they come again
        assert together == [alone[number % 18] for number in range(100)]
