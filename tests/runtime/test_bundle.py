"""A bundle is refused, by name and with a remedy, unless it is exactly what its manifest says."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tintype.bundle import file_facts, open_bundle, read_manifest, verify, write_manifest
from tintype.bundle.skew import Skew
from tintype.cli import run
from tintype.errors import BundleError
from tintype.strict_json import Misfit

WEIGHTS = "unet/model.onnx_data"

FAST = {"num_inference_steps": 4, "guidance_scale": 1.0, "sampler": "euler", "sigmas": "trailing"}
EXTRA = {"name": "more", "dtype": "float32", "shape": ["batch"]}


def add_variant(value):
    """The denoiser once more, as the fast one."""
    variants = value["graphs"]["denoiser"]
    variants["fast"] = copy.deepcopy(variants["full"])
    return variants["fast"]


def refused(folder: object, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)  # type: ignore[arg-type]
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert caught.value.fix


def test_what_was_written_is_what_is_read(hand_made):
    bundle = open_bundle(hand_made)
    assert bundle.hash == hashlib.sha256((hand_made / "tintype.json").read_bytes()).hexdigest()
    write_manifest(hand_made, bundle.manifest)
    assert open_bundle(str(hand_made)) == bundle
    assert bundle.graph_path("denoiser") == hand_made.resolve() / "unet/model.onnx"


def test_a_bundle_may_state_what_its_pictures_showed(hand_made, capsys):
    counted = Skew(prompt="a house", judge="somebody", bundle_hash="0" * 64, counts={"red": 3, "blue": 9})
    manifest = read_manifest(hand_made)[0]
    assert manifest.skew == ()
    write_manifest(hand_made, dataclasses.replace(manifest, skew=(counted,)))
    assert open_bundle(hand_made).manifest.skew == (counted,)
    assert run(["info", str(hand_made)]) == 0
    assert "skew         'a house': blue 75%, red 25%; 12 pictures, by somebody\n" in capsys.readouterr().out
    with pytest.raises(Misfit, match="64 are the most"):
        dataclasses.replace(manifest, skew=(counted,) * 65)


def test_a_bundle_may_be_reached_through_a_link(hand_made, tmp_path):
    (tmp_path / "link").symlink_to(hand_made)
    assert open_bundle(tmp_path / "link") == open_bundle(hand_made)


def test_an_unknown_role_or_variant_is_named(hand_made):
    bundle = open_bundle(hand_made)
    with pytest.raises(BundleError, match="no controlnet"):
        bundle.graph("controlnet")
    with pytest.raises(BundleError, match="no variant 'ful'") as caught:
        bundle.graph("denoiser", "ful")
    assert "full" in caught.value.fix


@pytest.mark.parametrize("name", ["nowhere", "postcrad", "", "a\0b", "x" * 5000, "nowhere/at/all"])
def test_a_missing_bundle(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(name, "no bundle")


def test_a_checkpoint_in_place_of_a_bundle_names_the_command(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path)
    assert "tintype export" in caught.value.fix


def test_a_missing_file(hand_made):
    (hand_made / WEIGHTS).unlink()
    refused(hand_made, WEIGHTS, "missing")


def test_a_file_cut_short(hand_made):
    os.truncate(hand_made / WEIGHTS, 100)
    refused(hand_made, WEIGHTS, "has 100 bytes", "256")


def test_a_file_that_grew(hand_made):
    with (hand_made / WEIGHTS).open("ab") as file:
        file.write(b"x")
    refused(hand_made, WEIGHTS, "257")


def test_a_changed_byte(hand_made):
    _flip_a_byte(hand_made / WEIGHTS)
    refused(hand_made, WEIGHTS, "bytes changed")


def test_a_changed_byte_in_a_bundle_that_was_opened_before(hand_made):
    open_bundle(hand_made)
    before = (hand_made / WEIGHTS).stat()
    _flip_a_byte(hand_made / WEIGHTS)
    os.utime(hand_made / WEIGHTS, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(hand_made, WEIGHTS, "bytes changed")


def test_a_large_bundle_is_hashed_once_and_again_when_it_changed(hand_made, monkeypatch):
    monkeypatch.setattr(verify, "ALWAYS_HASHED_BYTES", 0)
    hashed: list[str] = []
    real = hashlib.file_digest

    def counting_digest(opened: BinaryIO, algorithm: str) -> Any:
        hashed.append(Path(opened.name).relative_to(hand_made).as_posix())
        return real(opened, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counting_digest)
    open_bundle(hand_made)
    assert sorted(hashed) == sorted(read_manifest(hand_made)[0].files)
    hashed.clear()
    open_bundle(hand_made)
    assert hashed == []
    _flip_a_byte(hand_made / WEIGHTS)
    os.utime(hand_made / WEIGHTS, (time.time() + 5, time.time() + 5))
    refused(hand_made, WEIGHTS)


def test_a_cache_that_cannot_be_written_costs_only_time(hand_made, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "file"))
    assert open_bundle(hand_made).name == "made-by-hand"


@pytest.mark.parametrize("damage", [b"", b"no json", b"[1]", b'{"a":', b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_manifest_that_is_no_manifest(hand_made, damage):
    (hand_made / "tintype.json").write_bytes(damage)
    refused(hand_made, "tintype.json")


def test_a_manifest_of_absurd_size(hand_made):
    with (hand_made / "tintype.json").open("ab") as file:
        file.truncate(2**26)
    refused(hand_made, "bytes")


def test_a_key_that_comes_twice(hand_made):
    text = (hand_made / "tintype.json").read_text()
    (hand_made / "tintype.json").write_text(text.replace('"name"', '"name": "a", "name"', 1))
    refused(hand_made, "'name' comes twice")


@pytest.mark.parametrize("version", [2, 99, 10**30])
def test_a_newer_version_says_to_upgrade(hand_made, edit, version):
    edit(lambda value: value.update(format_version=version))
    with pytest.raises(BundleError, match="format") as caught:
        open_bundle(hand_made)
    assert "upgrade" in caught.value.fix


@pytest.mark.parametrize("version", [0, -1, "1", None, True, 1.5])
def test_a_version_that_is_none(hand_made, edit, version):
    edit(lambda value: value.update(format_version=version))
    refused(hand_made, "format_version")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: v.pop("name"), "name is missing"),
        (lambda v: v.update(name=3), "name should be text"),
        (lambda v: v.update(latent_channels="4"), "latent_channels"),
        (lambda v: v.update(latent_channels=True), "latent_channels"),
        (lambda v: v.update(latent_channels=0), "latent_channels"),
        (lambda v: v.update(latent_channels=8), "latent_channels"),
        (lambda v: v.update(vae_scale_factor=10**9), "vae_scale_factor"),
        (lambda v: v.update(scaling_factor=0), "scaling_factor"),
        (lambda v: v.update(prediction_type="flow"), "prediction_type"),
        (lambda v: v.update(files=[]), "files"),
        (lambda v: v.update(files={}), "files"),
        (lambda v: v["files"][WEIGHTS].update(bytes=-1), "bytes"),
        (lambda v: v["files"][WEIGHTS].update(bytes=2**60), "absurd"),
        (lambda v: v["files"][WEIGHTS].update(sha256="abc"), "sha256"),
        (lambda v: v["files"].pop("unet/model.onnx"), "unet/model.onnx"),
        (lambda v: v["source"].update(assumed=["a"] * 33), "source.assumed has 33 texts"),
        (lambda v: v["source"].update(assumed=["a" * 2001]), "a text of 2,001 characters"),
        (lambda v: v["source"].update(origin={str(key): "" for key in range(33)}), "source.origin has 33 texts"),
        (lambda v: v["source"].update(origin={"k" * 2001: ""}), "a text of 2,001 characters"),
        (lambda v: v["source"].update(vae="x"), "source.vae"),
        (lambda v: v["size"].update(multiple=0), "multiple"),
        (lambda v: v["size"].update(maximum=10**6), "sizes"),
        (lambda v: v["size"].update(minimum=512), "size"),
        (lambda v: v["default_request"].update(width=65), "width"),
        (lambda v: v["default_request"].update(num_inference_steps=0), "num_inference_steps"),
        (lambda v: v["default_request"].update(exactness="fast"), "exactness"),
        (lambda v: v["tokenizer"].update(max_length=10**9), "max_length"),
        (lambda v: v["tokenizer"].update(bos_token_id=-1), "token id"),
        (lambda v: v["graphs"]["denoiser"]["full"]["inputs"][0].update(shape=["b", 4, 2**40, 1]), "dimension"),
        (lambda v: v["graphs"]["denoiser"]["full"]["inputs"][0].update(shape=["b", 4, -1, 1]), "dimension"),
        (lambda v: v["graphs"]["denoiser"]["full"]["inputs"][0].update(shape=[1] * 9), "dimensions"),
        (lambda v: v["graphs"]["denoiser"]["full"]["inputs"].pop(0), "sample"),
        (lambda v: v["graphs"]["denoiser"]["full"].update(inputs=[]), "ports"),
        (lambda v: v["graphs"]["denoiser"]["full"].update(file="unet/other.onnx"), "other.onnx"),
        (lambda v: v.update(family="instruct-pix2pix"), "takes 4 channels"),
        (lambda v: v.update(family="stable-diffusion-xl-refiner"), "text_embeds"),
        (lambda v: v["default_request"].update(guidance_rescale=2), "guidance_rescale"),
        (lambda v: v["default_request"].update(strength=-1), "strength"),
        (lambda v: v["default_request"].update(image_guidance_scale=0.5), "image_guidance_scale"),
        (lambda v: v["graphs"].update(tiny_decoder=v["graphs"]["denoiser"]), "latent_sample"),
        (lambda v: v.update(fast=FAST), "and has none"),
        (
            lambda v: (v.update(fast={**FAST, "num_inference_steps": 0}), add_variant(v)),
            "num_inference_steps of fast",
        ),
        (lambda v: (v.update(fast=FAST), add_variant(v)["inputs"].append(EXTRA)), "the same inputs"),
        (
            lambda v: v["graphs"]["denoiser"]["full"]["inputs"].append(
                {"name": "timestep_cond", "dtype": "float32", "shape": ["batch", 2]}
            ),
            "its guidance in 2 numbers",
        ),
    ],
)
def test_a_manifest_that_claims_what_cannot_be(hand_made, edit, change, word):
    edit(change)
    refused(hand_made, "tintype.json", word)


def test_a_fast_denoiser_with_a_sampler_that_is_none_is_refused(hand_made, edit):
    edit(lambda v: (v.update(fast=FAST), add_variant(v)))
    assert open_bundle(hand_made).manifest.defaults(fast=True).num_inference_steps == 4
    edit(lambda v: v["fast"].update(sampler="eulr"))
    refused(hand_made, "fast of tintype.json", "eulr")
    edit(lambda v: v["fast"].update(sampler="euler", sigmas="trailling"))
    refused(hand_made, "fast of tintype.json", "trailling")


def test_numbers_that_are_not_finite_are_refused(hand_made):
    text = (hand_made / "tintype.json").read_text()
    for number in ("NaN", "Infinity", "1e999"):
        (hand_made / "tintype.json").write_text(text.replace("0.18215", number))
        refused(hand_made, "tintype.json")


HOSTILE_PATHS = [
    "../outside.onnx",
    "unet/../../outside.onnx",
    "/etc/passwd",
    "C:/outside.onnx",
    "..\\outside.onnx",
    "unet//model.onnx",
    "./unet/model.onnx",
    "unet/model.onnx\0",
    "",
    "*/_ORT_MEM_ADDR_/*",
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_path_that_leaves_the_bundle(hand_made, edit, path):
    (hand_made.parent / "outside.onnx").write_bytes(b"secret")
    edit(lambda value: value["files"].update({path: value["files"]["unet/model.onnx"]}))
    refused(hand_made, "outside the bundle")
    edit(lambda value: value["files"].pop(path))
    edit(lambda value: value["graphs"]["denoiser"]["full"].update(file=path))
    refused(hand_made, "outside the bundle")


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_graph_whose_weights_lie_outside(hand_made, path, remake, write_graph):
    write_graph(hand_made / "unet/model.onnx", location=path)
    remake(hand_made)
    refused(hand_made, "unet/model.onnx")


def test_a_graph_whose_weights_lie_in_an_unlisted_file(hand_made, remake, write_graph):
    write_graph(hand_made / "unet/model.onnx", location="other_data")
    remake(hand_made)
    (hand_made / "unet/other_data").write_bytes(bytes(256))
    refused(hand_made, "other_data", "doesn't list")


def test_a_link_that_leaves_the_bundle(hand_made, tmp_path):
    shutil.move(hand_made / WEIGHTS, tmp_path / "weights")
    (hand_made / WEIGHTS).symlink_to(tmp_path / "weights")
    refused(hand_made, WEIGHTS, "outside the bundle")


def test_a_folder_that_is_a_link_out_of_the_bundle(hand_made, tmp_path):
    shutil.move(hand_made / "unet", tmp_path / "unet")
    (hand_made / "unet").symlink_to(tmp_path / "unet")
    refused(hand_made, "outside the bundle")


def test_a_link_within_the_bundle_is_fine(hand_made, remake):
    shutil.move(hand_made / WEIGHTS, hand_made / "weights")
    (hand_made / WEIGHTS).symlink_to(hand_made / "weights")
    remake(hand_made)
    open_bundle(hand_made)


def test_a_loop_of_links(hand_made):
    (hand_made / WEIGHTS).unlink()
    (hand_made / WEIGHTS).symlink_to(hand_made / WEIGHTS)
    refused(hand_made, WEIGHTS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_a_file_does_not_hang(hand_made, edit):
    (hand_made / WEIGHTS).unlink()
    os.mkfifo(hand_made / WEIGHTS)
    refused(hand_made, WEIGHTS, "no plain file")


def test_the_weights_of_a_graph_run_past_the_end(hand_made, remake, write_graph):
    write_graph(hand_made / "unet/model.onnx", weight=np.ones((8, 9), np.float32))
    os.truncate(hand_made / WEIGHTS, 256)
    remake(hand_made)
    refused(hand_made, "unet/model.onnx", "past the end")


def test_a_graph_that_is_no_onnx(hand_made, remake):
    for damage in (b"", b"\x00" * 64, b"not a protobuf at all", np.random.default_rng(0).bytes(4096)):
        (hand_made / "unet/model.onnx").write_bytes(damage)
        remake(hand_made)
        refused(hand_made, "unet/model.onnx")


def test_a_graph_cut_short_anywhere_is_refused_or_harmless(hand_made, remake):
    whole = (hand_made / "unet/model.onnx").read_bytes()
    for length in range(len(whole)):
        (hand_made / "unet/model.onnx").write_bytes(whole[:length])
        remake(hand_made)
        with contextlib.suppress(BundleError):
            open_bundle(hand_made)


def _absurd_tensor(dims: list[int], raw: bytes = b"") -> bytes:
    tensor = TensorProto(dims=dims, data_type=TensorProto.FLOAT, name="w", raw_data=raw)
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [], [tensor])
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize("dims", [[2**62, 4], [-1], [2**20, 2**20], [10], [1] * 65])
def test_a_tensor_of_absurd_shape(hand_made, dims, remake):
    (hand_made / "unet/model.onnx").write_bytes(_absurd_tensor(dims))
    remake(hand_made)
    refused(hand_made, "unet/model.onnx", "'w'")


def test_an_input_of_absurd_shape(hand_made, remake):
    model = onnx.load(hand_made / "unet/model.onnx", load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**50
    (hand_made / "unet/model.onnx").write_bytes(model.SerializeToString())
    remake(hand_made)
    refused(hand_made, "unet/model.onnx", "dimension")


def test_weights_hidden_in_an_attribute_are_found(hand_made, remake):
    hidden = TensorProto(dims=[1], data_type=TensorProto.FLOAT, name="w", data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../../../etc/passwd")
    outer = helper.make_graph([helper.make_node("Constant", [], ["c"], value=hidden)], "outer", [], [])
    (hand_made / "unet/model.onnx").write_bytes(helper.make_model(outer).SerializeToString())
    remake(hand_made)
    refused(hand_made, "unet/model.onnx", "outside the bundle")


def test_file_facts_list_every_file_but_the_manifest(hand_made):
    facts = file_facts(hand_made)
    assert "tintype.json" not in facts
    assert facts[WEIGHTS].bytes == 256
    assert len(facts) == sum(path.is_file() for path in hand_made.rglob("*")) - 1


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(hand_made, manifest, monkeypatch):
    before = (hand_made / "tintype.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_manifest(hand_made, manifest)
    assert (hand_made / "tintype.json").read_bytes() == before
    assert not [path for path in hand_made.iterdir() if path.name.startswith(".")]


def test_the_manifest_is_plain_json(hand_made):
    assert json.loads((hand_made / "tintype.json").read_text())["format_version"] == 1


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
