"""Pictures from pictures through the command: `tintype edit`, the same through `generate`, and made again."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from pictures import middle, no_memory_to_decode, photo
from PIL import Image

from tintype import Request, read_record
from tintype.cli.edit import edit as edit_command
from tintype.cli.generate import generate as generate_command
from tintype.sampling import noise_source


@pytest.fixture
def edit(command, tiny_bundle: Path, tmp_path: Path):
    """`tintype edit` on the tiny bundle with two steps, into tmp_path/x.png."""

    def call(*arguments: object):
        usual = ["--model", tiny_bundle, "-o", tmp_path / "x.png", "--seed", 1, "--num-inference-steps", 2]
        return command("edit", *usual, *arguments)

    return call


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with image.png, its mask.png, another.png, small.png and noise.npy."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    photo().save(folder / "image.png")
    middle().save(folder / "mask.png")
    photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "another.png")
    middle(32, 32).save(folder / "small.png")
    np.save(folder / "noise.npy", noise_source("philox", [7]).draw((1, 4, 16, 16)))
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_edit_is_generate_with_an_image(edit, generate, inputs: Path, tmp_path: Path) -> None:
    outcome = edit(inputs / "image.png", "a red house", "--strength", 0.5, "--fit", "pad")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr == ""
    assert outcome.stdout.startswith(f"{tmp_path / 'x.png'}  64x64, seed 1")
    edited = (tmp_path / "x.png").read_bytes()
    request = read_record(tmp_path / "x.png").request
    assert (request.prompt, request.image.strength, request.image.fit) == ("a red house", 0.5, "pad")
    again = ["--image", inputs / "image.png", "--strength", 0.5, "--fit", "pad", "--num-inference-steps", 2]
    assert generate("a red house", *again).code == 0
    assert (tmp_path / "x.png").read_bytes() == edited


def test_edit_takes_what_generate_takes_and_a_picture() -> None:
    def names(command: click.Command) -> set[str]:
        return {param.name for param in command.params if isinstance(param, click.Option)}

    missing = names(generate_command) - names(edit_command)
    assert missing == {"image", "latents", "from_record", "from_latents", "force", "variation_of", "like_picture"}
    assert names(edit_command) <= names(generate_command)
    assert [param.name for param in edit_command.params if isinstance(param, click.Argument)] == ["picture", "prompt"]


def _option(field: dataclasses.Field[Any]) -> str:
    return f"--{field.metadata.get('each') or field.name.replace('_', '-')}"


def test_every_field_of_a_request_has_its_option() -> None:
    options = {param.name: param.opts for param in generate_command.params if isinstance(param, click.Option)}
    for field in dataclasses.fields(Request):
        if field.name not in ("prompt", "width", "height"):  # an argument, and --size
            assert options[field.name] == [_option(field)]
    assert options["size"] == ["--size"]


def test_help_tells_every_option(command) -> None:
    for name, left_out in (("generate", ()), ("edit", ("image", "latents"))):
        told = command(name, "--help").stdout
        for field in dataclasses.fields(Request):
            if field.name in ("prompt", "width", "height"):
                continue
            assert (f"{_option(field)} " in told) == (field.name not in left_out)


def test_an_exact_outside_keeps_the_bytes_of_the_file(edit, inputs: Path, tmp_path: Path) -> None:
    mask = ["--mask", inputs / "mask.png", "--keep-outside", "exact", "--mask-blur", 2, "--mask-grow", 2]
    outcome = edit(inputs / "image.png", "a red house", *mask)
    assert outcome.code == 0, outcome.stderr
    outside = np.ones((64, 64), bool)
    outside[4:60, 4:60] = False
    np.testing.assert_array_equal(pixels(tmp_path / "x.png")[outside], np.asarray(photo())[outside])
    assert (pixels(tmp_path / "x.png") != np.asarray(photo()))[16:48, 16:48].any()
    assert (inputs / "image.png").read_bytes() != (tmp_path / "x.png").read_bytes()


def test_outpainting_by_the_command(edit, inputs: Path, tmp_path: Path) -> None:
    photo(32, 64).save(inputs / "narrow.png")
    outcome = edit(inputs / "narrow.png", "a red house", "--outpaint", "0,0,32,0", "--keep-outside", "exact")
    assert outcome.code == 0, outcome.stderr
    np.testing.assert_array_equal(pixels(tmp_path / "x.png")[:, :24], np.asarray(photo(32, 64))[:, :24])


def test_given_noise_by_the_command(generate, inputs: Path, tmp_path: Path) -> None:
    assert generate("a house", "--seed", 7).code == 0
    expected = pixels(tmp_path / "x.png")
    assert generate("a house", "--latents", inputs / "noise.npy").code == 0
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), expected)


BEGINNINGS = {
    "image": ["--image", "image.png"],
    "mask": ["--image", "image.png", "--mask", "mask.png"],
    "latents": ["--latents", "noise.npy"],
}


def files(words: list[str], folder: Path) -> list[object]:
    return [folder / word if word.endswith((".png", ".npy")) else word for word in words]


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_record_makes_the_same_bytes_again_from_the_same_files(
    name: str, generate, command, inputs: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    given = files(BEGINNINGS[name], inputs)
    more = ["--keep-outside", "exact"] if name == "mask" else []
    assert generate("a house", *given, "--num-inference-steps", 2, *more).code == 0
    made = tmp_path / "x.png"
    again = ["generate", "--from-record", made, "--model", tiny_bundle, "-o", tmp_path / "y.png"]
    outcome = command(*again, *given)
    assert outcome.code == 0, outcome.stderr
    assert (tmp_path / "y.png").read_bytes() == made.read_bytes()
    (tmp_path / "y.png").unlink()
    command(*again).assert_one_clear_error(1, "began with", f"{given[0]} FILE")
    if name != "latents":
        another = [inputs / "another.png" if word == inputs / "image.png" else word for word in given]
        command(*again, *another).assert_one_clear_error(1, "another picture", "unchanged")
    command(*again, *given, "--strength", 0.5).assert_one_clear_error(2, "--from-record and --strength contradict")
    assert not (tmp_path / "y.png").exists()


def test_an_input_that_a_record_does_not_have_is_refused(
    generate, command, inputs: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert generate("a house").code == 0
    again = ["generate", "--from-record", tmp_path / "x.png", "--model", tiny_bundle, "-o", tmp_path / "y.png"]
    command(*again, "--image", inputs / "image.png").assert_one_clear_error(1, "did not begin with a picture")


@pytest.mark.parametrize(
    ("outside", "named"), [("exact", "--image"), ("exact", "--variation-of"), ("model", "--image")]
)
def test_latents_that_waited_name_what_they_need_and_become_the_same_file(
    outside: str, named: str, generate, command, inputs: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch
) -> None:
    given = [*files(BEGINNINGS["mask"], inputs), "--keep-outside", outside]
    given = [named if each == "--image" else each for each in given]
    assert generate("a house", *given).code == 0
    expected = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").unlink()
    with no_memory_to_decode(monkeypatch):
        outcome = generate("a house", *given)
    words = shlex.split(outcome.stderr[outcome.stderr.index("tintype generate") :])[1:]
    assert ("--image" in words, "--mask" in words) == ((outside == "exact"),) * 2
    resumed = command(*words, "--model", tiny_bundle)
    assert resumed.code == 0, resumed.stderr
    assert (tmp_path / "x.png").read_bytes() == expected
    kept = ["generate", "--from-latents", tmp_path / "x.latents.safetensors", "--model", tiny_bundle]
    another = ["--image", inputs / "another.png", "--mask", inputs / "mask.png"]
    command(*kept, "-o", tmp_path / "z.png", *another).assert_one_clear_error(1, "another picture")
    if outside == "exact":
        command(*kept, "-o", tmp_path / "z.png").assert_one_clear_error(1, "began with a picture", "--image FILE")
    assert not (tmp_path / "z.png").exists()


REFUSED = {
    "no words": (["image.png"], ["WORDS"]),
    "no picture": ([], ["PICTURE"]),
    "missing": (["gone.png", "a house"], ["gone.png"]),
    "no picture in it": (["noise.npy", "a house"], ["noise.npy"]),
    "strength 0": (["image.png", "a house", "--strength", "0"], ["leaves no step", "give a strength of"]),
    "strength past 1": (["image.png", "a house", "--strength", "1.5"], ["strength 1.5", "0 to 1"]),
    "unknown fit": (["image.png", "a house", "--fit", "crup"], ["fit", "did you mean crop"]),
    "another size": (["image.png", "a house", "--mask", "small.png"], ["32x32", "64x64"]),
    "no margins": (["image.png", "a house", "--outpaint", "8"], ["left,top,right,bottom"]),
    "grow alone": (["image.png", "a house", "--mask-grow", "8"], ["mask_grow", "--mask FILE"]),
    "edge nan": (["image.png", "a house", "--mask", "mask.png", "--mask-blur", "nan"], ["mask_blur"]),
    "latents": (["image.png", "a house", "--latents", "noise.npy"], ["--latents"]),
    "a record": (["image.png", "a house", "--from-record", "x.png"], ["--from-record"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_edited_is_refused_in_one_sentence(name: str, edit, inputs: Path, tmp_path: Path) -> None:
    words, told = REFUSED[name]
    edit(*files(words, inputs)).assert_one_clear_error(2, *told)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("option", [["--mask", "mask.png"], ["--strength", "0.5"], ["--background", "navy"]])
def test_what_belongs_to_a_picture_is_refused_without_one(option: list[str], generate, inputs: Path) -> None:
    generate("a house", *files(option, inputs)).assert_one_clear_error(2, option[0].strip("-"), "--image FILE")


def test_a_plan_has_the_encoder_of_a_picture(command, inputs: Path, tiny_bundle: Path) -> None:
    outcome = command("plan", tiny_bundle, "--no-build", "--image", inputs / "image.png")
    assert outcome.code == 0, outcome.stderr
    assert any(line.startswith("vae_encoder") for line in outcome.stdout.splitlines())
