"""Words that a model answers more strongly than ordinary ones are told of, where it is known how ordinary ones are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tintype
from tintype import strict_json
from tintype.bundle import EMBEDDED
from tintype.bundle.bundle import embedded_folder
from tintype.cli import run as run_command
from tintype.record import parse_record
from tintype.request import Request, ResolvedRequest
from tintype.stages.denoise import Denoiser
from tintype.trust import thresholds
from tintype.trust.memorisation import LIKELY, StepNorms
from tintype.trust.ordinary import ordinary_prompts, read_prompts
from tintype.trust.thresholds import Calibration, Calibrations, digest_of, read_calibrations, write_calibrations

PROMPT = "a red sailboat on a calm sea at sunset"
SMALL = {"seed": 7, "num_inference_steps": 2, "width": 64, "height": 64, "watermark": False}
TINY = {"num_inference_steps": 1, "width": 16, "height": 16}
MANY = [f"a house, number {number}" for number in range(100)]
FEW = MANY[:20]


@pytest.fixture(scope="module")
def pipeline() -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where calibrations are kept, for one test."""
    monkeypatch.setattr(thresholds, "FOLDER", str(tmp_path / "memorisation"))
    return tmp_path / "memorisation"


def calibration(pipeline: tintype.Pipeline, scores: list[float], **fields: Any) -> Calibration:
    request = pipeline.resolve(Request(prompt="", **fields))
    way = {name: getattr(request, name) for name in thresholds.WAY}
    return Calibration(**way, prompts=len(scores), prompts_sha256="0" * 64, scores=tuple(scores))


def keep(pipeline: tintype.Pipeline, *found: Calibration) -> None:
    known = Calibrations(bundle_hash=pipeline.bundle.hash, calibrations=found)
    write_calibrations(thresholds.own_place(pipeline.bundle), known)


# The score


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[int, np.ndarray]]]:
    """What the denoiser gave at each call: the step, and by branch (0: unconditional, 1: conditional)."""
    recorded: list[tuple[int, dict[int, np.ndarray]]] = []
    honest = Denoiser._predictions

    def recording(self: Denoiser, *given: Any, **named: Any) -> dict[int, np.ndarray]:
        found = honest(self, *given, **named)
        recorded.append((self.step, {branch: values.copy() for branch, values in found.items()}))
        return found

    monkeypatch.setattr(Denoiser, "_predictions", recording)
    return recorded


@pytest.mark.parametrize(("sampler", "calls_a_step"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_score_is_the_mean_norm_of_what_the_words_change(
    pipeline: tintype.Pipeline, predictions: list[Any], sampler: str, calls_a_step: int, steps: int
) -> None:
    asked = {**SMALL, "num_inference_steps": steps, "sampler": sampler, "count": 2, "batch_size": 2}
    result = pipeline.generate(PROMPT, **asked)
    assert len(predictions) >= steps * calls_a_step - 1  # the last step of Heun's is Euler's
    first_calls = [next(found for step, found in predictions if step == number) for number in range(steps)]
    for row, record in enumerate(result.records):
        norms = [np.linalg.norm((found[1][row] - found[0][row]).ravel()) / 32 for found in first_calls]  # 32^2 values
        assert record.memorisation is not None
        assert record.memorisation.score == pytest.approx(np.mean(norms), abs=1e-5)
    assert result.records[0].memorisation.score != result.records[1].memorisation.score


def test_guidance_doesnt_change_what_a_step_is_scored_by(pipeline: tintype.Pipeline) -> None:
    """Of the first step, whose latents are the seed's noise whatever the guidance."""
    scores = {
        pipeline.generate(PROMPT, **{**SMALL, "num_inference_steps": 1}, **more).record.memorisation.score
        for more in ({"guidance_scale": 2.0}, {"guidance_scale": 9.0}, {"guidance_rescale": 0.7})
    }
    assert len(scores) == 1


def test_without_guidance_there_is_no_score_and_nothing_is_computed(
    pipeline: tintype.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tintype.trust.memorisation.root_mean_squares", lambda difference: pytest.fail("computed"))
    assert pipeline.generate(PROMPT, **SMALL, guidance_scale=1.0).record.memorisation is None


def test_steps_outside_of_guidance_dont_count() -> None:
    norms = StepNorms()
    norms.observe(1, np.full((2, 1, 4, 4), 3.0, np.float32))
    norms.observe(1, np.full((2, 1, 4, 4), 9.0, np.float32))  # the second call of a step
    norms.observe(2, np.full((2, 1, 4, 4), [[[[1.0]]], [[[2.0]]]], np.float32))
    assert [norms.score(row) for row in (0, 1)] == [2.0, 2.5]
    assert norms.of(1) == (3.0, 2.0)


def test_a_picture_that_goes_on_from_a_smaller_one_has_that_ones_score(pipeline: tintype.Pipeline) -> None:
    small = pipeline.generate(PROMPT, **SMALL).record.memorisation
    large = pipeline.generate(PROMPT, **SMALL, hires=2.0).record.memorisation
    assert small is not None
    assert large is not None
    assert large.score == small.score


# The judgement


@pytest.fixture
def told(pipeline: tintype.Pipeline, own_folder: Path) -> Callable[..., Any]:
    """What a record says of a score of 2, where ordinary prompts stay below 1."""
    keep(pipeline, calibration(pipeline, [1.0] * 100, width=96, height=64))

    def judged(**fields: Any) -> Any:
        request = pipeline.resolve(Request(**{"prompt": PROMPT, "width": 96, "height": 64, **fields}))
        return thresholds.judge_score(2.0, request, pipeline.bundle)

    return judged


@pytest.mark.parametrize("count", [1, 2, 99, 100, 200, 731])
def test_the_threshold_is_numpys_unbiased_quantile(pipeline: tintype.Pipeline, count: int) -> None:
    scores = np.random.default_rng(count).random(count).tolist()
    wanted = np.quantile(scores, 0.99, method="weibull")
    assert calibration(pipeline, scores).threshold == pytest.approx(wanted, abs=1e-12)


def test_a_score_above_the_threshold_is_likely_and_one_below_is_not(
    pipeline: tintype.Pipeline, told: Callable[..., Any]
) -> None:
    found = told()
    assert (found.threshold, found.is_likely, found.not_judged) == (1.0, True, None)
    request = pipeline.resolve(Request(prompt=PROMPT, width=96, height=64))
    assert thresholds.judge_score(0.5, request, pipeline.bundle).is_likely is False


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 64},
        {"negative_prompt": "blurry"},
        {"sigmas": "karras"},
        {"num_inference_steps": 5},
        {"num_inference_steps": 60},
        {"guidance_scale": 2.0},
        {"guidance_scale": -5.0},
        {"guidance_interval": "0.2,0.8"},
        {"prompt": "a house AND a boat"},
        {"prompt": "a house AND a boat:0.5"},
    ],
    ids=lambda fields: "-".join(f"{name}-{value}" for name, value in fields.items()),
)
def test_a_request_unlike_what_was_calibrated_isnt_judged(told: Callable[..., Any], fields: dict[str, Any]) -> None:
    found = told(**fields)
    assert (found.score, found.threshold, found.is_likely) == (2.0, None, None)
    assert found.not_judged


def test_a_picture_from_a_picture_isnt_judged(pipeline: tintype.Pipeline, told: Callable[..., Any]) -> None:
    from PIL import Image

    found = told(image=Image.new("RGB", (96, 64)))
    assert found.is_likely is None
    assert found.not_judged == "it began with a picture"


def test_a_refined_picture_isnt_judged(pipeline: tintype.Pipeline, told: Callable[..., Any]) -> None:
    """Its base took the first steps alone."""
    assert told().is_likely
    request = pipeline.resolve(Request(prompt=PROMPT, width=96, height=64))
    found = thresholds.judge_score(2.0, dataclasses.replace(request, refiner_start=0.8), pipeline.bundle)
    assert (found.is_likely, found.not_judged) == (None, "a refiner drew the last steps")


def test_a_little_more_steps_and_guidance_are_judged(told: Callable[..., Any]) -> None:
    assert told(num_inference_steps=25, guidance_scale=5.5, sampler="euler_a").is_likely


def test_the_nearest_calibration_judges(pipeline: tintype.Pipeline, own_folder: Path) -> None:
    near = calibration(pipeline, [3.0] * 100, **TINY, guidance_scale=5.0)
    far = calibration(pipeline, [1.0] * 100, **TINY, guidance_scale=6.0)
    begun = dataclasses.replace(near, guidance_scale=5.1, prompts=200)
    keep(pipeline, far, near, begun)
    request = pipeline.resolve(Request(prompt="", **TINY, guidance_scale=5.2))
    assert thresholds.calibrations_of(pipeline.bundle).for_request(request) == near


def test_it_is_a_note_in_the_record_and_on_the_terminal_and_the_pixels_stay(
    pipeline: tintype.Pipeline, own_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pipeline.generate(PROMPT, **SMALL)
    assert before.record.memorisation.not_judged == "nothing is calibrated for such requests"
    assert before.record.notes == ()
    keep(pipeline, calibration(pipeline, [1e-3] * 100, **{**SMALL, "watermark": True}))
    after = pipeline.generate(PROMPT, **SMALL)
    assert after.record.notes == (LIKELY,)
    assert after.record.memorisation.is_likely
    assert np.array_equal(before.image, after.image)
    assert np.array_equal(pipeline.reproduce(before.record).image, after.image)

    path = tmp_path / "x.png"
    options = ["--size", "64x64", "--seed", "7", "--num-inference-steps", "2", "--no-watermark", "--threads", "1"]
    assert run_command(["generate", PROMPT, "-o", str(path), *options]) == 0
    assert capsys.readouterr().err == f"note: {LIKELY}\n"
    assert tintype.read_record(path) == after.record


def test_latents_that_wait_keep_their_score(pipeline: tintype.Pipeline, own_folder: Path, tmp_path: Path) -> None:
    from tintype.record.latents_file import read_latents

    keep(pipeline, calibration(pipeline, [1e-3] * 100, **{**SMALL, "watermark": True}))
    run = pipeline.steps(PROMPT, **SMALL)
    list(run)
    resumed = pipeline.resume(read_latents(run.save_latents(tmp_path / "x.safetensors")))
    assert resumed.record.memorisation == run.result.record.memorisation
    assert resumed.record.notes == (LIKELY,)


def test_a_record_from_before_reads(pipeline: tintype.Pipeline) -> None:
    record = pipeline.generate(PROMPT, **SMALL).record
    value = strict_json.plain(record)
    assert parse_record(json.dumps(value)) == record
    del value["memorisation"]
    assert parse_record(json.dumps(value)).memorisation is None


# Calibrating


def test_a_calibration_that_was_broken_off_goes_on_where_it_stopped(
    pipeline: tintype.Pipeline, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tintype.stages.calibrate.MIN_PROMPTS", len(FEW))
    whole = tintype.calibrate(pipeline, FEW, **TINY)
    assert whole.is_complete
    assert len(set(whole.scores)) == len(FEW)
    first = pipeline.generate(MANY[3], seed=3, **TINY).record.memorisation
    assert first.score == whole.scores[3]
    assert first.threshold == pytest.approx(whole.threshold, abs=1e-6)

    def stop(done: int, total: int) -> None:
        assert total == len(FEW)
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        tintype.calibrate(pipeline, FEW, anew=True, on_progress=stop, **TINY)
    assert stopped.value.__notes__ == ["6 of 20 prompts are done and kept: the same call goes on"]
    assert thresholds.calibrations_of(pipeline.bundle).for_request(pipeline.resolve(Request(prompt="", **TINY))) is None
    seen: list[int] = []
    again = tintype.calibrate(pipeline, FEW, on_progress=lambda done, total: seen.append(done), **TINY)
    assert again == whole
    assert seen == list(range(6, 21))
    tintype.calibrate(pipeline, FEW, on_progress=lambda done, total: seen.append(-done), **TINY)
    assert seen[-2:] == [20, -20], "what is complete is not drawn again"


def test_other_prompts_and_damaged_files_begin_anew(
    pipeline: tintype.Pipeline, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tintype.stages.calibrate.MIN_PROMPTS", len(FEW))
    place = thresholds.own_place(pipeline.bundle)
    place.parent.mkdir()
    place.write_text('{"format_version": 1, "bundle_hash": "')
    first = tintype.calibrate(pipeline, FEW, **TINY)
    other = tintype.calibrate(pipeline, [each.replace("house", "tent") for each in FEW], **TINY)
    assert first.prompts_sha256 != other.prompts_sha256
    assert first.scores != other.scores
    assert read_calibrations(place, pipeline.bundle).calibrations == (other,)


@pytest.mark.parametrize(
    ("prompts", "fields", "reason"),
    [
        (MANY[:99], {}, "99 prompts"),
        (MANY, {"guidance_scale": 1.0}, "without guidance"),
        (MANY, {"guidance_interval": "0,0.5"}, "interval"),
        (MANY, {"hires": 2.0}, "in one size"),
        (MANY, {"count": 2}, "one picture a prompt"),
        ([*MANY[:-1], "a AND b"], {}, "parts"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cant_be_judged_isnt_calibrated(
    pipeline: tintype.Pipeline, own_folder: Path, prompts: list[str], fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(tintype.RequestError, match=reason):
        tintype.calibrate(pipeline, prompts, **{**TINY, **fields})
    assert not own_folder.exists()


def test_the_command_calibrates_and_info_tells(
    own_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n\n".join(MANY), encoding="utf-8-sig")
    asked = ["--size", "16x16", "--num-inference-steps", "1", "--prompts", str(prompts), "--threads", "1"]
    assert run_command(["calibrate", "postcard", *asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["scores"]) == 100
    assert Path(answer["file"]).parent == own_folder
    assert run_command(["calibrate", "postcard", *asked]) == 0, "it is there already"
    assert f"threshold {answer['threshold']:.4g}" in capsys.readouterr().out
    assert run_command(["info", "postcard"]) == 0
    assert "16x16, 1 steps of dpmpp_2m, guidance 5: 100 prompts" in capsys.readouterr().out
    assert run_command(["info", "postcard", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)["bundle"]["memorisation"]
    assert known[0]["threshold"] == answer["threshold"]
    assert run_command(["calibrate", "postcard", "--prompts", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_one_in_a_hundred_is_above_the_threshold(pipeline: tintype.Pipeline) -> None:
    """Of n scores the k-th highest has k in n + 1 fresh ones above it."""
    assert calibration(pipeline, list(map(float, range(1, 200)))).threshold == pytest.approx(198.0)
    assert calibration(pipeline, list(map(float, range(1, 400)))).threshold == pytest.approx(396.0)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [0.1, -1.0]}, {"scores": [0.1] * 3, "prompts": 2}, {"prompts": 10**9}, {"prompts": 0},
        {"num_inference_steps": 10**400}, {"scores": ["x"]}, {"scores": [[[]]]}, {"guidance_scale": 1e400},
        {"format_version": 2}, {"bundle_hash": "0" * 64},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_a_hostile_file_is_no_calibration(pipeline: tintype.Pipeline, tmp_path: Path, change: dict[str, Any]) -> None:
    known = Calibrations(bundle_hash=pipeline.bundle.hash, calibrations=(calibration(pipeline, [0.1, 0.2]),))
    path, value = tmp_path / "x.json", strict_json.plain(known)
    path.write_text(json.dumps(value))
    assert read_calibrations(path, pipeline.bundle) == known
    value |= {name: each for name, each in change.items() if name in value}
    value["calibrations"][0] |= {name: each for name, each in change.items() if name not in value}
    path.write_text(json.dumps(value))
    assert read_calibrations(path, pipeline.bundle).calibrations == ()


def test_a_file_of_prompts_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(map(str, range(10_001))))
    with pytest.raises(tintype.RequestError, match="10,001 prompts"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(tintype.RequestError, match="UTF-8"):
        read_prompts(path)


# What comes with Tintype


def test_the_general_prompts_are_two_hundred_plain_ones(pipeline: tintype.Pipeline) -> None:
    bundle = dataclasses.replace(pipeline.bundle, manifest=dataclasses.replace(pipeline.bundle.manifest, name="other"))
    prompts = ordinary_prompts(bundle)
    assert len(prompts) == len({each.lower() for each in prompts}) == 200
    assert len({each.split()[0] for each in prompts}) > 20
    for prompt in prompts:
        request: ResolvedRequest = pipeline.resolve(Request(prompt=prompt))
        assert thresholds.why_unlike_ordinary(request) is None


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_bundle_is_calibrated_as_it_is_shipped(name: str) -> None:
    """Where this fails after an export: python -m tintype.models.postcard.memorisation."""
    bundle = tintype.open_bundle(name)
    known = read_calibrations(embedded_folder(name).with_name(thresholds.SHIPPED), bundle).calibrations
    default = bundle.manifest.default_request
    usual = next(each for each in known if each.guidance_scale == default.guidance_scale)
    assert (usual.width, usual.height, usual.num_inference_steps) == (
        default.width, default.height, default.num_inference_steps,
    )  # fmt: skip
    assert all(each.is_complete for each in known)
    assert {each.prompts_sha256 for each in known} == {digest_of(ordinary_prompts(bundle))}
