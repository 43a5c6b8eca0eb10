"""What nobody can draw is refused in one sentence with its remedy, exit code 2, and nothing on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

REFUSED = {
    "size 0": (["--size", "0x64"], ["width 0", "ask for"]),
    "negative size": (["--size", "64x-64"], ["height -64"]),
    "odd size": (["--size", "65x64"], ["width 65", "ask for 64"]),
    "huge size": (["--size", "1000000x64"], ["width 1,000,000"]),
    "absurd size": (["--size", f"{10**17}x64"], ["width"]),
    "half a size": (["--size", "64x"], ["--size", "512x384"]),
    "one number for a size": (["--size", "64"], ["--size", "512x384"]),
    "no steps": (["--num-inference-steps", "0"], ["num_inference_steps 0"]),
    "negative steps": (["--num-inference-steps", "-1"], ["num_inference_steps -1"]),
    "too many steps": (["--num-inference-steps", "1000000"], ["num_inference_steps 1,000,000"]),
    "steps in words": (["--num-inference-steps", "many"], ["'many'"]),
    "guidance nan": (["--guidance-scale", "nan"], ["guidance_scale nan"]),
    "guidance infinite": (["--guidance-scale", "-inf"], ["guidance_scale -inf"]),
    "guidance in words": (["--guidance-scale", "strong"], ["'strong'"]),
    "rescale nan": (["--guidance-rescale", "nan"], ["guidance_rescale nan"]),
    "guidance interval backwards": (["--guidance-interval", "0.8,0.2"], ["guidance_interval '0.8,0.2'", "0.2,0.8"]),
    "interval of no guidance": (["--guidance-interval", "0,1", "--guidance-scale", "1"], ["guidance_scale of 1"]),
    "branch of nothing": (["--cache-branch", "1"], ["cache_branch 1", "cache_interval of 2"]),
    "branch too deep": (
        ["--cache-interval", "2", "--cache-branch", "50", "--num-inference-steps", "2"],
        ["cache_branch 50", "give 0 to"],
    ),
    "unknown sampler": (["--sampler", "eulr"], ["sampler 'eulr'", "did you mean euler"]),
    "sampler like nothing": (["--sampler", "zzzzzz"], ["choose one of", "dpmpp_2m"]),
    "unknown sigmas": (["--sigmas", "karas"], ["sigmas 'karas'", "did you mean karras"]),
    "unknown noise": (["--noise", "phlox"], ["noise 'phlox'", "did you mean philox"]),
    "unknown provider": (["--provider", "gpu"], ["provider", "cuda"]),
    "eta past 1": (["--eta", "1.5"], ["eta 1.5"]),
    "count 0": (["--count", "0"], ["count 0"]),
    "negative seed": (["--seed", "-1"], ["seed -1"]),
    "seed past 64 bits": (["--seed", str(2**64)], ["seed"]),
    "no threads": (["--threads", "0"], ["--threads"]),
    "unknown option": (["--smapler", "euler"], ["--smapler", "--help"]),
    "two prompts": (["and another"], ["and another"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_cannot_be_done_is_refused_with_what_would_work(name: str, generate, tmp_path: Path) -> None:
    arguments, words = REFUSED[name]
    generate("a house", *arguments).assert_one_clear_error(2, *words)
    assert list(tmp_path.iterdir()) == []


def test_no_prompt_is_refused(generate) -> None:
    generate().assert_one_clear_error(2, "PROMPT")


def test_an_unknown_command_names_the_near_ones(command) -> None:
    command("genrate").assert_one_clear_error(2, "genrate", "did you mean generate or calibrate?")


def test_a_prompt_in_place_of_a_command_is_answered_with_the_command(command) -> None:
    command("a red house").assert_one_clear_error(2, "tintype generate 'a red house'")


PROMPTS = {
    "empty": "",
    "blank": "   \n\t ",
    "emoji": "⛵🌅 a 👩‍👩‍👧 on a 🏳️‍🌈",
    "other scripts": "красный парусник, 赤い帆船, قارب أحمر, ⠗⠑⠙",
    "marks and weights": "((a [red) (boat:1.3] ::: \\( (x:nan) (y:1e999)",
    "zero bytes' neighbours": "\x01\x7f\u200b\ufeff",
    "10,000 words": "sailboat " * 10_000,
}


@pytest.mark.parametrize("name", PROMPTS)
def test_any_text_is_drawn_or_refused_in_one_sentence(name: str, generate, tmp_path: Path) -> None:
    outcome = generate(PROMPTS[name])
    if outcome.code == 0:
        assert outcome.stderr == ""
        assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    else:
        outcome.assert_one_clear_error(2, "prompt")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["emoji", "other scripts"])
def test_every_script_is_drawn(name: str, generate, tmp_path: Path) -> None:
    assert generate(PROMPTS[name]).code == 0
    assert (tmp_path / "x.png").is_file()


def test_a_prompt_that_is_no_text_is_refused(spawn, tiny_bundle: Path, tmp_path: Path) -> None:
    words = b"a \xff boat".decode(errors="surrogateescape")
    outcome = spawn("generate", words, "--model", tiny_bundle, "-o", tmp_path / "x.png")
    outcome.assert_one_clear_error(2, "prompt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000], ids=["a part", "all"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, ("plan", "NAME")),
        (1, ("build", "NAME")),
        (1, ("info", "NAME")),
        (1, ("models", "remove", "NAME")),
        (1, ("export", "NAME")),
        (1, ("export", "NAME", "x")),
        (1, ("generate", "a house", "--model", "NAME")),
        (2, ("generate", "a house", "--safety", "NAME")),
        (2, ("generate", "a house", "--policy", "NAME")),
        (2, ("generate", "a house", "--image", "NAME")),
    ],
    ids=str,
)
def test_a_name_that_is_too_long_for_a_file_is_none(command, code, words, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command(*[name if word == "NAME" else word for word in words]).assert_one_clear_error(code)


def test_verify_says_of_such_a_name_that_it_cannot_be_opened(command):
    outcome = command("verify", "x" * 300)
    assert outcome.code != 0
    assert "too long" in outcome.stdout + outcome.stderr
