"""Image prompts on the command line: an encoder exported, listed and told of; drawn with, and made again."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import numpy as np
from ip_adapters import image_encoder, ip_adapter, left_half
from pictures import photo
from PIL import Image

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


def test_an_encoders_checkpoint_beside_the_adapter_is_converted_once(
    command, image_encoder, ip_adapter, tiny_bundle, tmp_path, monkeypatch
):
    """As they are published: an encoder a folder up, and one beside the file that is for other adapters."""
    checkpoint, bundle = image_encoder()
    adapter = tmp_path / "published/models/adapter.safetensors"
    shutil.copytree(checkpoint, tmp_path / "published/image_encoder")
    shutil.copytree(checkpoint, adapter.parent / "image_encoder")
    config = json.loads((checkpoint / "config.json").read_text())
    (adapter.parent / "image_encoder/config.json").write_text(json.dumps({**config, "projection_dim": 99}))
    shutil.copy(ip_adapter(), adapter)
    photo().save(tmp_path / "cat.png")
    asked = ["generate", "a boat", "--model", tiny_bundle, "--threads", 1, "--seed", 7, "--num-inference-steps", 1]
    given = [*asked, "--image-prompt", tmp_path / "cat.png", "--ip-adapter", adapter]
    with monkeypatch.context() as patch:
        patch.setattr("tintype.bundle.converted.find_spec", lambda name: None if name == "torch" else find_spec(name))
        without = command(*given, "-o", tmp_path / "none.png")
    without.assert_one_clear_error(1, "torch, isn't here", "pip install 'tintype[export]'", "published/image_encoder")
    outputs = [tmp_path / f"{number}.png" for number in range(4)]
    first, second = (command(*given, "-o", output) for output in outputs[:2])
    assert (first.code, second.code) == (0, 0), first.stderr
    assert "a bundle is made of it once" in first.stderr
    assert "note" not in second.stderr
    assert str(tmp_path / "published/image_encoder") in command("cache").stdout
    by_bundle = command(*given, "--image-encoder", bundle, "-o", outputs[2])
    by_checkpoint = command(*given, "--image-encoder", checkpoint, "-o", outputs[3])
    assert (by_bundle.code, by_checkpoint.code) == (0, 0), by_checkpoint.stderr
    pixels = [np.asarray(Image.open(output)).tobytes() for output in outputs]
    assert len(set(pixels)) == 1
    again = command("generate", "--from-record", outputs[0], *given[2:6], *given[10:], "-o", outputs[1])
    assert again.code == 0, again.stderr
    assert outputs[1].read_bytes() == outputs[0].read_bytes()


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
    twice = command(*common, *given, "--ip-adapter", adapter, *shown)
    twice.assert_one_clear_error(2, "--ip-adapter is given 2 times", "give one --ip-adapter")
    alone = command(*common, "--ip-adapter", adapter, *shown)
    alone.assert_one_clear_error(1, "needs an image encoder", "tintype export")
    (tmp_path / "adapter.bin").write_bytes(b"PK\x03\x04")
    pickle = command(*common, "--ip-adapter", tmp_path / "adapter.bin", *shown)
    pickle.assert_one_clear_error(2, "adapter.bin is a pickle", "python -c")
    looked = command("info", adapter)
    assert "an IP-Adapter" in looked.stdout
    assert "--ip-adapter FILE --image-prompt PICTURE" in looked.stdout
