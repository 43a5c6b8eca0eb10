"""DoRAs while a picture is drawn: as merged, over every precision, several at once beside LoRAs, and again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from loras import (
    ASKED,
    ATTENTION,
    CONVOLUTIONS,
    TRANSFORMER,
    WORDS,
    demand_the_same_in_the_least_memory,
    files,
    pairs,
    save_kohya,
    weights_of,
)
from low_precision import PRECISIONS, bundle_of, fp16_bundle, int8_export
from pictures import PROMPT, psnr_db
from safetensors.numpy import load_file, save_file

import tintype
from tintype.bundle import open_bundle
from tintype.bundle.merging import merge
from tintype.engine import lengths_with
from tintype.engine.build import found
from tintype.engine.build.child import run_child
from tintype.errors import CancelledError, LoraError
from tintype.uses import BY_OUTPUT, GraphRef

__all__ = ["files", "fp16_bundle", "int8_export"]  # the fixtures


def with_magnitudes(path: Path, lora: Path, checkpoint: Path, *, seed: int, by_input: bool = False) -> Path:
    """A kohya file's DoRA: each row, or column, of the weight 0.5 to 1.5 times as long as it was."""
    random, tensors = np.random.default_rng(seed), load_file(lora)
    for part, start in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for layer, weight in weights_of(checkpoint, part).items():
            name = f"{start}{layer.replace('.', '_')}"
            if f"{name}.lora_down.weight" not in tensors:
                continue
            axes = tuple(axis for axis in range(weight.ndim) if axis != int(by_input))
            lengths = np.sqrt(np.square(weight).sum(axis=axes, keepdims=True))
            tensors[f"{name}.dora_scale"] = (lengths * random.uniform(0.5, 1.5, lengths.shape)).astype(np.float32)
    assert any(name.endswith("dora_scale") for name in tensors)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def doras(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """By what they change; "inputs" has the lengths of columns."""
    folder, tiny = tmp_path_factory.mktemp("doras"), tiny_checkpoint

    def unet(endings, seed):
        return {"unet": pairs(tiny, "unet", endings, 4, seed=seed, size=0.5)}

    words = {"text_encoder": pairs(tiny, "text_encoder", WORDS, 4, seed=2, size=0.5)}
    everything = {**unet((*TRANSFORMER, *CONVOLUTIONS), 1), **words}
    made = {}
    for name, parts in (("all", everything), ("attention", unet(ATTENTION, 3)), ("again", unet(ATTENTION, 4))):
        lora = save_kohya(folder / f"{name}-lora.safetensors", parts, alpha=2.0)
        made[name] = with_magnitudes(folder / f"{name}.safetensors", lora, tiny, seed=len(made))
    lora = folder / "all-lora.safetensors"
    made["inputs"] = with_magnitudes(folder / "inputs.safetensors", lora, tiny, seed=5, by_input=True)
    made["LyCORIS"] = lycoris(folder / "LyCORIS.safetensors", tiny)
    return made


def lycoris(path: Path, checkpoint: Path) -> Path:
    """A LoHa of one layer and a LoKr of another, whose rows have lengths."""
    random, tensors = np.random.default_rng(7), {}
    start, weights = "down_blocks.0.attentions.0.transformer_blocks.0", weights_of(checkpoint, "unet")
    loha, lokr = f"{start}.attn1.to_q", f"{start}.ff.net.2"
    (outputs, inputs), (high, wide) = weights[loha].shape, weights[lokr].shape
    shapes = {
        loha: {f"hada_w{n}_{part}": size for n in "12" for part, size in (("a", (outputs, 2)), ("b", (2, inputs)))},
        lokr: {"lokr_w1": (4, 4), "lokr_w2_a": (high // 4, 2), "lokr_w2_b": (2, wide // 4)},
    }
    for layer, parts in shapes.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{name}.{part}": random.standard_normal(shape) * 0.5 for part, shape in parts.items()}
        lengths = np.linalg.norm(weights[layer], axis=1, keepdims=True)
        tensors[f"{name}.dora_scale"] = lengths * random.uniform(0.5, 1.5, lengths.shape)
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, path)
    return path


def drawn(bundle: Path | str, **more: Any) -> tintype.Result:
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        return pipeline.generate(PROMPT, **{**ASKED, **more})


@pytest.mark.parametrize(
    ("name", "weight"),
    [("all", 1.0), ("all", 0.6), ("all", -0.5), ("inputs", 1.0), ("inputs", -0.5), ("LyCORIS", 1.0)],
)
def test_at_run_time_and_merged_it_is_the_same_picture(pipeline, tiny_bundle, doras, tmp_path, name, weight):
    """Linear layers, convolutions and a text encoder; at every weight."""
    merge(open_bundle(tiny_bundle), [(doras[name], weight)], tmp_path / "out")
    merged, there = drawn(tmp_path / "out"), pipeline.generate(PROMPT, **ASKED, loras=[(doras[name], weight)])
    plain = pipeline.generate(PROMPT, **ASKED)
    near, far = psnr_db(merged.pixels * 255, there.pixels * 255), psnr_db(plain.pixels * 255, there.pixels * 255)
    print(f"{name} {weight}: {near:.1f} dB, without it {far:.1f} dB")
    assert near >= 60
    assert far < 40


def test_a_weight_of_nothing_is_the_picture_without_byte_for_byte(pipeline, doras, files):
    plain, lora = pipeline.generate(PROMPT, **ASKED), [(files["attention"], 0.7)]
    with_lora = pipeline.generate(PROMPT, **ASKED, loras=lora)
    for expected, others in ((plain, []), (with_lora, lora)):
        made = pipeline.generate(PROMPT, **ASKED, loras=[(doras["all"], 0.0), *others, f"{doras['again']}=1,unet=0"])
        assert made.image.tobytes() == expected.image.tobytes()
        assert made.record.made_with == expected.record.made_with


def test_files_and_weights_change_without_another_build(pipeline, doras, files):
    """And plain LoRAs have the build that they had without DoRAs."""
    said = [[(doras["attention"], 0.7)], [(doras["attention"], -1.5)], [(doras["again"], 1.0)]]
    made = [pipeline.generate(PROMPT, **ASKED, loras=loras) for loras in said]
    assert len({picture.record.made_with.builds["denoiser"] for picture in made}) == 1
    assert len({picture.image.tobytes() for picture in made}) == 3
    plain = pipeline.generate(PROMPT, **ASKED, loras=[(files["attention"], 0.7)])
    assert plain.record.made_with.builds["denoiser"] != made[0].record.made_with.builds["denoiser"]


@pytest.mark.parametrize("names", [("all", "attention"), ("attention", "all", "again")], ids=["two", "three"])
def test_several_and_a_lora_are_what_they_are_merged_at_once(pipeline, tiny_bundle, doras, files, tmp_path, names):
    """The differences that they make add up, in any order."""
    weights = dict(zip(names, (0.7, 0.5, -0.3), strict=False))
    loras = [(files["kohya"], 0.6), *((doras[name], weight) for name, weight in weights.items())]
    merge(open_bundle(tiny_bundle), loras, tmp_path / "out")
    merged, there = drawn(tmp_path / "out"), pipeline.generate(PROMPT, **ASKED, loras=loras)
    turned = pipeline.generate(PROMPT, **ASKED, loras=loras[::-1])
    less = pipeline.generate(PROMPT, **ASKED, loras=loras[:-1])
    assert psnr_db(merged.pixels * 255, there.pixels * 255) >= 60
    assert psnr_db(turned.pixels * 255, there.pixels * 255) >= 60
    assert psnr_db(less.pixels * 255, there.pixels * 255) < 40


def test_one_that_is_given_twice_is_one_of_twice_the_weight(pipeline, doras):
    twice = pipeline.generate(PROMPT, **ASKED, loras=[(doras["attention"], 0.3), (doras["attention"], 0.5)])
    once = pipeline.generate(PROMPT, **ASKED, loras=[(doras["attention"], 0.8)])
    assert psnr_db(twice.pixels * 255, once.pixels * 255) > 90


@pytest.mark.parametrize("name", ["all", "inputs"])
def test_over_an_overlay_it_measures_the_merged_weights(pipeline, tiny_bundle, doras, files, tmp_path, name):
    """A LoRA merged, then a DoRA over it: not as both at once, whose lengths are those of the bundle's own weights."""
    lora, over = [(files["kohya"], 0.8)], [(doras[name], 1.0)]
    merge(open_bundle(tiny_bundle), lora, tmp_path / "out")
    made = drawn(tmp_path / "out", loras=over)
    both = pipeline.generate(PROMPT, **ASKED, loras=[*lora, *over])
    assert psnr_db(made.pixels * 255, both.pixels * 255) < 60
    expected = _measured(tmp_path / "out", doras[name])
    again = _measured(tiny_bundle, doras[name])
    assert any(np.abs(expected[layer] - again[layer]).max() > 1e-3 for layer in expected)


def _measured(bundle: Path, file: Path) -> dict[str, np.ndarray]:
    """What a denoiser's layers are scaled by."""
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        context = pipeline.context(pipeline.generate(PROMPT, **ASKED, loras=[file]).record.request)
        told = context.loras.inputs("denoiser", 0.5)
    return {name: array for name, array in told.items() if name.endswith(".scale")}


@pytest.mark.parametrize(("precision", "exactness"), PRECISIONS)
def test_over_lower_precisions_it_is_the_same_change_in_one_build(
    request, pipeline, doras, files, precision, exactness
):
    asked, said = {**ASKED, "exactness": exactness}, [(doras["all"], 0.8), (files["attention"], -0.4)]
    expected = pipeline.generate(PROMPT, **ASKED, loras=said)
    with tintype.load(bundle_of(request, precision), provider="cpu", threads=1) as low:
        made, plain = low.generate(PROMPT, **asked, loras=said), low.generate(PROMPT, **asked)
        other = low.generate(PROMPT, **asked, loras=[(doras["all"], 0.3), (files["again"], 0.7)])
        again = low.reproduce(made.record, loras=[file for file, _ in said])
    near, far = psnr_db(made.image, expected.image), psnr_db(plain.image, expected.image)
    print(f"{precision} {exactness}: {near:.1f} dB; without {far:.1f}")
    assert near >= {"fp16": 40.0, "int8": 25.0}[precision]
    assert far < near - 6.0
    assert made.record.made_with.builds == other.record.made_with.builds
    assert made.image.tobytes() == again.image.tobytes() != other.image.tobytes()


@pytest.mark.slow
def test_a_dora_does_to_four_bits_what_it_does_to_floats(four_bit_bundle, tiny_bundle, doras):
    """As near to the floats' picture as the one without it is to theirs; balanced, too, whose convolutions round."""
    said = [(doras["all"], 0.8)]
    floats, plain_floats = drawn(tiny_bundle, loras=said), drawn(tiny_bundle)
    for exactness in ("exact", "balanced"):
        made, plain = (drawn(four_bit_bundle, exactness=exactness, loras=loras) for loras in (said, []))
        near = psnr_db(made.pixels * 255, floats.pixels * 255)
        without = psnr_db(plain.pixels * 255, floats.pixels * 255)
        own = psnr_db(plain.pixels * 255, plain_floats.pixels * 255)
        print(f"{exactness}: {near:.1f} dB, {without:.1f} without; {own:.1f} of the pictures without")
        assert near > own - 3
        assert near > without + (3 if exactness == "exact" else 1)


WAYS: dict[str, dict[str, Any]] = {
    "batches": {"count": 3, "batch_size": 2},
    "deep": {"cache_interval": 2},
    "gated": {"gate_start": 0.5},
    "merged": {"token_merging": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_record_is_made_again_byte_for_byte(pipeline, doras, files, tmp_path, way):
    """And differs from the picture without by far; with a schedule, beside a LoRA."""
    asked = {"prompt": PROMPT, **ASKED, **WAYS[way]}
    loras = [f"{doras['all']}=0.8@0-0.7,down=0.5", files["attention"]]
    plain, made = pipeline.generate(**asked), pipeline.generate(**asked, loras=loras)
    assert psnr_db(made.image, plain.image) < 35
    made.save(tmp_path / "x.png")
    for index, image in enumerate(made.images):
        name = "x.png" if len(made.images) == 1 else f"x-{index + 1}.png"
        record = tintype.read_record(tmp_path / name)
        assert next((lora.name, lora.weight, lora.stop) for lora in record.request.loras) == ("all", 0.8, 0.7)
        again = pipeline.reproduce(record, loras=[files["attention"], doras["all"]])
        assert again.image.tobytes() == image.tobytes()


def test_a_schedule_counts_between_its_shares_of_the_steps(pipeline, doras):
    def steps(*loras: Any) -> list[np.ndarray]:
        run = pipeline.steps(PROMPT, **ASKED, loras=loras)
        return [step.latents for step in run if isinstance(step, tintype.Step)]

    file = doras["attention"]
    whole, early, late, plain = steps(file), steps(f"{file}=1@0-0.5"), steps(f"{file}=1@0.5-1"), steps()
    half = len(whole) // 2
    for index in range(half):
        np.testing.assert_array_equal(early[index], whole[index])
        np.testing.assert_allclose(late[index], plain[index], atol=1e-3)
    assert np.abs(early[half] - whole[half]).max() > 1e-2
    assert np.abs(late[half] - plain[half]).max() > 1e-2


@pytest.mark.long
def test_within_the_least_budget_it_is_the_same_picture(tiny_bundle, doras):
    demand_the_same_in_the_least_memory(tiny_bundle, doras["all"])


def _changed(path: Path, other: Path, change: Any) -> Path:
    """Another file whose first layer's magnitudes are changed."""
    tensors = load_file(other)
    name = next(name for name in sorted(tensors) if name.endswith("dora_scale"))
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, path)
    return path


BROKEN = {
    "too few": (lambda old: old[:-1], "numbers, not"),
    "too many": (lambda old: np.concatenate([old, old]), "numbers, not"),
    "NaN": (lambda old: old * np.nan, "holds NaN or infinity: the LoRA is broken"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_magnitudes_are_refused_by_name(pipeline, doras, tmp_path, case):
    change, words = BROKEN[case]
    path = _changed(tmp_path / "broken.safetensors", doras["attention"], change)
    with pytest.raises(LoraError) as refusal:
        pipeline.generate(PROMPT, **ASKED, loras=[path])
    assert words in refusal.value.message
    assert str(path) in refusal.value.message
    assert "dora_scale" in refusal.value.message
    assert refusal.value.fix


def test_another_familys_is_refused_and_rows_beside_columns_too(pipeline, doras, xl_checkpoint, tmp_path):
    wide = {"unet": pairs(xl_checkpoint, "unet", ("attn2.to_k",), 4, seed=1, size=0.5)}
    wide["unet"] = {name: (np.ones((4, 2048), np.float32), up) for name, (_, up) in wide["unet"].items()}
    tensors = load_file(save_kohya(tmp_path / "xl-lora.safetensors", wide))
    ups = {name: len(array) for name, array in tensors.items() if name.endswith("lora_up.weight")}
    more = {name.replace("lora_up.weight", "dora_scale"): np.ones((rows, 1), np.float32) for name, rows in ups.items()}
    save_file({**tensors, **more}, tmp_path / "xl.safetensors")
    with pytest.raises(LoraError, match="is a LoRA of Stable Diffusion XL"):
        pipeline.generate(PROMPT, **ASKED, loras=[tmp_path / "xl.safetensors"])
    with pytest.raises(LoraError, match=r"has magnitudes of outputs and .* of inputs") as refusal:
        pipeline.generate(PROMPT, **ASKED, loras=[doras["attention"], doras["inputs"]])
    assert "tintype merge" in refusal.value.fix


def test_rows_are_measured_once(tiny_bundle, tiny_checkpoint):
    """What is kept in the cache is of a bundle's graph and the file alone."""
    bundle, ref, asked = open_bundle(tiny_bundle), GraphRef("denoiser"), list[str]()
    name, (outputs, inputs) = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", (32, 32)

    def once(facts: str, size: float) -> np.ndarray:
        def pairs() -> Any:
            asked.append(facts)
            up = np.full((outputs, 1), size, np.float32)
            yield name, BY_OUTPUT, up, np.ones((1, inputs), np.float32)

        (lengths,) = lengths_with(bundle, ref, [facts], pairs)
        return np.asarray(lengths)

    first, other, again = once("one", 0.0), once("other", 1.0), once("one", 0.0)
    assert asked == ["one", "other"]
    np.testing.assert_array_equal(first, again)
    value = weights_of(tiny_checkpoint, "unet")[name]
    np.testing.assert_allclose(first, np.linalg.norm(value, axis=1), rtol=1e-5)
    np.testing.assert_allclose(other, np.linalg.norm(value + 1, axis=1), rtol=1e-5)


def test_a_run_that_is_cancelled_while_rows_are_measured_ends(pipeline, doras, tmp_path, monkeypatch):
    """Its child would go on for days; the same run after it measures them."""
    path, begun = _changed(tmp_path / "new.safetensors", doras["all"], lambda old: old * 2), threading.Event()
    asked = {**ASKED, "loras": [path]}

    def endless(module: str, job: str, *rest: Any) -> dict[str, Any]:
        if not module.endswith("lengths"):
            return run_child(module, job, *rest)
        begun.set()
        return run_child("endless", job)

    (tmp_path / "endless.py").write_text("import time\ntime.sleep(1e6)\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        patch.setattr(found, "run_child", endless)
        run = pipeline.steps(PROMPT, **asked)
        ending = threading.Thread(target=lambda: begun.wait() and run.cancel())
        ending.start()
        with pytest.raises(CancelledError):
            list(run)
        ending.join()
        assert not [child for child in psutil.Process().children(recursive=True) if "endless" in child.cmdline()]
    made, plain = pipeline.generate(PROMPT, **asked), pipeline.generate(PROMPT, **ASKED)
    assert psnr_db(made.image, plain.image) < 35
