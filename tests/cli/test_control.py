"""ControlNets on the command line: exported, listed, told of, drawn with, and made again from a record."""

from __future__ import annotations

import json

from controlnets import controlnet, drawing

__all__ = ["controlnet"]  # the fixture


def test_from_a_checkpoint_to_a_picture_and_again(command, controlnet, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("TINTYPE_MODELS", str(tmp_path / "models"))
    folder, _ = controlnet()
    exported = command("export", folder, "--name", "lines", "--precision", "fp16")
    assert exported.code == 0, exported.stderr
    told = command("info", "lines")
    assert "ControlNet" in told.stdout
    assert "for models of stable-diffusion" in told.stdout
    assert json.loads(command("info", "lines", "--json").stdout)["controlnet"]["controls"] == "stable-diffusion"
    listed = command("models", "--no-plan")
    assert "controlnet, fp16, for stable-diffusion" in listed.stdout
    drawing().save(tmp_path / "lines=1.png")
    made, again = tmp_path / "made.png", tmp_path / "again.png"
    common = ["--model", tiny_bundle, "--threads", 1]
    asked = ["--seed", 7, "--num-inference-steps", 2, *common]
    shown = f"lines={tmp_path / 'lines=1.png'}"
    drawn = command("generate", "a boat", *asked, "--control", f"{shown}=0.8@0-0.5", "-o", made)
    assert drawn.code == 0, drawn.stderr
    same = command("generate", "--from-record", made, "--control", shown, *common, "-o", again)
    assert same.code == 0, same.stderr
    assert again.read_bytes() == made.read_bytes()
    missing = command("generate", "--from-record", made, *common, "-o", again)
    missing.assert_one_clear_error(1, "controlled by lines", "--control MODEL=PICTURE")
    planned = command("plan", tiny_bundle, "--control", shown, "--no-build", "--json")
    assert any("controlnet.lines@" in stage["role"] for stage in json.loads(planned.stdout)["plan"]["stages"])
    assert command("models", "remove", "lines", "--yes").code == 0
    gone = command("generate", "a boat", *asked, "--control", shown, "-o", made)
    gone.assert_one_clear_error(1, "there is no bundle at 'lines'")


def test_what_is_no_control_is_refused(command, controlnet, tiny_bundle, tmp_path):
    bundle = controlnet()[1]
    common = ["generate", "a boat", "--model", tiny_bundle, "-o", tmp_path / "x.png"]
    command(*common, "--control", "canny").assert_one_clear_error(2, "'canny' is no control", "MODEL=PICTURE")
    wrong = command(*common, "--control", f"{bundle}=none.png@0.9-0.1")
    wrong.assert_one_clear_error(2, "from 0.9 to 0.1")
    command(*common, "--control", f"{bundle}=none.png").assert_one_clear_error(2, "none.png")
    command("generate", "a boat", "--model", bundle).assert_one_clear_error(1, "is a ControlNet", "--control")
