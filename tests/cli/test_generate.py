"""The main job through the command: pictures, their names, their records, and the same bytes again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tintype import read_record
from tintype.events import new_path
from tintype.image.png import read_texts, write_png


def test_a_picture_is_written_and_told(generate, tmp_path: Path) -> None:
    outcome = generate("a red house")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr == ""
    assert outcome.stdout.startswith(f"{tmp_path / 'x.png'}  ")
    assert "seed 1, 1 steps of" in outcome.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "RGB"
        assert "a red house" in image.text["parameters"]


def test_what_was_typed_is_what_the_record_says(generate, tmp_path: Path) -> None:
    typed = ["--negative-prompt", "rain", "--num-inference-steps", 3, "--guidance-scale", 0, "--guidance-rescale", 0.5]
    typed += ["--seed", 0, "--sampler", "euler", "--sigmas", "karras", "--noise", "numpy"]
    outcome = generate("a red house", *typed)
    assert outcome.code == 0, outcome.stderr
    request = read_record(tmp_path / "x.png").request
    assert (request.prompt, request.negative_prompt) == ("a red house", "rain")
    assert (request.num_inference_steps, request.guidance_scale, request.guidance_rescale) == (3, 0.0, 0.5)
    assert (request.seed, request.sampler, request.sigmas, request.noise) == (0, "euler", "karras", "numpy")


def test_size_is_width_by_height(generate, tmp_path: Path, tiny_bundle: Path) -> None:
    size = json.loads((tiny_bundle / "tintype.json").read_text())["size"]
    width, height = size["minimum"], size["minimum"] + size["multiple"]
    outcome = generate("a red house", "--size", f"{width}x{height}")
    assert outcome.code == 0, outcome.stderr
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (width, height)


def test_json_is_one_object_and_nothing_else(generate, tmp_path: Path) -> None:
    outcome = generate("a red house", "--json", "--count", 2)
    assert outcome.stderr == ""
    answer = json.loads(outcome.stdout)
    assert [picture["file"] for picture in answer["pictures"]] == [str(tmp_path / f"x-{n}.png") for n in (1, 2)]
    assert answer["pictures"][0]["record"]["request"]["prompt"] == "a red house"
    assert answer["timings"]["denoise_seconds"] > 0
    assert answer["timings"]["peak_rss_bytes"] > 0


def test_count_writes_numbered_pictures_with_seeds_counting_up(generate, tmp_path: Path) -> None:
    assert generate("a red house", "--count", 3).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-1.png", "x-2.png", "x-3.png"]
    assert [read_record(tmp_path / f"x-{n}.png").seed for n in (1, 2, 3)] == [1, 2, 3]


def test_without_a_seed_each_picture_is_another(command, tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        arguments = ["a house", "--model", tiny_bundle, "--num-inference-steps", 1, "-o", tmp_path / name]
        assert command("generate", *arguments).code == 0
    assert read_record(tmp_path / "a.png").seed != read_record(tmp_path / "b.png").seed


@pytest.mark.parametrize("arguments", [[], ["--count", "3", "--batch-size", "2"], ["--sampler", "euler_a"]])
def test_a_record_makes_the_same_bytes_again(
    arguments: list[str], generate, spawn, tiny_bundle, tmp_path: Path
) -> None:
    assert generate("a red house", "--num-inference-steps", 2, *arguments).code == 0
    for made in sorted(tmp_path.glob("x*.png")):
        again = tmp_path / f"again-{made.name}"
        outcome = spawn("generate", "--from-record", made, "--model", tiny_bundle, "-o", again)
        assert outcome.code == 0, outcome.stderr
        assert again.read_bytes() == made.read_bytes()


def test_a_record_may_be_made_again_in_its_own_place(generate, command, tiny_bundle: Path, tmp_path: Path) -> None:
    assert generate("a red house").code == 0
    picture = tmp_path / "x.png"
    before = picture.read_bytes()
    assert command("generate", "--from-record", picture, "--model", tiny_bundle, "-o", picture).code == 0
    assert picture.read_bytes() == before


@pytest.mark.parametrize("option", [["a house"], ["--seed", "1"], ["--size", "64x64"], ["--count", "1"]])
def test_nothing_that_a_record_says_may_be_said_again(option: list[str], generate, command, tmp_path: Path) -> None:
    assert generate("a red house").code == 0
    outcome = command("generate", "--from-record", tmp_path / "x.png", "-o", tmp_path / "y.png", *option)
    outcome.assert_one_clear_error(2, "--from-record", "leave")
    assert not (tmp_path / "y.png").exists()


def test_a_record_that_cannot_be_honoured_names_why(generate, command, tiny_bundle: Path, tmp_path: Path) -> None:
    assert generate("a red house", "--threads", 1).code == 0
    again = ["generate", "--from-record", tmp_path / "x.png", "--model", tiny_bundle, "-o", tmp_path / "y.png"]
    command(*again, "--threads", 2).assert_one_clear_error(1, "threads was 1, here it is 2", "--force")
    assert not (tmp_path / "y.png").exists()
    assert command(*again, "--threads", 2, "--force").code == 0
    assert (tmp_path / "y.png").is_file()


def test_threads_of_a_record_that_never_end_are_refused(generate, command, tiny_bundle: Path, tmp_path: Path) -> None:
    assert generate("a red house").code == 0
    value = json.loads(read_texts(tmp_path / "x.png")["tintype"])
    value["made_with"]["threads"] = 3000
    with Image.open(tmp_path / "x.png") as image:
        write_png(tmp_path / "many.png", image.copy(), {"tintype": json.dumps(value)})
    outcome = command(
        "generate", "--from-record", tmp_path / "many.png", "--model", tiny_bundle, "-o", tmp_path / "y.png"
    )
    outcome.assert_one_clear_error(2, "threads 3,000", "give 1 to")


def test_a_picture_without_a_record_is_refused(command, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    for name in ("plain.png", "gone.png"):
        outcome = command("generate", "--from-record", tmp_path / name, "-o", tmp_path / "y.png")
        outcome.assert_one_clear_error(1, name)
    assert not (tmp_path / "y.png").exists()


def test_force_without_a_record_is_refused(generate) -> None:
    generate("a house", "--force").assert_one_clear_error(2, "--force")


def test_info_says_what_a_bundle_is(command, tiny_bundle: Path) -> None:
    outcome = command("info", tiny_bundle)
    assert outcome.code == 0, outcome.stderr
    for word in ("licence", "graph", "denoiser", "hash", "onnxruntime", "by default"):
        assert word in outcome.stdout
    answer = json.loads(command("info", tiny_bundle, "--json").stdout)
    assert answer["bundle"]["format_version"] == 1
    assert answer["machine"]["provider"] == "cpu"


def test_build_then_cache_then_clear(
    command, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "cache"))
    built = json.loads(command("build", tiny_bundle, "--json").stdout)["builds"]
    assert {build["role"] for build in built} >= {"text_encoder", "denoiser", "vae_decoder"}
    listed = json.loads(command("cache", "--json").stdout)["builds"]
    assert len(listed) == len(built)
    assert all(entry["whole"] for entry in listed)
    assert "denoiser" in command("cache").stdout
    freed = json.loads(command("cache", "clear", "--json").stdout)["freed_bytes"]
    assert freed >= sum(entry["bytes"] for entry in listed) > 0
    assert json.loads(command("cache", "--json").stdout)["builds"] == []


@pytest.fixture
def unnamed(command, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`tintype generate` without -o, in an empty folder; the names that are there afterwards."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> list[str]:
        outcome = command("generate", "--model", tiny_bundle, "--num-inference-steps", 1, *arguments)
        assert outcome.code == 0, outcome.stderr
        return sorted(path.name for path in tmp_path.iterdir())

    return call


def test_a_picture_without_a_name_is_named_by_its_words_and_seed_and_replaces_none(unnamed, tmp_path: Path) -> None:
    words = "a red sailboat on a calm sea at sunset"
    assert unnamed(words, "--seed", 7) == ["red-sailboat-on-a-calm-sea-7.png"]
    before = (tmp_path / "red-sailboat-on-a-calm-sea-7.png").read_bytes()
    assert unnamed(words, "--seed", 7) == ["red-sailboat-on-a-calm-sea-7-2.png", "red-sailboat-on-a-calm-sea-7.png"]
    assert (tmp_path / "red-sailboat-on-a-calm-sea-7.png").read_bytes() == before


def test_a_picture_made_again_is_beside_the_first(unnamed, command, tiny_bundle: Path, tmp_path: Path) -> None:
    (name,) = unnamed("a house", "--seed", 1)
    outcome = command("generate", "--model", tiny_bundle, "--from-record", name)
    assert outcome.code == 0, outcome.stderr
    assert (tmp_path / "house-1-2.png").read_bytes() == (tmp_path / "house-1.png").read_bytes()


def test_none_of_several_replaces_a_picture(unnamed, tmp_path: Path) -> None:
    (tmp_path / "house-1-2.png").write_bytes(b"mine")
    names = unnamed("a house", "--seed", 1, "--count", 2)
    assert names == ["house-1-2-1.png", "house-1-2-2.png", "house-1-2.png"]
    assert (tmp_path / "house-1-2.png").read_bytes() == b"mine"


def test_the_seed_that_was_drawn_is_in_the_name(unnamed, tmp_path: Path) -> None:
    (name,) = unnamed("a house")
    assert name == f"house-{read_record(tmp_path / name).request.seed}.png"


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("(a house:1.3), [night]/..\\x", "house-1-3-night-x"),
        ("", "picture"),
        ("!!!", "picture"),
        ("Ein Häuschen am Fluß", "ein-häuschen-am-fluß"),
        ("the sea", "sea"),
        ("一座紅色的房子", "一座紅色的房子"),
        ("x" * 500, "x" * 120),
    ],
)
def test_a_name_has_nothing_but_words(prompt: str, stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_path(prompt, 3) == Path(f"{stem}-3.png")
