"""A request with `fast` is drawn by the bundle's other denoiser, as that one is drawn with; all else is as ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pictures import middle, photo

import tintype
from tintype.cli.generate import generate
from tintype.engine import cache_folder
from tintype.errors import MemoryBudgetError, RequestError
from tintype.request import Request

pytestmark = pytest.mark.slow

PROMPT = "a red sailboat on a calm sea at sunset"
SMALL = {"width": 64, "height": 64, "seed": 3}


@pytest.fixture(scope="module")
def pipeline(fast_bundle: Path) -> Iterator[tintype.Pipeline]:
    with tintype.load(fast_bundle, provider="cpu", threads=1) as opened:
        yield opened


def test_what_is_left_out_is_what_the_fast_denoiser_is_drawn_with(pipeline: tintype.Pipeline) -> None:
    usual = pipeline.resolve(Request(prompt=PROMPT))
    fast = pipeline.resolve(Request(prompt=PROMPT, fast=True))
    assert (usual.fast, usual.num_inference_steps, usual.guidance_scale, usual.sampler) == (False, 20, 7.5, "dpmpp_2m")
    assert (fast.num_inference_steps, fast.guidance_scale, fast.sampler, fast.sigmas) == (4, 1.0, "euler", "trailing")


def test_what_is_said_counts(pipeline: tintype.Pipeline) -> None:
    said = Request(prompt=PROMPT, fast=True, num_inference_steps=2, guidance_scale=3.0, sampler="lcm")
    known = pipeline.resolve(said)
    assert (known.num_inference_steps, known.guidance_scale, known.sampler, known.sigmas) == (2, 3.0, "lcm", None)
    assert pipeline.resolve(Request(prompt=PROMPT, fast=True, sampler="dpmpp_2m")).sigmas == "trailing"


@pytest.mark.parametrize(("scale", "branches"), [(None, 1), (0.0, 1), (3.0, 2)])
def test_its_graph_is_the_one_that_is_called_for_a_branch_or_two(
    pipeline: tintype.Pipeline, scale: float | None, branches: int
) -> None:
    known = pipeline.resolve(Request(prompt=PROMPT, fast=True, guidance_scale=scale, **SMALL))
    (use,) = (each for each in pipeline.model.uses(known) if each.ref.role == "denoiser")
    assert (str(use.ref), use.calls, use.branches) == ("denoiser.fast", 4, branches)


def test_the_picture_is_that_of_the_distilled_bundle_and_its_record_makes_it_again(
    pipeline: tintype.Pipeline, distilled_bundle: Path, tmp_path: Path
) -> None:
    made = pipeline.generate(PROMPT, fast=True, **SMALL)
    with tintype.load(distilled_bundle, provider="cpu", threads=1) as other:
        alone = other.generate(PROMPT, **SMALL)
    np.testing.assert_array_equal(made.latents, alone.latents)
    slow = pipeline.generate(
        PROMPT, num_inference_steps=4, guidance_scale=1.0, sampler="euler", sigmas="trailing", **SMALL
    )
    assert not np.allclose(made.latents, slow.latents, atol=1e-3), "the two denoisers are not the same"

    made.save(tmp_path / "x.png")
    record = tintype.read_record(tmp_path / "x.png")
    assert record.request.fast
    assert "denoiser.fast" in record.made_with.builds
    assert "denoiser" not in record.made_with.builds
    assert pipeline.reproduce(record).image.tobytes() == made.image.tobytes()


def test_a_record_from_before_there_was_one_says_no(pipeline: tintype.Pipeline) -> None:
    text = pipeline.generate(PROMPT, num_inference_steps=1, **SMALL).record.texts()["tintype"]
    older = json.loads(text)
    del older["request"]["fast"]
    assert tintype.record.parse_record(json.dumps(older)).request.fast is False


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 2), (1.0, 4)])
def test_a_picture_is_changed_by_its_share_of_the_steps(
    pipeline: tintype.Pipeline, strength: float, steps: int
) -> None:
    run = pipeline.steps(PROMPT, fast=True, image=photo(), strength=strength, **SMALL)
    assert len(list(run)) == steps
    assert run.result.record.request.fast


def test_under_a_mask_alone_the_picture_is_new(pipeline: tintype.Pipeline) -> None:
    before = photo()
    asked = {"image": before, "mask": middle(), "keep_outside": "exact", "watermark": False, **SMALL}
    after = np.asarray(pipeline.generate(PROMPT, fast=True, **asked).image)
    white = np.asarray(middle().convert("L")) > 127
    np.testing.assert_array_equal(after[~white], np.asarray(before.convert("RGB"))[~white])
    assert (after[white] != np.asarray(before.convert("RGB"))[white]).mean() > 0.5


def test_an_enlarged_picture_is_drawn_by_it_twice(pipeline: tintype.Pipeline) -> None:
    made = pipeline.generate(PROMPT, fast=True, hires=2.0, **SMALL)
    assert made.image.size == (128, 128)
    assert {name for name in made.record.made_with.builds if "denoiser" in name} == {
        "denoiser.fast",
        "base denoiser.fast",
    }


@pytest.mark.long
def test_a_budget_plans_for_it_measures_it_and_changes_no_byte(pipeline: tintype.Pipeline, fast_bundle: Path) -> None:
    plan = pipeline.plan(PROMPT, fast=True, build=False, **SMALL)
    assert {stage.role: stage.calls for stage in plan.stages}["denoiser.fast"] == 4
    tight = tintype.load(fast_bundle, provider="cpu", threads=1, memory="1MiB")
    with pytest.raises(MemoryBudgetError) as caught:
        tight.plan(PROMPT, fast=True, **SMALL)
    assert caught.value.least_bytes is not None
    with tintype.load(fast_bundle, provider="cpu", threads=1, memory=2 * caught.value.least_bytes) as bounded:
        made = bounded.generate(PROMPT, fast=True, **SMALL)
    assert made.plan is not None
    (stage,) = (each for each in made.plan.stages if each.role == "denoiser.fast")
    assert stage.costs.measured
    assert stage.built
    assert made.image.tobytes() == pipeline.generate(PROMPT, fast=True, **SMALL).image.tobytes()


def test_builds_are_its_own(pipeline: tintype.Pipeline, no_builds: Path) -> None:
    known = pipeline.resolve(Request(prompt=PROMPT, fast=True, **SMALL))
    made = dict(pipeline.build(known))
    assert set(made) == {"text_encoder", "denoiser.fast", "vae_decoder"}
    other = dict(pipeline.build(pipeline.resolve(Request(prompt=PROMPT, guidance_scale=1.0, **SMALL))))
    assert other["denoiser"] != made["denoiser.fast"]
    assert other["vae_decoder"] == made["vae_decoder"], "the rest is shared"


def test_what_is_built_before_the_first_picture_is_what_it_opens(
    fast_bundle: Path, no_builds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tintype.engine.build import builds

    children = []
    run_child = builds.run_child
    monkeypatch.setattr(builds, "run_child", lambda *words: children.append(words) or run_child(*words))
    with tintype.load(fast_bundle, provider="cpu", threads=1) as opened:
        record = opened.generate(PROMPT, fast=True, **SMALL).record
    assert len(children) == 1, "all were built together"
    there = {path.name for path in (cache_folder() / "builds").iterdir() if path.is_dir()}
    assert {each.rpartition("-")[0] for each in record.made_with.builds.values()} == there


def test_a_model_without_one_says_so(tiny_bundle: Path) -> None:
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as opened:
        with pytest.raises(RequestError, match="no fast denoiser") as caught:
            opened.generate(PROMPT, fast=True)
        assert "leave fast out" in caught.value.fix


def test_a_refiner_has_no_place_in_so_few_steps(pipeline: tintype.Pipeline) -> None:
    with pytest.raises(RequestError, match="a refiner and fast contradict each other"):
        pipeline.resolve(Request(prompt=PROMPT, fast=True, refiner_start=0.8))


def test_noise_that_could_not_be_read_back_is_not_coded(pipeline: tintype.Pipeline) -> None:
    with pytest.raises(RequestError, match="code_noise and fast contradict each other"):
        pipeline.resolve(Request(prompt=PROMPT, fast=True, code_noise=True, width=128, height=128))


def test_the_command_draws_repeats_and_asks_for_the_like(fast_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    def drawn(name: str, *asked: object) -> Path:
        done = CliRunner().invoke(generate, [*map(str, asked), "--provider", "cpu", "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        return tmp_path / name

    first = drawn("a.png", PROMPT, "--model", fast_bundle, "--fast", "--size", "64x64", "--seed", 3)
    again = drawn("b.png", "--model", fast_bundle, "--from-record", first)
    assert first.read_bytes() == again.read_bytes()
    alike = drawn("c.png", "--model", fast_bundle, "--like", first)
    assert tintype.read_record(alike).request.fast
    elsewhere = tintype.like(first).for_bundle(tintype.open_bundle(tiny_bundle))
    assert any("fast denoiser" in sentence for sentence in elsewhere.left_out)
    assert {"fast", "num_inference_steps", "sampler"} & set(elsewhere.fields) == set()
