"""A bundle that is not what it says is refused by name before any session opens; exit code 1."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tintype.bundle import file_facts, manifest_digest, read_manifest, write_manifest

WEIGHTS = "unet/model.onnx_data"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def draw(command, bundle: Path, tmp_path: Path) -> Callable[[], Any]:
    """Try to draw with the damaged bundle; whatever happens, no picture may appear."""

    def call() -> Any:
        one_step = ["--num-inference-steps", 1, "-o", tmp_path / "x.png"]
        outcome = command("generate", "a house", "--model", bundle, *one_step)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
        return outcome

    return call


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "tintype.json"
    value = json.loads(path.read_text())
    edit(value)
    value["digest"] = manifest_digest(value)
    path.write_text(json.dumps(value))


def test_a_whole_copy_draws(command, bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    outcome = command("generate", "a house", "--model", bundle, "--num-inference-steps", 1, "-o", picture)
    assert outcome.code == 0, outcome.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_bundle_that_is_not_there(command, tmp_path: Path) -> None:
    outcome = command("generate", "a house", "--model", tmp_path / "gone", "-o", tmp_path / "x.png")
    outcome.assert_one_clear_error(1, "gone", "tintype export")


def test_a_name_near_an_embedded_one(command, tmp_path: Path) -> None:
    outcome = command("generate", "a house", "--model", "postcrad", "-o", tmp_path / "x.png")
    outcome.assert_one_clear_error(1, "postcrad", "did you mean postcard?")


def test_a_checkpoint_in_place_of_a_bundle(command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    outcome = command("generate", "a house", "--model", tiny_checkpoint, "-o", tmp_path / "x.png")
    outcome.assert_one_clear_error(1, "tintype export")


def test_a_file_that_is_missing(bundle: Path, draw) -> None:
    (bundle / WEIGHTS).unlink()
    draw().assert_one_clear_error(1, WEIGHTS, "missing")


def test_a_file_that_was_cut_short(bundle: Path, draw) -> None:
    whole = (bundle / WEIGHTS).read_bytes()
    (bundle / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    draw().assert_one_clear_error(1, WEIGHTS, f"{len(whole):,}", "cut short")


def test_a_changed_byte(bundle: Path, draw) -> None:
    changed = bytearray((bundle / WEIGHTS).read_bytes())
    changed[len(changed) // 2] ^= 1
    (bundle / WEIGHTS).write_bytes(changed)
    draw().assert_one_clear_error(1, WEIGHTS, "changed")


def test_a_newer_version(bundle: Path, draw) -> None:
    edit_manifest(bundle, lambda value: value.update(format_version=2))
    draw().assert_one_clear_error(1, "format 2", "upgrade")


@pytest.mark.parametrize("path", ["../model.onnx", "unet/../../model.onnx", "/etc/passwd", "C:\\model.onnx", "..\\x"])
def test_a_path_out_of_the_bundle(path: str, bundle: Path, draw) -> None:
    def point_outside(value: dict[str, Any]) -> None:
        value["files"][path] = value["files"].pop("unet/model.onnx")
        value["graphs"]["denoiser"]["full"]["file"] = path

    edit_manifest(bundle, point_outside)
    draw().assert_one_clear_error(1, "tintype.json")


def test_a_link_out_of_the_bundle(bundle: Path, draw, tiny_bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()
    (bundle / WEIGHTS).symlink_to(tiny_bundle / WEIGHTS)
    draw().assert_one_clear_error(1, WEIGHTS, "outside")


@pytest.mark.parametrize("size", [0, -1, 2**40, 10**400, None, 1.5])
def test_an_absurd_shape(size: object, bundle: Path, draw) -> None:
    def make_absurd(value: dict[str, Any]) -> None:
        value["graphs"]["denoiser"]["full"]["inputs"][0]["shape"] = [size, size, size, size]

    edit_manifest(bundle, make_absurd)
    draw().assert_one_clear_error(1)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"format_version": 1}'])
def test_a_manifest_that_is_none(text: str, bundle: Path, draw) -> None:
    (bundle / "tintype.json").write_text(text)
    draw().assert_one_clear_error(1, "tintype.json")


def test_a_model_whose_output_is_nan(bundle: Path, draw) -> None:
    spoil_weights(bundle)
    draw().assert_one_clear_error(1, "NaN")


def spoil_weights(bundle: Path) -> None:
    """Every fp32 weight matrix and filter of the denoiser becomes NaN, and the manifest agrees with the bytes."""
    import onnx
    from onnx import numpy_helper

    graph_path = bundle / "unet" / "model.onnx"
    model = onnx.load(graph_path)
    data_file = graph_path.with_name("model.onnx_data")
    data_file.unlink(missing_ok=True)
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2:  # not the scales of a Resize
            spoiled = np.full(tuple(tensor.dims), np.nan, dtype=np.float32)
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(spoiled, tensor.name))
    onnx.save(model, graph_path, save_as_external_data=True, location=data_file.name)
    manifest, _ = read_manifest(bundle)
    write_manifest(bundle, dataclasses.replace(manifest, files=file_facts(bundle)))
