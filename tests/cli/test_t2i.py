"""T2I-Adapters on the command line: exported, listed, told of, drawn with, and made again from a record."""

from __future__ import annotations

import json

from controlnets import drawing
from t2i_adapters import adapter, deep

__all__ = ["adapter", "deep"]  # fixtures


def test_from_a_checkpoint_to_a_picture_and_again(command, adapter, deep, tmp_path, monkeypatch):
    monkeypatch.setenv("TINTYPE_MODELS", str(tmp_path / "models"))
    folder, _ = adapter()
    exported = command("export", folder, "--name", "sketch", "--precision", "int8")
    assert exported.code == 0, exported.stderr
    told = command("info", "sketch")
    assert "T2I-Adapter" in told.stdout
    assert "for models of stable-diffusion" in told.stdout
    assert json.loads(command("info", "sketch", "--json").stdout)["t2i_adapter"]["controls"] == "stable-diffusion"
    assert "t2i_adapter, int8, for stable-diffusion" in command("models", "--no-plan").stdout
    drawing().save(tmp_path / "lines.png")
    made, again = tmp_path / "made.png", tmp_path / "again.png"
    common = ["--model", deep("sd")[1], "--threads", 1]
    shown = f"sketch={tmp_path / 'lines.png'}"
    asked = ["--seed", 7, "--num-inference-steps", 2, "--size", "64x64"]
    drawn = command("generate", "a boat", *asked, *common, "--control", f"{shown}=0.8@0-0.5", "-o", made)
    assert drawn.code == 0, drawn.stderr
    same = command("generate", "--from-record", made, "--control", shown, *common, "-o", again)
    assert same.code == 0, same.stderr
    assert again.read_bytes() == made.read_bytes()
    planned = command("plan", deep("sd")[1], "--control", shown, "--size", "64x64", "--no-build", "--json")
    stages = json.loads(planned.stdout)["plan"]["stages"]
    assert [stage["calls"] for stage in stages if "t2i_adapter.sketch@" in stage["role"]] == [1]
    command("generate", "a boat", "--model", "sketch").assert_one_clear_error(1, "is a T2I-Adapter", "--control")
