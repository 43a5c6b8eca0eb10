"""LoRAs while a picture is drawn: at every weight, in parts, by the step, and again from the record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loras import (
    ASKED,
    ATTENTION,
    SCALE,
    STEPS,
    demand_the_same_in_the_least_memory,
    files,
    pairs,
    save_diffusers,
    save_kohya,
)
from low_precision import PRECISIONS, bundle_of, fp16_bundle, int8_export
from pictures import PROMPT, psnr_db
from PIL import Image

import tintype
from tintype.cli import run
from tintype.errors import LoraError, NumericError, RecordError
from tintype.memory.mode import MAPPED
from tintype.memory.plan import ExecutionPlan
from tintype.stages.finish import provenance_of

__all__ = ["files", "fp16_bundle", "int8_export"]  # the fixtures


def test_a_weight_of_nothing_is_the_picture_without_byte_for_byte(pipeline, files):
    plain = pipeline.generate(PROMPT, **ASKED)
    for loras in ((), [(files["kohya"], 0.0)], [f"{files['attention']}=1,unet=0"]):
        made = pipeline.generate(PROMPT, **ASKED, loras=loras)
        assert made.image.tobytes() == plain.image.tobytes()
        assert made.record.made_with == plain.record.made_with


def test_files_and_weights_change_without_another_build(pipeline, files):
    """Of one pattern: the same kind of layers, ranks that are rounded up alike."""
    said = [[(files["attention"], 0.7)], [(files["attention"], -2.0)], [(files["again"], 1.0)]]
    made = [pipeline.generate(PROMPT, **ASKED, loras=loras) for loras in said]
    assert len({picture.record.made_with.builds["denoiser"] for picture in made}) == 1
    assert len({picture.image.tobytes() for picture in made}) == 3
    other = pipeline.generate(PROMPT, **ASKED, loras=[*said[0], *said[2]])
    assert other.record.made_with.builds["denoiser"] != made[0].record.made_with.builds["denoiser"]


@pytest.mark.parametrize(("precision", "exactness"), PRECISIONS)
def test_over_lower_precisions_it_is_the_same_change_in_one_build(request, pipeline, files, precision, exactness):
    """Several LoRAs, of the text encoder too; and as it would be merged into floats: near the fp32 bundle's picture."""
    asked, said = {**ASKED, "exactness": exactness}, [(files["kohya"], 0.8), (files["attention"], -0.4)]
    expected = pipeline.generate(PROMPT, **ASKED, loras=said)
    with tintype.load(bundle_of(request, precision), provider="cpu", threads=1) as low:
        made, plain = low.generate(PROMPT, **asked, loras=said), low.generate(PROMPT, **asked)
        other = low.generate(PROMPT, **asked, loras=[(files["kohya"], 0.3), (files["again"], 0.7)])
        idle = low.generate(PROMPT, **asked, loras=[(file, 0.0) for file, _ in said])
        again = low.reproduce(made.record, loras=[file for file, _ in said])
    near, far = psnr_db(made.image, expected.image), psnr_db(plain.image, expected.image)
    print(f"{precision} {exactness}: {near:.1f} dB; without {far:.1f}")
    assert near >= {"fp16": 40.0, "int8": 25.0}[precision]
    assert far < near - 6.0
    assert made.record.made_with.builds == other.record.made_with.builds
    assert made.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    assert idle.image.tobytes() == plain.image.tobytes()


def test_one_lora_given_twice_is_one_of_twice_the_weight(pipeline, files):
    twice = pipeline.generate(PROMPT, **ASKED, loras=[(files["attention"], 0.3), (files["attention"], 0.5)])
    once = pipeline.generate(PROMPT, **ASKED, loras=[(files["attention"], 0.8)])
    assert psnr_db(twice.pixels * 255, once.pixels * 255) > 90


def _steps(pipeline, **fields):
    run = pipeline.steps(PROMPT, **ASKED, **fields)
    return [step.latents for step in run if isinstance(step, tintype.Step)]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_schedule_counts_between_its_shares_of_the_steps(pipeline, files, sampler, monkeypatch):
    monkeypatch.setitem(ASKED, "sampler", sampler)
    file = files["attention"]
    whole, early, late, plain = (
        _steps(pipeline, loras=loras) for loras in ([file], [f"{file}=1@0-0.5"], [f"{file}=1@0.5-1"], [])
    )
    half = STEPS // 2
    for index in range(half):
        np.testing.assert_array_equal(early[index], whole[index])
        np.testing.assert_allclose(late[index], plain[index], atol=1e-3)
    assert np.abs(early[half] - whole[half]).max() > 1e-2
    assert np.abs(late[half] - plain[half]).max() > 1e-2


def test_parts_of_the_model_have_weights_of_their_own(pipeline, files, tiny_checkpoint, tmp_path):
    """As a file without the others: the same build, so the same bytes."""
    unet = pairs(tiny_checkpoint, "unet", ATTENTION, 4, seed=3, size=0.5)
    alone = {
        start: save_diffusers(
            tmp_path / f"{start}.safetensors",
            {"unet": {name: pair for name, pair in unet.items() if name.startswith(start)}},
        )
        for start in ("down_blocks", "up_blocks")
    }
    for parts, start in (("mid=0,up=0", "down_blocks"), ("unet=0,up.1=1", "up_blocks")):
        one = pipeline.generate(PROMPT, **ASKED, loras=[f"{files['attention']}=1,{parts}"])
        other = pipeline.generate(PROMPT, **ASKED, loras=[alone[start]])
        assert one.image.tobytes() == other.image.tobytes()
    words = pipeline.generate(PROMPT, **ASKED, loras=[f"{files['kohya']}=1,unet=0"])
    plain = pipeline.generate(PROMPT, **ASKED)
    assert words.record.made_with.builds["denoiser"] == plain.record.made_with.builds["denoiser"]
    assert words.record.made_with.builds["text_encoder"] != plain.record.made_with.builds["text_encoder"]
    assert psnr_db(words.image, plain.image) < 40


WAYS: dict[str, dict[str, Any]] = {
    "batches": {"count": 3, "batch_size": 2},
    "deep": {"cache_interval": 2},
    "gated": {"gate_start": 0.5},
    "merged": {"token_merging": 0.5},
    "words that change": {"prompt": "a [house:boat:0.5] by the sea"},
    "hires": {"hires": 1.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_record_is_made_again_byte_for_byte(pipeline, files, tmp_path, way):
    """And differs from the picture without by far; whatever else the request asks for."""
    asked = {"prompt": PROMPT, **ASKED, **WAYS[way]}
    loras = [f"{files['attention']}=0.8@0-0.7", files["kohya"]]
    plain = pipeline.generate(**asked)
    made = pipeline.generate(**asked, loras=loras)
    assert psnr_db(made.image, plain.image) < 35
    made.save(tmp_path / "x.png")
    for index, image in enumerate(made.images):
        name = "x.png" if len(made.images) == 1 else f"x-{index + 1}.png"
        record = tintype.read_record(tmp_path / name)
        assert [(lora.name, lora.weight, lora.stop) for lora in record.request.loras] == [
            ("attention", 0.8, 0.7),
            ("kohya", 1.0, 1.0),
        ]
        again = pipeline.reproduce(record, loras=[files["kohya"], files["attention"]])
        assert again.image.tobytes() == image.tobytes()


def test_where_steps_take_values_over_the_lora_is_in_them(pipeline, files):
    """Taken over in every call but one of many, they would be those without it, were it left out of what is given."""
    fields = {**ASKED, "cache_interval": 2, "cache_branch": 1}
    made = pipeline.generate(PROMPT, **fields, loras=[files["locon"]])
    whole = pipeline.generate(PROMPT, **{**fields, "cache_interval": 1, "cache_branch": 0}, loras=[files["locon"]])
    plain = pipeline.generate(PROMPT, **fields)
    assert psnr_db(made.image, whole.image) > psnr_db(made.image, plain.image) + 3


def test_a_record_whose_lora_is_missing_names_it(pipeline, files, tmp_path):
    record = pipeline.generate(PROMPT, **ASKED, loras=[(files["attention"], 0.5)]).record
    plain = pipeline.generate(PROMPT, **ASKED).record
    with pytest.raises(RecordError, match=f"LoRA attention, sha256 {record.request.loras[0].sha256[:12]}"):
        pipeline.reproduce(record)
    with pytest.raises(RecordError, match="LoRA attention"):
        pipeline.reproduce(record, loras=[files["again"]])
    with pytest.raises(RecordError, match="drawn without the LoRA"):
        pipeline.reproduce(plain, loras=[files["again"]])
    with pytest.raises(RecordError, match="LoRA attention"):
        pipeline.reproduce(record, lora_dir=tmp_path)
    folder = files["attention"].parent
    assert pipeline.reproduce(record, lora_dir=folder).record == record


@pytest.mark.parametrize("said", ["PATH=0.9", "PATH=0.5", "PATH=0.5@0-0.6", "PATH=0.5,mid=0.1"])
def test_a_weight_that_the_record_denies_is_refused(pipeline, files, said):
    file = files["attention"]
    record = pipeline.generate(PROMPT, **ASKED, loras=[f"{file}=0.5@0-0.7"]).record
    with pytest.raises(RecordError, match=r"has the LoRA attention with a weight of 0\.5"):
        pipeline.reproduce(record, loras=[said.replace("PATH", str(file))])
    assert pipeline.reproduce(record, loras=[f"{file}=0.5@0-0.7"]).record == record


def test_a_lora_that_grows_beyond_all_numbers_is_blamed(pipeline, tiny_checkpoint, tmp_path):
    layers = pairs(tiny_checkpoint, "unet", ATTENTION, 4, seed=1, size=0.5)
    huge = {name: (down * 1e17, up * 1e17) for name, (down, up) in layers.items()}
    file = save_diffusers(tmp_path / "huge.safetensors", {"unet": huge})
    with pytest.raises(NumericError) as refusal:
        pipeline.generate(PROMPT, **ASKED, loras=[(file, 2.0)])
    assert refusal.value.fix.startswith("give the LoRAs smaller weights (huge of 2); if it stays so without them, try")


def test_a_prompt_names_them(pipeline, files):
    folder = files["attention"].parent
    named = pipeline.generate(f"{PROMPT} <lora:attention:0.5>", **ASKED, lora_dir=folder)
    given = pipeline.generate(PROMPT, **ASKED, loras=[(files["attention"], 0.5)])
    assert named.image.tobytes() == given.image.tobytes()
    assert named.record.request == given.record.request
    assert named.record.texts()["parameters"].startswith(f"{PROMPT} <lora:attention:0.5>\n")
    with pytest.raises(LoraError, match="no folder is given"):
        pipeline.generate("a house <lora:attention:0.5>", **ASKED)


def test_a_picture_like_one_with_a_lora_says_that_it_lacks_it(pipeline, files, tmp_path):
    pipeline.generate(PROMPT, **ASKED, loras=[(files["attention"], 0.5)]).save(tmp_path / "x.png")
    likeness = tintype.like(tmp_path / "x.png")
    assert "the LoRA attention: give it again, --lora FILE=0.5" in likeness.left_out
    assert not likeness.request().loras


def test_a_few_step_lora_brings_what_it_asks_for_and_says_so(pipeline, files, tmp_path):
    path = tmp_path / "lcm-lora-tiny.safetensors"
    path.write_bytes(files["attention"].read_bytes())
    left_out = {"num_inference_steps", "guidance_scale", "sampler"}
    small = {name: value for name, value in ASKED.items() if name not in left_out}
    made = pipeline.generate(PROMPT, **small, loras=[path])
    request = made.record.request
    assert (request.num_inference_steps, request.guidance_scale, request.sampler) == (4, 1.0, "lcm")
    assert any("lcm-lora-tiny is an LCM LoRA, which asks for 4 steps of lcm" in note for note in made.record.notes)
    said = pipeline.generate(PROMPT, **ASKED, loras=[path]).record.request
    assert (said.num_inference_steps, said.guidance_scale, said.sampler) == (STEPS, SCALE, "euler")
    assert pipeline.reproduce(made.record, loras=[path]).image.tobytes() == made.image.tobytes()


@pytest.mark.long
def test_within_the_least_budget_it_is_the_same_picture(tiny_bundle, files):
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as opened:
        loras = [f"{files['kohya']}=1@0-0.6"]
        plan, plain = (opened.plan(PROMPT, **each, build=False) for each in ({**ASKED, "loras": loras}, ASKED))
    assert plan.peak_bytes > plain.peak_bytes  # what it is told of LoRAs counts
    demand_the_same_in_the_least_memory(tiny_bundle, files["kohya"])


def test_with_weights_in_their_files_and_a_call_for_each_prompt_it_is_the_same_picture(tiny_bundle, files):
    plan = ExecutionPlan(modes={"denoiser": MAPPED}, split_guidance=True, keep=False)
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as opened:
        whole = opened.generate(PROMPT, **ASKED, loras=[files["kohya"]])
        builds = provenance_of(opened.context(whole.record.request, plan), 0).builds
        made_with = replace(whole.record.made_with, modes={"denoiser": "mapped"}, split_guidance=True, builds=builds)
        made = opened.reproduce(replace(whole.record, made_with=made_with), loras=[files["kohya"]])
    assert made.record.made_with.modes["denoiser"] == "mapped"
    assert made.record.made_with.builds["denoiser"] != whole.record.made_with.builds["denoiser"]
    assert psnr_db(made.pixels * 255, whole.pixels * 255) > 80


def test_thirty_at_once(pipeline, files):
    """Ranks add up; beyond a bound they are refused."""
    thirty = pipeline.generate(PROMPT, **ASKED, loras=[(files["attention"], 0.02)] * 30)
    one = pipeline.generate(PROMPT, **ASKED, loras=[(files["attention"], 0.6)])
    assert psnr_db(thirty.pixels * 255, one.pixels * 255) > 80


@pytest.fixture(scope="module")
def misfits(tiny_checkpoint, xl_checkpoint, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("misfits")
    wide = {"unet": pairs(tiny_checkpoint, "unet", ("attn2.to_k",), 4, seed=1, size=0.5)}
    name, (_, up) = next(iter(wide["unet"].items()))
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    large = {name: (np.ones((1100, 64), np.float32), np.ones((len(up), 1100), np.float32))}
    return {
        "XL's": (save_diffusers(folder / "sdxl.safetensors", _widened(wide, 2048)), "LoRA of Stable Diffusion XL"),
        "2.x's": (save_kohya(folder / "sd2.safetensors", _widened(wide, 1024)), "LoRA of Stable Diffusion 2.x"),
        "XL's words": (files["xl-kohya"], "is a LoRA of Stable Diffusion XL"),
        "FLUX's": (_renamed(folder / "flux.safetensors", "lora_unet_double_blocks_0_img_attn_proj"), "LoRA of FLUX"),
        "unknown layers": (_renamed(folder / "odd.safetensors", "lora_unet_left_blocks_0_to_q"), "left_blocks_0_to_q"),
        "unknown words": (_renamed(folder / "te.safetensors", "lora_te_text_model_encoder_layers_7_to_q"), "7_to_q"),
        "another shape": (
            save_diffusers(folder / "shape.safetensors", {"unet": {layer: (np.ones((2, 9)), np.ones((32, 2)))}}),
            "is for another shape than",
        ),
        "rank 1,100": (save_diffusers(folder / "rank.safetensors", {"unet": large}), "rank of 1,100"),
    }


def _widened(parts, width):
    return {
        part: {name: (np.ones((4, width), np.float32), up) for name, (_, up) in layers.items()}
        for part, layers in parts.items()
    }


def _renamed(path: Path, layer: str) -> Path:
    from safetensors.numpy import save_file

    ones = np.ones((2, 2), np.float32)
    save_file({f"{layer}.lora_down.weight": ones, f"{layer}.lora_up.weight": ones}, path)
    return path


@pytest.mark.parametrize(
    "case",
    ["XL's", "2.x's", "XL's words", "FLUX's", "unknown layers", "unknown words", "another shape", "rank 1,100"],
)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(pipeline, misfits, files, case):
    path, words = misfits[case]
    with pytest.raises(LoraError) as refusal:
        pipeline.generate(PROMPT, **ASKED, loras=[files["attention"], path])
    assert words in refusal.value.message
    assert str(path) in refusal.value.message
    assert refusal.value.fix
    if case == "rank 1,100":
        assert "tintype merge" in refusal.value.fix


def test_the_command_draws_with_them_and_again_from_the_record(tiny_bundle, files, tmp_path, capfd):
    asked = ["--model", str(tiny_bundle), "--size", "48x32", "--num-inference-steps", "2", "--seed", "7"]
    first, named, again = (tmp_path / f"{number}.png" for number in range(3))
    folder, file = files["attention"].parent, files["attention"]
    loras = ["--lora", f"{file}=0.5", "--lora", str(files["kohya"])]
    assert run(["generate", PROMPT, *asked, *loras, "-o", str(first)]) == 0
    words = f"{PROMPT} <lora:attention:0.5> <lora:kohya>"
    assert run(["generate", words, *asked, "--lora-dir", str(folder), "-o", str(named)]) == 0
    pixels = [np.asarray(Image.open(path)) for path in (first, named)]
    np.testing.assert_array_equal(*pixels)
    capfd.readouterr()
    made_again = ["generate", "--model", str(tiny_bundle), "--from-record", str(first), "-o", str(again)]
    assert run(made_again) == 1
    assert "the LoRA attention" in capfd.readouterr().err
    assert run([*made_again, "--lora", str(file), "--lora", str(files["kohya"])]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert run(["generate", PROMPT, *asked, "--lora", f"{file}=strong", "-o", str(again)]) == 2
