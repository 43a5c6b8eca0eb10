"""Files of LoRAs: every type of number, and what is broken, empty or something else is refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deadline import deadline
from safetensors.numpy import save_file

from tintype.adapters.files import open_adapter
from tintype.bounds import MAX_ADAPTER_TENSOR_BYTES
from tintype.errors import LoraError

DOWN = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
UP = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)
PLAIN = {"lora_unet_x.lora_down.weight": DOWN, "lora_unet_x.lora_up.weight": UP}


def saved(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(("kind", "off"), [(np.float16, 1e-3), (np.float32, 0.0), (np.float64, 0.0)])
def test_numbers_of_every_type_are_read(tmp_path, kind, off):
    file = open_adapter(saved(tmp_path / "a.safetensors", {name: each.astype(kind) for name, each in PLAIN.items()}))
    down, up = file.read(*PLAIN)
    np.testing.assert_allclose(down, DOWN, atol=off)
    np.testing.assert_allclose(up, UP, atol=off)
    assert down.dtype == np.float32


def test_so_is_bfloat16(tmp_path):
    """Its bits are the upper half of a float's."""
    halves = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in PLAIN.items()}
    offset, header = 0, {}
    for name, array in halves.items():
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in halves.values())
    (tmp_path / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (down, _) = open_adapter(tmp_path / "b.safetensors").read(*PLAIN)
    np.testing.assert_allclose(down, DOWN, rtol=2**-7)


def test_alpha_is_the_files_or_what_its_metadata_tells(tmp_path):
    alpha = {"lora_unet_x.alpha": np.array(2.5, np.float16)}
    (layer,) = open_adapter(saved(tmp_path / "a.safetensors", {**PLAIN, **alpha})).layers.values()
    assert layer.alpha == 2.5
    (layer,) = open_adapter(saved(tmp_path / "b.safetensors", PLAIN)).layers.values()
    assert layer.alpha is None
    tensors = {
        f"unet.{place}.lora_{part}.weight": array
        for place in ("a.to_q", "b.to_k")
        for part, array in (("A", DOWN), ("B", UP))
    }
    told = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"b.to_k": 3}}
    file = open_adapter(saved(tmp_path / "c.safetensors", tensors, {"lora_adapter_metadata": json.dumps(told)}))
    assert {name: layer.alpha for name, layer in file.layers.items()} == {"unet.a.to_q": 8.0, "unet.b.to_k": 3.0}


def _with(**more: np.ndarray) -> dict[str, np.ndarray]:
    return {**PLAIN, **{f"lora_unet_x.{name.replace('__', '.')}": each for name, each in more.items()}}


def _pefts(folder: Path, name: str, config: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    tensors = {f"base_model.model.{name}.lora_{part}.weight": each for part, each in (("A", DOWN), ("B", UP))}
    return saved(folder / "adapter_model.safetensors", tensors)


@pytest.mark.parametrize(
    ("folder", "name", "layer"),
    [
        ("unet", "down_blocks.0.attentions.0.proj_in", "unet.down_blocks.0.attentions.0.proj_in"),
        ("words", "text_model.encoder.layers.0.mlp.fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder_2", "encoder.layers.0.mlp.fc1", "text_encoder_2.encoder.layers.0.mlp.fc1"),
    ],
)
def test_pefts_own_files_have_alphas_beside_them(tmp_path, folder, name, layer):
    path = _pefts(tmp_path / folder, name, {"lora_alpha": 6, "alpha_pattern": {"absent": 1}})
    first = open_adapter(path)
    assert {name: each.alpha for name, each in first.layers.items()} == {layer: 6.0}
    (tmp_path / folder / "adapter_config.json").write_text('{"lora_alpha": 60, "use_rslora": true}')
    second = open_adapter(path)
    assert second.layers[layer].alpha == pytest.approx(60 * 3**0.5)
    assert second.sha256 != first.sha256  # a record tells the two apart


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "not JSON"),
        ([], "no object"),
        ({}, "lora_alpha is no number"),
        ({"lora_alpha": "1e9"}, "no number"),
        ({"lora_alpha": 10**400}, "no number"),
    ],
    ids=["cut", "a list", "none", "a word", "absurd"],
)
def test_pefts_configs_that_make_no_sense_are_refused(tmp_path, config, words):
    with pytest.raises(LoraError) as refusal:
        open_adapter(_pefts(tmp_path / "unet", "down_blocks.0.attentions.0.proj_in", config))
    assert words in refusal.value.message
    assert "adapter_config.json" in refusal.value.message


BROKEN: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "NaN": (_with(lora_up__weight=np.where(UP > 0.9, np.nan, UP)), "NaN or infinity"),
    "infinity": (_with(alpha=np.array(np.inf, np.float32)), "NaN or infinity"),
    "float64 beyond float32": (_with(lora_up__weight=UP.astype(np.float64) * 1e300), "NaN or infinity"),
    "rank 0": ({k: a[:0] if "down" in k else a[:, :0] for k, a in PLAIN.items()}, "rank 0"),
    "half of a pair": ({"lora_unet_x.lora_down.weight": DOWN}, "incomplete: it has down alone"),
    "an alpha alone": ({"lora_unet_x.alpha": np.array(1, np.float32)}, "incomplete"),
    "two kinds in one layer": (_with(hada_w1_a=UP), "incomplete"),
    "an alpha of many numbers": (_with(alpha=np.ones(4, np.float32)), "is no number"),
    "whole numbers": ({k: a.astype(np.int32) for k, a in PLAIN.items()}, "of the type I32"),
    "something else": ({"model.weight": UP}, "is no LoRA"),
    "nothing": ({"": UP}, "is no LoRA"),
    "what isn't known beside": ({**PLAIN, "lora_unet_y.oft_blocks": UP}, "lora_unet_y.oft_blocks"),
    "PEFT's own": ({f"base_model.model.{k}": a for k, a in PLAIN.items()}, "adapter_config.json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_refused_by_name(tmp_path, case):
    tensors, words = BROKEN[case]
    refused(saved(tmp_path / "a.safetensors", tensors), words)


def refused(path: Path, words: str) -> None:
    with deadline(), pytest.raises(LoraError) as refusal:
        open_adapter(path)
    assert words in refusal.value.message
    assert str(path) in refusal.value.message
    assert refusal.value.fix
    assert "fix:" not in refusal.value.message


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _lying(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[3,4]', b'"shape":[9,9]'))


def _huge(path: Path) -> None:
    size = MAX_ADAPTER_TENSOR_BYTES + 4
    entry = {"lora_unet_x.lora_down.weight": {"dtype": "F32", "shape": [1, size // 4], "data_offsets": [0, size]}}
    text = json.dumps(entry).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


HARMS: dict[str, tuple[Any, str]] = {
    "cut": (_cut, "broken"),
    "lying": (_lying, "needs 324"),
    "huge": (_huge, "which no LoRA has"),
    "empty": (lambda path: path.write_bytes(b""), "too few for a header"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "pickle"),
    "gone": (lambda path: path.unlink(), "No such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_harmed_files_are_refused(tmp_path, harm):
    path = saved(tmp_path / "a.safetensors", PLAIN)
    do, words = HARMS[harm]
    do(path)
    refused(path, words)


def test_of_a_folder_the_file_in_it_is_named(tmp_path):
    file = saved(tmp_path / "pytorch_lora_weights.safetensors", PLAIN)
    with pytest.raises(LoraError, match="is a folder") as refusal:
        open_adapter(tmp_path)
    assert str(file) in refusal.value.fix


def test_pickles_by_their_name_are_never_opened(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"whatever")
    with pytest.raises(LoraError, match=r"is a pickle.*") as refusal:
        open_adapter(path)
    assert "safetensors" in refusal.value.fix


def test_a_file_that_changes_while_it_is_used_is_not_mixed_with_what_it_was(tmp_path):
    path = saved(tmp_path / "a.safetensors", PLAIN)
    file = open_adapter(path)
    saved(path, {name: array * 2 for name, array in PLAIN.items()})
    with pytest.raises(LoraError, match="changed while it was used"):
        list(file.read(*PLAIN))
    assert open_adapter(path).sha256 != file.sha256
