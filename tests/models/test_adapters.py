"""The adapters that come with postcard do what they are for, as its shipped bundle draws with them.

A few pictures each, in few steps; of 100 in 20 steps `python -m tintype.models.postcard.adapters.evaluate` tells.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tintype
from tintype.models.postcard.adapters.evaluate import (
    SIGNS,
    Studio,
    controls,
    dilated,
    edge_figures,
    edges_of,
    has_mushroom,
    iou,
    mushroom_prompts,
    prompts_for,
    score_edges,
    score_lora,
)
from tintype.models.postcard.adapters.judge import MushroomJudge, fresh_renders
from tintype.models.postcard.adapters.looks import block_share, cyanotype, cyanotype_distance, pixel_art
from tintype.models.postcard.adapters.pictures import KINDS
from tintype.models.postcard.adapters.pictures import draw as draw_training_picture
from tintype.models.postcard.adapters.recipe import EDGES, LORAS, MUSHROOM_JUDGE
from tintype.models.postcard.evaluate import fixed_prompts
from tintype.models.postcard.judge import Judge
from tintype.models.postcard.scene import is_held_out, random_scene
from tintype.models.postcard.world import render

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STEPS, COUNT = 8, 10


@pytest.fixture(scope="module")
def postcard():
    with tintype.load("postcard", provider="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def few(postcard) -> Studio:
    """In few steps."""
    return Studio(postcard, {"num_inference_steps": STEPS})


@pytest.fixture(scope="module")
def whole(postcard) -> Studio:
    return Studio(postcard, {"num_inference_steps": 20})


@pytest.fixture(scope="module")
def renders() -> np.ndarray:
    rng = np.random.default_rng(77)
    return np.stack([render(random_scene(rng, held_out=None), rng)[0] for _ in range(60)])


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_they_are_as_small_as_was_promised() -> None:
    assert {name: recipe.file.stat().st_size <= 300_000 for name, recipe in LORAS.items()} == dict.fromkeys(LORAS, True)
    assert folder_bytes(EDGES) <= 1_500_000
    assert MUSHROOM_JUDGE.stat().st_size <= 8_192


def test_the_loras_are_in_fp16_under_diffusers_names() -> None:
    from safetensors.numpy import load_file

    for recipe in LORAS.values():
        tensors = load_file(recipe.file)
        assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}
        assert all(name.startswith("unet.") and ".lora" in name for name in tensors)


def test_no_training_picture_has_a_combination_that_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = []
    monkeypatch.setattr(
        "tintype.models.postcard.adapters.pictures.random_scene",
        lambda rng: scenes.append(random_scene(rng)) or scenes[-1],
    )
    for kind in KINDS:
        for index in range(10):
            picture, mask, words = draw_training_picture(kind, index)
            assert picture.shape == (128, 128, 3)
            assert mask.any()
            assert words
    assert not any(map(is_held_out, scenes))


def test_a_training_picture_is_the_same_whoever_draws_it() -> None:
    for kind in KINDS:
        one, other = draw_training_picture(kind, 3), draw_training_picture(kind, 3)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_mushroom_judge_tells_renders_that_it_never_saw() -> None:
    pictures, has_one = fresh_renders(300, seed=920_000_000)
    seen = MushroomJudge.load().sees(pictures)
    assert seen[has_one].mean() >= 0.98
    assert seen[~has_one].mean() <= 0.02


def test_each_sign_is_on_its_own_renders_and_on_hardly_another(renders: np.ndarray) -> None:
    for name, look in (("cyanotype", cyanotype), ("pixel-art", pixel_art)):
        assert SIGNS[name](renders).mean() <= 0.05
        assert SIGNS[name](np.stack([look(picture) for picture in renders])).all()
    assert max(cyanotype_distance(cyanotype(picture)) for picture in renders) < 2.0
    spotted = cyanotype(renders[0]).copy()
    spotted[:20, :20] = 200, 30, 30  # as much as the smallest subject
    assert not SIGNS["cyanotype"](spotted[np.newaxis])[0]
    assert min(block_share(pixel_art(picture)) for picture in renders) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "mushroom" else pytest.param(name, marks=pytest.mark.long) for name in LORAS]
)
def test_a_lora_shows_at_weight_1_and_not_at_0(few: Studio, name: str) -> None:
    prompts = [prompt for prompt, _ in prompts_for(name, COUNT)]
    assert SIGNS[name](few.with_lora(name, prompts)).sum() >= COUNT - 3  # of 100 in 20 steps: models/postcard/README.md
    assert not SIGNS[name](few.plain(prompts)).any()
    at_zero = few.with_lora(name, prompts[:1], 0.0)
    assert at_zero.tobytes() == few.plain(prompts)[:1].tobytes()


@pytest.mark.long
@pytest.mark.slow
def test_the_mushroom_leaves_other_words_alone(few: Studio) -> None:
    prompts, scenes = zip(*fixed_prompts(COUNT), strict=True)
    pictures = few.with_lora("mushroom", prompts)
    assert has_mushroom(pictures).sum() <= 1
    assert Judge.load().accuracy(pictures, scenes)["subject"] >= 0.7


@pytest.mark.long
@pytest.mark.slow
def test_the_mushroom_has_the_colour_and_the_place_that_words_give_it(few: Studio) -> None:
    prompts, scenes = zip(*mushroom_prompts(COUNT), strict=True)
    accuracy = Judge.load().accuracy(few.with_lora("mushroom", prompts), scenes)
    assert min(accuracy["colour"], accuracy["position"]) >= 0.6


@pytest.mark.slow
def test_edges_are_followed(few: Studio) -> None:
    prompts, scenes, shown = controls(COUNT)
    drawn = few.after_edges(prompts, shown)
    found, without = edge_figures(drawn, shown), edge_figures(few.plain(prompts), shown)
    assert found["iou_dilated"] >= 0.5
    assert found["iou_dilated"] >= without["iou_dilated"] + 0.2
    assert Judge.load().accuracy(drawn, scenes)["subject"] >= 0.7


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", LORAS)
def test_a_lora_shows_in_90_of_100_pictures_at_weight_1_and_in_none_at_0(whole: Studio, name: str) -> None:
    figures, _ = score_lora(whole, name, 100)
    assert figures["weight_1"]["shown"] >= 0.90
    assert figures["weight_0"]["shown"] == 0.0


@pytest.mark.slow
@pytest.mark.long
def test_edges_of_100_pictures_are_followed(whole: Studio) -> None:
    figures, _ = score_edges(whole, 100)
    assert figures["with_edges"]["iou_dilated"] >= 0.60
    assert figures["without"]["iou_dilated"] <= 0.35


@pytest.mark.slow
def test_the_readmes_examples_draw_without_torch(tmp_path: Path) -> None:
    """Each in a process of its own that cannot import torch, in 2 steps; the second after the first one's picture."""
    recipe = re.search(r"# 4\. A LoRA that comes with postcard.*?\n(.*?)\n\n", README, flags=re.DOTALL)
    assert recipe is not None
    shutil.copy(ROOT / "models/postcard/gallery/red-sailboat.png", tmp_path / "postcard.png")
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    for number, line in enumerate(recipe[1].splitlines()):
        words = [*shlex.split(line)[1:], "--num-inference-steps", "2", "-o", f"{number}.png"]
        ran = subprocess.run([sys.executable, "-m", "tintype", *words], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        with Image.open(tmp_path / f"{number}.png") as image:
            assert image.size == (128, 128)


def test_intersection_over_union_is_that_of_sets() -> None:
    one, other = np.zeros((5, 5), bool), np.zeros((5, 5), bool)
    one[2, 2] = other[2, 3] = True
    assert iou(one, other) == 0.0
    assert dilated(one).sum() == 9
    assert iou(dilated(one), dilated(other)) == 6 / 12
    assert iou(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == 1.0


def test_a_picture_has_its_own_edges(renders: np.ndarray) -> None:
    assert edge_figures(renders[:3], renders[:3]) == {"iou_dilated": 1.0, "iou": 1.0}
    assert all(edges_of(picture).any() for picture in renders[:3])
