"""Files of IP-Adapters: what is in them and what they make of pictures, and what isn't a sound one refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from ip_adapters import EMBEDDING, HIDDEN, adapter_tensors, save_adapter

from tintype.adapters.image_projection import image_tokens, keys_and_values
from tintype.adapters.ip_adapter import BASE, FULL, PLUS, open_ip_adapter
from tintype.errors import RequestError

KINDS = {"base": BASE, "plus": PLUS, "full": FULL}
WORDS = 32
LAYERS = [(16, WORDS), (24, WORDS)]


@pytest.fixture
def tensors():
    return lambda kind="plus": adapter_tensors(LAYERS, kind)


@pytest.fixture
def write(tmp_path, tensors):
    def written(kind: str = "plus", change=lambda tensors: None):
        found = tensors(kind)
        change(found)
        return save_adapter(tmp_path / "adapter.safetensors", found)

    return written


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_what_it_is(write, kind):
    file = open_ip_adapter(write(kind))
    assert (file.kind, file.words, file.pairs) == (KINDS[kind], WORDS, (1, 3))
    assert file.encoder == (EMBEDDING if kind == "base" else HIDDEN)
    assert file.tokens == (None if kind == "full" else 4)
    assert [file.width(pair) for pair in (0, 1)] == [16, 24]
    assert open_ip_adapter(file.path) is file


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_diffusers(write, tensors, kind):
    import torch
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    file, random = open_ip_adapter(write(kind)), np.random.default_rng(1)
    features = random.standard_normal((2, *(() if kind == "base" else (17,)), file.encoder)).astype(np.float32)
    state = {
        name.removeprefix("image_proj."): torch.from_numpy(array)
        for name, array in tensors(kind).items()
        if name.startswith("image_proj.")
    }
    theirs = UNet2DConditionLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(state, low_cpu_mem_usage=False)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(features)).numpy()
    made = image_tokens(file, features)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_keys_and_values_are_products_with_the_files_matrices(write, tensors, dtype):
    def stored(found):
        for name, array in found.items():
            found[name] = array.astype(dtype)

    file, tokens = open_ip_adapter(write(change=stored)), np.ones((2, 4, WORDS), np.float32)
    pairs = list(keys_and_values(file, tokens))
    assert [key.shape for key, _ in pairs] == [(2, 4, 16), (2, 4, 24)]
    expected = tokens @ tensors()["ip_adapter.3.to_v_ip.weight"].T
    np.testing.assert_allclose(pairs[1][1], expected, rtol=1e-2, atol=1e-2)


def _unknown(found):
    found["ip_adapter.1.to_z_ip.weight"] = np.zeros(2, np.float32)


def _nan(found):
    found["ip_adapter.3.to_k_ip.weight"][2, 3] = np.nan


def _without(*names):
    return lambda found: [found.pop(name) for name in names]


def _face(found):
    found["image_proj.perceiver_resampler.proj_in.weight"] = np.zeros((2, 2), np.float32)


def _face_lora(found):
    found["ip_adapter.0.to_q_lora.down.weight"] = np.zeros((2, 2), np.float32)


def _shape(name, *shape):
    return lambda found: found.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_unknown, "holds what isn't known here: 'ip_adapter.1.to_z_ip.weight'"),
        (_nan, "ip_adapter.3.to_k_ip.weight of"),
        (_without("image_proj.layers.1.0.to_kv.weight"), "it lacks 'image_proj.layers.1.0.to_kv.weight'"),
        (_without("ip_adapter.3.to_v_ip.weight"), "it lacks 'ip_adapter.3.to_v_ip.weight'"),
        (lambda found: [found.pop(name) for name in list(found) if "_ip." in name], "lacks 'ip_adapter.1.to_k_ip"),
        (_without("image_proj.latents"), "is no IP-Adapter: nothing in it projects pictures"),
        (_face, "is an IP-Adapter FaceID"),
        (_face_lora, "is an IP-Adapter FaceID"),
        (_shape("image_proj.latents", 1, 0, 40), "has the shape [1, 0, 40]"),
        (_shape("image_proj.latents", 1, 2000, 40), "has the shape [1, 2000, 40]"),
        (_shape("image_proj.proj_in.bias", 7), "has the shape [7]"),
        (_shape("image_proj.layers.2.0.to_q.weight", 96, 40), "has the shape [96, 40]"),
        (_shape("image_proj.layers.40.1.3.weight", 2, 2), "has 41 layers; 16 are the most"),
        (_shape("ip_adapter.1.to_k_ip.weight", 16, 33), "has the shape [16, 33]"),
        (_shape("ip_adapter.1.to_v_ip.weight", 8, WORDS), "has the shape [8, 32]"),
        (lambda found: found.update({"image_proj.latents": np.zeros((1, 4, 40), np.int32)}), "is of the type I32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_sound_is_refused_by_name(write, change, words):
    with pytest.raises(RequestError) as refusal:
        open_ip_adapter(write(change=change))
    assert words in refusal.value.message
    assert "fix:" not in refusal.value.message
    assert refusal.value.fix
    assert "checkpoint" not in refusal.value.fix


def test_an_adapter_of_faces_alone_is_refused_by_name(write):
    def face(found):
        found["image_proj.proj.0.weight"] = np.zeros((8, 8), np.float32)
        found["image_proj.norm.weight"] = np.zeros(8, np.float32)

    with pytest.raises(RequestError, match="FaceID, which looks at what a model for faces"):
        open_ip_adapter(write(change=face))


@pytest.mark.parametrize("cut", [4, 100, -8])
def test_a_file_that_was_cut_short_is_refused(write, cut):
    path = write()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RequestError, match="are broken") as refusal:
        open_ip_adapter(path)
    assert "download the IP-Adapter again" in refusal.value.fix


@pytest.mark.parametrize("ending", ["bin", "pt", "ckpt"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path, ending):
    path = tmp_path / f"adapter.{ending}"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(RequestError, match="is a pickle, which may run code") as refusal:
        open_ip_adapter(path)
    assert "'image_proj', 'ip_adapter'" in refusal.value.fix


def test_a_file_that_is_not_there_or_changed_is_refused(write, tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        open_ip_adapter(tmp_path / "none.safetensors")
    file = open_ip_adapter(write())
    file.path.write_bytes(file.path.read_bytes() + b"x")
    with pytest.raises(RequestError, match="changed while it was used"):
        image_tokens(file, np.zeros((1, 17, HIDDEN), np.float32))


@pytest.mark.reference
def test_the_command_that_converts_a_pickle_does(write, tensors, tmp_path, monkeypatch):
    """What the fix says, run by Python as it stands."""
    import subprocess
    import sys

    import torch

    nested = {"image_proj": {}, "ip_adapter": {}}
    for name, array in tensors().items():
        start, _, rest = name.partition(".")
        nested[start][rest] = torch.from_numpy(array)
    torch.save(nested, tmp_path / "old.bin")
    with pytest.raises(RequestError) as refusal:
        open_ip_adapter(tmp_path / "old.bin")
    code = refusal.value.fix.partition('python -c "')[2].rpartition('"')[0]
    code = code.replace("'IN'", repr(str(tmp_path / "old.bin"))).replace("OUT", str(tmp_path / "new"))
    subprocess.run([sys.executable, "-c", code], check=True)
    assert open_ip_adapter(tmp_path / "new.safetensors").kind == PLUS
