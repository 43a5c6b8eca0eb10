"""A memory budget from the outside: planned before anything loads, kept, told in the record, and the same picture."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from pictures import PROMPT, middle, photo, psnr_db

import tintype
import tintype.engine
from tintype.engine.build import builds
from tintype.errors import BuildError, MemoryBudgetError, RequestError, UncutError
from tintype.memory.mode import MAPPED, PACKED, Segments, Strips
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.record.provenance import execution_plan_of
from tintype.stages.finish import provenance_of

REQUEST = {"seed": 3, "num_inference_steps": 3, "width": 64, "height": 64, "exactness": "exact"}


@pytest.fixture(scope="module")
def unbounded(tiny_bundle):
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        return pipeline.generate(PROMPT, **REQUEST)


@pytest.fixture
def open_roles(monkeypatch):
    """By role, the options of each session that is open when it is called."""
    opened, real = [], tintype.engine.open_role

    def open_role(bundle, role, target, **more):
        session = real(bundle, role, target, **more)
        opened.append((role, more["options"], session))
        return session

    def is_open(session):
        with contextlib.suppress(BuildError):
            return session.inner is not None
        return False

    monkeypatch.setattr(tintype.engine, "open_role", open_role)
    return lambda: {role: options for role, options, session in opened if is_open(session)}


def test_a_picture_within_a_budget_says_so_and_can_be_made_again(tiny_bundle, unbounded):
    with tintype.load(tiny_bundle, provider="cpu", memory="2GiB", threads=1) as pipeline:
        plan = pipeline.plan(PROMPT, **REQUEST)
        result = pipeline.generate(PROMPT, **REQUEST)
    assert plan.measured
    assert plan.peak_bytes <= 2**31
    assert result.plan is not None
    assert result.plan.execution == plan.execution
    assert [stage.role for stage in plan.stages] == ["text_encoder", "denoiser", "vae_decoder"]
    assert all(stage.kernels.get("attention", 0) >= 1 for stage in plan.stages)
    assert all(stage.built and stage.build_bytes > 50 * 2**20 for stage in plan.stages)  # a process with its imports
    assert plan.as_dict()["build_bytes"] == plan.build_bytes == max(stage.build_bytes for stage in plan.stages)
    told = plan.lines()
    assert [line.split()[0] for line in told if " kernels: " in line] == [stage.role for stage in plan.stages]
    assert plan.as_dict()["stages"][1]["kernels"] == plan.stages[1].kernels
    assert psnr_db(unbounded.image, result.image) >= 60.0
    memory = result.record.memory
    assert memory is not None
    assert memory.budget_bytes == 2**31
    assert memory.planned_peak_bytes == result.plan.most_bytes
    assert memory.peak_rss_bytes > 0
    assert unbounded.record.memory is None
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:  # without a budget: the record says how
        again = pipeline.reproduce(result.record)
    np.testing.assert_array_equal(np.asarray(again.image), np.asarray(result.image))


def test_a_decoder_that_cannot_be_cut_is_planned_without_strips(tiny_bundle, tmp_path, monkeypatch):
    """In a cache of its own: what others learned of this machine changes what is tried."""
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "cache"))
    asked, real = [], builds.ensure_build

    def ensure_build(bundle, role, target, **more):
        if more["options"].strip_bytes is not None:
            asked.append(more["options"].strip_bytes)
            raise UncutError("the graph can't run in strips", fix="x")
        return real(bundle, role, target, **more)

    monkeypatch.setattr(builds, "ensure_build", ensure_build)
    large = {**REQUEST, "width": 256, "height": 256}  # whose decoder needs more than its denoiser
    with (
        tintype.load(tiny_bundle, provider="cpu", memory="1MiB", threads=1) as pipeline,
        pytest.raises(MemoryBudgetError, match="nothing fits") as caught,
    ):
        pipeline.plan(PROMPT, **large)
    assert len(asked) == 1
    least = caught.value.fix.split("give ")[1].split()[0]
    with tintype.load(tiny_bundle, provider="cpu", memory=f"{least}MiB", threads=1) as pipeline:
        decoder = pipeline.plan(PROMPT, **large).stages[-1]
    assert not isinstance(decoder.mode, Strips)
    assert decoder.peak_bytes < int(least) * 2**20


WAYS = {
    "mapped": dict.fromkeys(("text_encoder", "denoiser", "vae_decoder"), MAPPED),
    "segments": {"text_encoder": Segments(1), "denoiser": Segments(1), "vae_decoder": PACKED},
    "strips": {"vae_decoder": Strips(1)},
}


@pytest.mark.parametrize("split", [False, True], ids=["together", "split"])
@pytest.mark.parametrize("way", WAYS)
def test_however_graphs_are_held_the_picture_is_the_same(tiny_bundle, unbounded, open_roles, way, split):
    plan = ExecutionPlan(modes=WAYS[way], split_guidance=split, keep=False)
    made_with = dataclasses.replace(
        unbounded.record.made_with,
        modes={role: str(mode) for role, mode in WAYS[way].items()},
        split_guidance=split,
    )
    assert execution_plan_of(made_with) == dataclasses.replace(plan, timed=dict.fromkeys(made_with.builds, False))
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        made_with = dataclasses.replace(
            made_with, builds=provenance_of(pipeline.context(unbounded.record.request, plan), 0).builds
        )
        result = pipeline.reproduce(dataclasses.replace(unbounded.record, made_with=made_with))
        assert list(open_roles()) == ["vae_decoder"]  # one after another: the others are closed
    assert psnr_db(unbounded.image, result.image) >= 60.0
    assert result.record.made_with.modes == made_with.modes
    assert result.record.made_with.builds != unbounded.record.made_with.builds


def test_a_preview_between_steps_makes_room_and_gives_it_back(tiny_bundle, unbounded, open_roles):
    """The decoder takes the denoiser's place and the denoiser is opened again; the picture is the same."""
    plan = ExecutionPlan(keep=False)
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        context = pipeline.context(unbounded.record.request, plan)
        run = tintype.Run(context, picture_steps(context))
        for step in run:
            assert len(step.preview(full=True)) == 1
            assert list(open_roles()) == ["vae_decoder"]
    np.testing.assert_array_equal(np.asarray(run.result.image), np.asarray(unbounded.image))


def test_what_fits_nowhere_is_refused_before_anything_loads_and_what_would_fit_does(tiny_bundle, open_roles):
    with tintype.load(tiny_bundle, provider="cpu", memory=2**20, threads=1) as pipeline:
        with pytest.raises(MemoryBudgetError, match="nothing fits") as caught:
            pipeline.generate(PROMPT, **REQUEST)
        assert open_roles() == {}
    least = caught.value.least_bytes // 2**20
    with tintype.load(tiny_bundle, provider="cpu", memory=f"{least + 24}MiB", threads=1) as pipeline:
        assert pipeline.plan(PROMPT, **REQUEST).measured


def test_a_budget_that_is_no_size_is_refused_at_once(tiny_bundle):
    with pytest.raises(RequestError, match="is no size"):
        tintype.load(tiny_bundle, memory="lots")


def test_plans_are_made_without_building_where_that_is_asked(tiny_bundle, no_builds):
    with tintype.load(tiny_bundle, provider="cpu", memory="2GiB", threads=1) as pipeline:
        plan = pipeline.plan(PROMPT, build=False, **REQUEST)
    assert not plan.measured
    assert not list((no_builds / "builds").glob("*"))
    assert plan.as_dict()["stages"][1]["role"] == "denoiser"
    assert any("reckoned" in line for line in plan.lines())
    assert not any(stage.built for stage in plan.stages)
    assert any("3 to be made first" in line for line in plan.lines())
    assert plan.build_bytes > 2**20


def test_a_request_of_another_shape_closes_what_has_no_place_in_its_plan(tiny_bundle, open_roles):
    with tintype.load(tiny_bundle, provider="cpu", memory="2GiB", threads=1) as pipeline:
        first = pipeline.generate(PROMPT, **REQUEST)
        before = open_roles()
        pipeline.generate(PROMPT, **{**REQUEST, "width": 96})
        after = open_roles()
        assert after["denoiser"] != before["denoiser"]
        again = pipeline.generate(PROMPT, **REQUEST)
    np.testing.assert_array_equal(np.asarray(first.image), np.asarray(again.image))


BEGINNINGS = {"picture": {"image": photo(), "strength": 0.7}, "mask": {"image": photo(), "mask": middle()}}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_plan_of_what_begins_with_a_picture_has_a_stage_for_the_encoder(tiny_bundle, beginning):
    asked = {**REQUEST, "count": 2, **BEGINNINGS[beginning]}
    with tintype.load(tiny_bundle, provider="cpu", memory="2GiB", threads=1) as pipeline:
        plan = pipeline.plan(PROMPT, **asked)
        result = pipeline.generate(PROMPT, **asked)
        uses = pipeline.model.uses(result.record.request)
    assert plan.measured
    assert [stage.role for stage in plan.stages] == ["text_encoder", "vae_encoder", "denoiser", "vae_decoder"]
    calls = [(use.split() if stage.split_guidance else use).calls for stage, use in zip(plan.stages, uses, strict=True)]
    assert [stage.calls for stage in plan.stages] == calls
    assert result.plan.execution == plan.execution
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        whole = pipeline.generate(PROMPT, **asked)
        inputs = {name: value for name, value in asked.items() if name in ("image", "mask")}
        again = pipeline.reproduce(result.records[1], **inputs)
    assert psnr_db(whole.images[1], result.images[1]) >= 60.0
    assert again.image.tobytes() == result.images[1].tobytes()


def test_a_picture_is_encoded_and_its_encoder_closed_before_the_denoiser_opens(tiny_bundle, open_roles):
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as pipeline:
        request = pipeline.resolve(tintype.Request(prompt=PROMPT, **REQUEST, count=2, **BEGINNINGS["mask"]))
        context = pipeline.context(request, ExecutionPlan(keep=False))
        run, seen = tintype.Run(context, picture_steps(context)), []
        for event in run.events():
            seen.append(list(open_roles()))
            if isinstance(event, tintype.Step):
                assert context.picture is not None
    assert seen == [*[["denoiser"]] * 3, ["vae_decoder"]] * 2


def test_a_picture_that_fits_nowhere_is_refused_before_anything_loads(tiny_bundle, open_roles):
    with tintype.load(tiny_bundle, provider="cpu", memory=2**20, threads=1) as pipeline:
        with pytest.raises(MemoryBudgetError, match="nothing fits"):
            pipeline.plan(PROMPT, build=False, **REQUEST, **BEGINNINGS["mask"])
        assert open_roles() == {}


def test_the_encoder_of_an_earlier_picture_has_no_place_in_the_plan_of_words(tiny_bundle, open_roles):
    with tintype.load(tiny_bundle, provider="cpu", memory="2GiB", threads=1) as pipeline:
        pipeline.generate(PROMPT, **REQUEST, **BEGINNINGS["picture"])
        assert "vae_encoder" in open_roles()
        pipeline.generate(PROMPT, **REQUEST)
        assert "vae_encoder" not in open_roles()


@pytest.mark.memory
@pytest.mark.skipif(sys.platform != "linux", reason="needs a peak that is the process's own")
@pytest.mark.parametrize("begins", ["words", "picture"])
@pytest.mark.parametrize("above", [1.0, 1.3])
def test_the_process_stays_within_its_budget_and_near_its_plan(tmp_path, above, begins):
    """postcard from the command line, at the smallest budget that there is and a little above."""
    command = [sys.executable, "-m", "tintype"]
    shape = ["--exactness", "exact", "--num-inference-steps", "4", "--threads", "2", "--provider", "cpu", "--json"]
    if begins == "picture":
        photo(128, 128).save(tmp_path / "image.png")
        middle(128, 128).save(tmp_path / "mask.png")
        shape += ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")]

    def call(*arguments):
        return subprocess.run([*command, *arguments, *shape], capture_output=True, text=True, check=False)

    least, budget = 1, 0
    while budget == 0:
        refused = call("plan", "postcard", "--memory", f"{least}MiB")
        if refused.returncode == 0:
            budget = int(least * above) * 2**20
        else:
            least = json.loads(refused.stdout)["error"]["least_bytes"] // 2**20
    planned = json.loads(call("plan", "postcard", "--memory", str(budget)).stdout)["plan"]
    made = call("generate", PROMPT, "-o", str(tmp_path / "x.png"), "--memory", str(budget))
    told = json.loads(made.stdout)
    decided = ("role", "held", "split_guidance", "kernels")
    assert [[stage[name] for name in decided] for stage in told["plan"]["stages"]] == [
        [stage[name] for name in decided] for stage in planned["stages"]
    ]
    peak = told["timings"]["peak_rss_bytes"]
    assert peak <= budget
    assert abs(told["plan"]["peak_bytes"] - peak) <= 0.1 * peak
