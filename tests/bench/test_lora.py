"""What `tintype bench lora` draws with: a LoRA that a bundle takes, of as many layers as are asked for."""

from __future__ import annotations

import pytest

from tintype.adapters.files import open_adapter
from tintype.bench.denoiser import write_lora
from tintype.bench.job import Job, build_arguments
from tintype.bundle import open_bundle
from tintype.uses import LAYERS

RANK = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, bundle = tmp_path_factory.mktemp("loras"), open_bundle("postcard")
    return [open_adapter(write_lora(bundle, folder / f"{kind}.safetensors", kind, RANK)) for kind in LAYERS]


def test_each_kind_has_the_layers_of_those_before_and_more(files):
    names = [set(file.layers) for file in files]
    assert names[0] < names[1] < names[2]
    assert all("attn" in name for name in names[0])


def test_the_ranks_are_those_that_were_asked_for(files):
    for file in files:
        for layer in file.layers.values():
            assert file.shape(layer.parts["down"])[0] == file.shape(layer.parts["up"])[1] == RANK


def test_builds_of_the_fast_denoiser_are_asked_for_by_its_option():
    assert "--fast" in build_arguments(Job(more={"fast": True}))
    assert "--fast" not in build_arguments(Job())
