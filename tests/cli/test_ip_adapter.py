"""Image prompts on the command line: an encoder exported, listed and told of; drawn with, and made again."""

from __future__ import annotations

import json

from ip_adapters import image_encoder, ip_adapter, left_half
from pictures import photo

__all__ = ["image_encoder", "ip_adapter"]  # the fixtures


def test_from_an_encoders_checkpoint_to_a_picture_and_again(
    command, image_encoder, ip_adapter, tiny_bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv("TINTYPE_MODELS", str(tmp_path / "models"))
    adapter = ip_adapter(kind="plus")
    exported = command("export", image_encoder()[0], "--name", "eyes", "--precision", "fp16")
    assert exported.code == 0, exported.stderr
    told = command("info", "eyes")
    assert "of pictures, for IP-Adapters" in told.stdout
    assert json.loads(command("info", "eyes", "--json").stdout)["image_encoder"]["family"] == "image_encoder"
    listed = command("models", "--no-plan")
    assert "image_encoder, fp16, for IP-Adapters" in listed.stdout
    assert "--image-encoder takes it" in listed.stdout
    photo().save(tmp_path / "cat=1.png")
    left_half().save(tmp_path / "left.png")
    made, again = tmp_path / "made.png", tmp_path / "again.png"
    common = ["--model", tiny_bundle, "--threads", 1]
    shown = tmp_path / "cat=1.png"
    pictures = ["--image-prompt", f"{shown}=0.6,mask={tmp_path / 'left.png'}", "--image-prompt", shown]
    given = ["--ip-adapter", adapter, "--image-encoder", "eyes"]
    drawn = command(
        "generate", "a boat", "--seed", 7, "--num-inference-steps", 2, *common, *given, *pictures, "-o", made
    )
    assert drawn.code == 0, drawn.stderr
    unweighed = ["--image-prompt", f"{shown},mask={tmp_path / 'left.png'}", "--image-prompt", shown]
    same = command("generate", "--from-record", made, *common, *given, *unweighed, "-o", again)
    assert same.code == 0, same.stderr
    assert again.read_bytes() == made.read_bytes()
    missing = command("generate", "--from-record", made, *common, "-o", again)
    missing.assert_one_clear_error(1, "drawn with the IP-Adapter plus-tiny_checkpoint-0", "--ip-adapter FILE")
    planned = command("plan", tiny_bundle, *given, *pictures, "--no-build", "--json")
    assert json.loads(planned.stdout)["plan"]["stages"][0]["role"].startswith("image_encoder.eyes@")
    alike = command("generate", "--like", made, "--seed", 7, *common, "-o", again)
    assert "give them again, --ip-adapter FILE --image-prompt PICTURE" in alike.stderr


def test_what_is_no_image_prompt_is_refused(command, image_encoder, ip_adapter, tiny_bundle, tmp_path):
    adapter, encoder = ip_adapter(), image_encoder()[1]
    photo().save(tmp_path / "cat.png")
    common = ["generate", "a boat", "--model", tiny_bundle, "-o", tmp_path / "x.png"]
    given = ["--ip-adapter", adapter, "--image-encoder", encoder]
    shown = ["--image-prompt", tmp_path / "cat.png"]
    command(*common, *shown).assert_one_clear_error(2, "without an IP-Adapter", "--ip-adapter FILE")
    command(*common, *given).assert_one_clear_error(2, "without a picture", "--image-prompt PICTURE=WEIGHT")
    command(*common, *given, "--image-prompt", "none.png=0.5").assert_one_clear_error(2, "none.png")
    command(*common, *given, "--image-prompt", f"{tmp_path / 'cat.png'}=99").assert_one_clear_error(2, "out of range")
    alone = command(*common, "--ip-adapter", adapter, *shown)
    alone.assert_one_clear_error(1, "needs an image encoder", "tintype export")
    (tmp_path / "adapter.bin").write_bytes(b"PK\x03\x04")
    pickle = command(*common, "--ip-adapter", tmp_path / "adapter.bin", *shown)
    pickle.assert_one_clear_error(2, "adapter.bin is a pickle", "python -c")
    looked = command("info", adapter)
    assert "an IP-Adapter" in looked.stdout
    assert "--ip-adapter FILE --image-prompt PICTURE" in looked.stdout
