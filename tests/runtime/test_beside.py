"""What stands beside a model, of every kind: a damaged one is refused, a licence that binds has to be accepted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from controlnets import controlnet, drawing
from edited_bundles import edited
from ip_adapters import image_encoder, ip_adapter
from pictures import PROMPT, photo
from t2i_adapters import adapter, deep

import tintype
from tintype.errors import BundleError, LicenceError
from tintype.uses import CONTROLNET, IMAGE_ENCODER, T2I_ADAPTER

pytestmark = pytest.mark.slow  # graphs are built by the dozen

__all__ = ["adapter", "controlnet", "deep", "edited", "image_encoder", "ip_adapter"]  # the fixtures
ASKED: dict[str, Any] = {
    "seed": 7, "num_inference_steps": 2, "width": 64, "height": 32, "guidance_scale": 5.0, "sampler": "euler",
    "exactness": "exact",
}  # fmt: skip
KINDS = (CONTROLNET, T2I_ADAPTER, IMAGE_ENCODER)


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    """A family of bundles beside models, which is its graph's role too."""
    return request.param


@pytest.fixture
def bundle(request, kind) -> Path:
    """One of that kind."""
    made = {CONTROLNET: "controlnet", T2I_ADAPTER: "adapter", IMAGE_ENCODER: "image_encoder"}[kind]
    return request.getfixturevalue(made)()[1]


@pytest.fixture
def model(request, kind) -> Path:
    """A model that it is for."""
    return request.getfixturevalue("deep")("sd")[1] if kind == T2I_ADAPTER else request.getfixturevalue("tiny_bundle")


@pytest.fixture
def given(request, kind):
    """What a request brings where a bundle is."""
    if kind == IMAGE_ENCODER:
        file = request.getfixturevalue("ip_adapter")(kind="plus")
        return lambda folder: {"ip_adapter": file, "image_encoder": folder, "image_prompts": [(photo(), 0.7)]}
    picture = drawing(64, 32) if kind == CONTROLNET else photo(64, 32)
    return lambda folder: {"control": [{"model": folder, "image": picture}]}


def test_a_damaged_one_is_refused_before_anything_opens(model, bundle, kind, given, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "damaged")
    weights = folder / kind / "model.onnx_data"
    whole = weights.read_bytes()
    with tintype.load(model, provider="cpu", threads=1) as pipeline:
        for content, words in ((whole[:-4096], "the manifest says"), (whole[:-1] + b"x", "its bytes changed")):
            weights.write_bytes(content)
            with pytest.raises(BundleError, match=words):
                pipeline.generate(PROMPT, **ASKED, **given(folder))
        (folder / "tintype.json").write_text(f'{{"format_version": 1, "family": "{kind}"}}')
        with pytest.raises(BundleError, match="is not a manifest"):
            pipeline.generate(PROMPT, **ASKED, **given(folder))
        assert not pipeline.graphs._sessions


def test_a_licence_that_binds_is_accepted_for_it_too(model, bundle, given, edited, tmp_path, monkeypatch):
    monkeypatch.setenv("TINTYPE_MODELS", str(tmp_path / "models"))
    brought = given(edited(bundle, lambda value: value.update(licence="creativeml-openrail-m")))
    with (
        tintype.load(model, provider="cpu", threads=1) as opened,
        pytest.raises(LicenceError, match="licensed under creativeml-openrail-m"),
    ):
        opened.generate(PROMPT, **ASKED, **brought)
    with tintype.load(model, provider="cpu", threads=1, accept_licence=True) as opened:
        assert opened.generate(PROMPT, **ASKED, **brought).images
