"""A run that another thread ends: within a graph's call, or before the next one; nothing else is harmed by it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import filelock
import psutil
import pytest
from pictures import PROMPT, middle, photo

import tintype
from tintype import Picture, Run
from tintype.engine import Session
from tintype.engine.run.switch import Stop, Switched
from tintype.errors import CancelledError, MemoryBudgetError
from tintype.memory.mode import Segments, Strips
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps

ASKED = {"seed": 7, "num_inference_steps": 3, "sampler": "euler"}
LARGE = {"width": 512, "height": 512}  # a call of its decoder takes long enough to be ended on the way
PLANS = {
    "segments": ExecutionPlan(modes={"denoiser": Segments(1), "text_encoder": Segments(1)}, keep=False),
    "standing": ExecutionPlan(modes={"denoiser": Segments(1, standing=True)}, keep=False),
    "strips": ExecutionPlan(modes={"vae_decoder": Strips(1), "vae_encoder": Strips(1)}, keep=False),
}


@pytest.fixture(scope="module")
def expected(pipeline) -> bytes:
    return pipeline.generate(PROMPT, **ASKED).image.tobytes()


@pytest.fixture
def graph_runs(monkeypatch) -> Iterator[list[str]]:
    """Each run of ONNX Runtime's sessions: `begun`, then `done` where it wasn't ended."""
    seen: list[str] = []
    run = Switched.run

    def counted(self, *arguments):
        seen.append("begun")
        made = run(self, *arguments)
        seen.append("done")
        return made

    monkeypatch.setattr(Switched, "run", counted)
    return seen


def ends(run: Run) -> list:
    """What a run gives until it is cancelled."""
    seen: list = []
    with pytest.raises(CancelledError) as caught:
        seen.extend(run.events())
    assert caught.value.fix
    assert list(run) == []
    with pytest.raises(RuntimeError, match="no result"):
        _ = run.result
    return seen


def cancelling(run: Run) -> threading.Thread:
    return threading.Thread(target=run.cancel)


def test_a_run_that_is_cancelled_before_its_first_step_calls_no_graph(pipeline, expected, graph_runs):
    run = pipeline.steps(PROMPT, **ASKED)
    run.cancel()
    assert ends(run) == []
    assert graph_runs == []
    assert pipeline.generate(PROMPT, **ASKED).image.tobytes() == expected


@pytest.mark.parametrize("begun", [{}, {"image": photo(), "strength": 1.0}, {"image": photo(), "mask": middle()}])
def test_a_run_that_is_cancelled_between_two_steps_takes_no_other_one(pipeline, expected, graph_runs, begun):
    run = pipeline.steps(PROMPT, **ASKED, **begun)
    first = next(run)
    before = len(graph_runs)
    thread = cancelling(run)
    thread.start()
    thread.join()
    assert ends(run) == []
    assert first.index == 0
    assert len(graph_runs) == before
    assert pipeline.generate(PROMPT, **ASKED).image.tobytes() == expected


def test_pictures_that_are_done_stay(pipeline):
    run = pipeline.steps(PROMPT, count=3, **ASKED)
    events = run.events()
    seen = [next(events) for _ in range(4)]
    assert isinstance(seen[-1], Picture)
    run.cancel()
    assert ends(run) == []
    assert run.pictures == (seen[-1],)


def test_cancelling_after_the_end_does_nothing(pipeline, expected):
    run = pipeline.steps(PROMPT, **ASKED)
    list(run)
    run.cancel()
    assert run.result.image.tobytes() == expected
    assert pipeline.generate(PROMPT, **ASKED).image.tobytes() == expected


def test_cancelling_one_run_leaves_another_of_the_same_pipeline(pipeline, expected):
    one, other = (pipeline.steps(PROMPT, **ASKED) for _ in range(2))
    next(one)
    next(other)
    one.cancel()
    assert len(list(other)) == 2
    assert other.result.image.tobytes() == expected
    assert ends(one) == []


def cancel_within(run: Run, is_call, monkeypatch) -> threading.Thread:
    """Cancel a run once ONNX Runtime is within a call for which `is_call(feed)`; it goes on no sooner."""
    inside, real = threading.Event(), Switched.run

    def told(self, names, feed, options=None):
        if is_call(feed) and not inside.is_set():
            inside.set()
        return real(self, names, feed, options)

    def cancel() -> None:
        assert inside.wait(60)
        time.sleep(0.02)
        run.cancel()

    monkeypatch.setattr(Switched, "run", told)
    thread = threading.Thread(target=cancel)
    thread.start()
    return thread


def test_a_long_call_is_ended_on_its_way(pipeline, expected, graph_runs, monkeypatch):
    """The decoder's, of a picture large enough that it takes a while."""
    asked = {**ASKED, "num_inference_steps": 1, "guidance_scale": 1.0, **LARGE}
    run = pipeline.steps(PROMPT, **asked)
    next(run)
    use = pipeline.context(run.request).use("vae_decoder")  # opened before
    pipeline.graphs.session(use, pipeline.graphs.options(use, run.request.exactness), ExecutionPlan())
    thread = cancel_within(run, lambda feed: "latent_sample" in feed, monkeypatch)
    before = len(graph_runs)
    assert ends(run) == []
    thread.join()
    assert graph_runs[before:] == ["begun"]  # and not done
    loaded = pipeline.graphs.load_seconds
    next(pipeline.steps(PROMPT, **asked))
    assert pipeline.graphs.load_seconds == loaded  # graphs stayed open
    assert pipeline.generate(PROMPT, **ASKED).image.tobytes() == expected


@pytest.mark.parametrize("way", PLANS)
def test_a_call_in_parts_is_ended_between_two_of_them(tiny_bundle, graph_runs, monkeypatch, way):
    decodes = way == "strips"
    asked = {**ASKED, "guidance_scale": 1.0}
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:

        def begin() -> Run:
            context = pipeline.context(pipeline.resolve(tintype.Request(prompt=PROMPT, **asked)), PLANS[way])
            return Run(context, picture_steps(context))

        whole = begin()
        steps = list(whole)
        picture = whole.result.image.tobytes()
        run = begin()
        for _ in range(len(steps) if decodes else 1):
            next(run)
        before = len(graph_runs)
        real, calls = Switched.run, 0

        def cancels_in_its_second_part(self, names, feed, options=None):
            nonlocal calls
            calls += 1
            made = real(self, names, feed, options)
            if calls == 2:
                thread = cancelling(run)
                thread.start()
                thread.join()
            return made

        with monkeypatch.context() as patch:
            patch.setattr(Switched, "run", cancels_in_its_second_part)
            assert ends(run) == []
        assert graph_runs[before:] == ["begun", "done"] * 2 + ["begun"]  # the third part ends as it begins
        again = begin()
        list(again)
        assert again.result.image.tobytes() == picture


def test_a_decode_that_memory_made_smaller_is_ended_too(pipeline, graph_runs, monkeypatch):
    """In strips, where it went on after the whole had failed."""
    run, sessions = pipeline.steps(PROMPT, **ASKED, width=128, height=128), Session.run

    def limited(self, inputs):
        if "latent_sample" in inputs and not self.is_in_parts:
            raise MemoryBudgetError("model.onnx ran out of memory", fix="less")
        return sessions(self, inputs)

    monkeypatch.setattr(Session, "run", limited)
    assert [next(run).index for _ in range(3)] == [0, 1, 2]
    before, real, calls = len(graph_runs), Switched.run, 0

    def cancels(self, names, feed, options=None):
        nonlocal calls
        calls += 1
        if calls == 2:
            run.cancel()
        return real(self, names, feed, options)

    monkeypatch.setattr(Switched, "run", cancels)
    assert ends(run) == []
    assert graph_runs[before:] == ["begun", "done", "begun"]


@pytest.mark.parametrize("when", ["before", "as it begins"])
def test_a_call_that_begins_when_it_is_cancelled_does_not_go_on(pipeline, graph_runs, monkeypatch, when):
    """Whether the cancel comes before ONNX Runtime has the run's options or after."""
    run = pipeline.steps(PROMPT, **ASKED)
    next(run)
    before = len(graph_runs)
    name = "under" if when == "before" else "execute"
    real = getattr(Session, name)

    def cancels(self, argument):
        run.cancel()
        return real(self, argument)

    monkeypatch.setattr(Session, name, cancels)
    assert ends(run) == []
    assert "done" not in graph_runs[before:]


def test_what_waits_for_another_runs_call_is_cancelled_before_its_own(pipeline, graph_runs):
    run = pipeline.steps(PROMPT, **ASKED)
    next(run)
    errors, before = [], len(graph_runs)

    def go_on() -> None:
        try:
            next(run)
        except CancelledError as error:
            errors.append(error)

    with pipeline.graphs.lock:  # as another run holds it while it computes
        thread = threading.Thread(target=go_on)
        thread.start()
        run.cancel()
    thread.join()
    assert len(errors) == 1
    assert len(graph_runs) == before


def test_a_stop_ends_the_run_that_is_under_it_and_later_ones_alone():
    class Options:
        terminate = False

    stop, first, second, other = Stop(), Options(), Options(), Options()
    with stop.over(first):
        assert not first.terminate
        stop.set()
        assert first.terminate
    with stop.over(second):
        assert second.terminate
    with Stop().over(other):
        stop.set()
        assert not other.terminate


@pytest.mark.parametrize("waits_for", ["its own build", "another's build"])
def test_a_run_that_waits_for_a_build_is_cancelled(tiny_bundle, no_builds, tmp_path, monkeypatch, waits_for):
    """Its child would go on for days; so would the one that another process waits for."""
    from tintype.engine.build import builds
    from tintype.engine.build.child import run_child

    begun = threading.Event()

    def endless(module: str, job: str):
        begun.set()
        return run_child("endless", job)

    (tmp_path / "endless.py").write_text("import time\ntime.sleep(1e6)\n")
    with monkeypatch.context() as patch, tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        patch.setenv("PYTHONPATH", str(tmp_path))
        patch.setattr(builds, "run_child", endless)
        patch.setattr(tintype.engine, "begin_builds", lambda *_, **__: None)
        run = pipeline.steps(PROMPT, **ASKED)
        held = contextlib.ExitStack()
        if waits_for == "another's build":
            context = pipeline.context(run.request)
            use = context.uses[0]
            key = builds.build_key(
                pipeline.bundle, use.ref.role, pipeline.target, options=pipeline.graphs.options(use, "exact")
            )
            held.enter_context(filelock.FileLock(no_builds / "builds" / f"{key}.lock"))
            begun.set()
        with held:
            ending = threading.Thread(target=lambda: begun.wait() and run.cancel())
            ending.start()
            assert ends(run) == []
            ending.join()
        assert not [child for child in psutil.Process().children(recursive=True) if "endless" in child.cmdline()]
        patch.undo()
        monkeypatch.setenv("TINTYPE_CACHE", str(no_builds))
        made = pipeline.generate(PROMPT, **ASKED).image.tobytes()
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as other:
        assert made == other.generate(PROMPT, **ASKED).image.tobytes()
