"""What people publish is read as it is; what can't be read is refused by name, with a remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tintype.errors import ExportError
from tintype.export.checkpoint import load_text_encoder, load_unet, load_vae, open_checkpoint
from tintype.export.tokenizer import read_tokenizer, write_tokenizer

TEXT = "text_encoder/model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def read_all(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    load_text_encoder(checkpoint)
    load_vae(checkpoint)
    load_unet(checkpoint)


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(ExportError) as caught:
        read_all(folder)
    for word in words:
        assert word in caught.value.message
    assert caught.value.fix


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "nowhere")


def test_a_folder_of_something_else_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    assert_refused(tmp_path, "model_index.json", "holiday.jpg")


def test_an_unknown_pipeline_is_named(checkpoint_copy: Path) -> None:
    change_json(checkpoint_copy / "model_index.json", _class_name="FluxPipeline")
    assert_refused(checkpoint_copy, "FluxPipeline")


@pytest.mark.parametrize(("component", "name"), [("unet", "SD3Transformer2DModel"), ("text_encoder", "T5EncoderModel")])
def test_an_unknown_component_is_named(checkpoint_copy: Path, component: str, name: str) -> None:
    change_json(checkpoint_copy / "model_index.json", **{component: ["diffusers", name]})
    assert_refused(checkpoint_copy, component, name)


def test_a_unet_that_needs_other_inputs_is_refused(checkpoint_copy: Path) -> None:
    change_json(checkpoint_copy / "unet/config.json", addition_embed_type="text_time")
    assert_refused(checkpoint_copy, "addition_embed_type")


@pytest.mark.parametrize("channels", [3, 5, 7, 8, 10])
def test_a_model_with_other_channels_is_refused_as_such(checkpoint_copy: Path, channels: int) -> None:
    change_json(checkpoint_copy / "unet/config.json", in_channels=channels)
    assert_refused(checkpoint_copy, f"takes {channels} channels", "depth")


def test_a_unet_that_gives_more_than_latents_is_refused(checkpoint_copy: Path) -> None:
    change_json(checkpoint_copy / "unet/config.json", out_channels=8)
    assert_refused(checkpoint_copy, "gives 8 channels")


def test_parts_that_do_not_belong_together_are_refused(checkpoint_copy: Path) -> None:
    change_json(checkpoint_copy / "unet/config.json", cross_attention_dim=768)
    assert_refused(checkpoint_copy, "768", "belong together")


def test_an_unknown_prediction_type_is_named(checkpoint_copy: Path) -> None:
    change_json(checkpoint_copy / "scheduler/scheduler_config.json", prediction_type="flow")
    assert_refused(checkpoint_copy, "flow")


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_broken_config_is_named(checkpoint_copy: Path, file: str, text: str) -> None:
    (checkpoint_copy / file).write_text(text, errors="surrogateescape")
    assert_refused(checkpoint_copy, file)


def test_a_missing_config_is_named(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "vae/config.json").unlink()
    assert_refused(checkpoint_copy, "vae/config.json", "missing")


def test_missing_weights_are_named(checkpoint_copy: Path) -> None:
    (checkpoint_copy / UNET).unlink()
    assert_refused(checkpoint_copy, "unet", "no weights")


@pytest.mark.parametrize("file", [TEXT, UNET, VAE])
def test_weights_that_were_cut_short_are_named(checkpoint_copy: Path, file: str) -> None:
    whole = (checkpoint_copy / file).read_bytes()
    (checkpoint_copy / file).write_bytes(whole[: len(whole) // 2])
    assert_refused(checkpoint_copy, file, "broken")


def test_weights_that_are_no_weights_are_named(checkpoint_copy: Path) -> None:
    (checkpoint_copy / UNET).write_bytes(b"<html>404</html>")
    assert_refused(checkpoint_copy, UNET, "broken")


def test_a_pickle_is_refused_and_never_opened(checkpoint_copy: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (checkpoint_copy / UNET).unlink()
    for content in (Hostile(), {"conv_in.bias": torch.zeros(1)}):
        torch.save(content, checkpoint_copy / "unet/diffusion_pytorch_model.bin")
        assert_refused(checkpoint_copy, "diffusion_pytorch_model.bin", "pickle")
    assert not (tmp_path / "ran").exists()


def test_a_lacking_an_unknown_and_a_misshapen_weight_are_named(checkpoint_copy: Path) -> None:
    state = load_file(checkpoint_copy / UNET)
    for name, changed in {
        "lacks conv_in.weight": {key: value for key, value in state.items() if key != "conv_in.weight"},
        "unknown stray": {**state, "stray": torch.zeros(1)},
        "conv_in.bias is (5,)": {**state, "conv_in.bias": torch.zeros(5)},
    }.items():
        save_file(changed, checkpoint_copy / UNET)
        assert_refused(checkpoint_copy, UNET, name)


def test_nan_weights_are_named(checkpoint_copy: Path) -> None:
    state = load_file(checkpoint_copy / VAE)
    state["decoder.conv_in.bias"][0] = torch.nan
    save_file(state, checkpoint_copy / VAE)
    assert_refused(checkpoint_copy, "decoder.conv_in.bias", "NaN")


def test_a_config_that_makes_no_model_is_refused(checkpoint_copy: Path) -> None:
    change_json(checkpoint_copy / "unet/config.json", down_block_types=["NoSuchBlock2D"] * 2)
    assert_refused(checkpoint_copy, "unet/config.json")


def test_text_encoders_with_and_without_the_prefix_are_the_same(tiny_checkpoint: Path, checkpoint_copy: Path) -> None:
    state = load_file(checkpoint_copy / TEXT)
    bare = {name.removeprefix("text_model."): value for name, value in state.items()}
    old = {f"text_model.{name}": value for name, value in bare.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    expected = load_text_encoder(open_checkpoint(tiny_checkpoint))
    for form in (bare, old):
        save_file(form, checkpoint_copy / TEXT)
        assert same(load_text_encoder(open_checkpoint(checkpoint_copy)), expected)


def test_old_names_of_the_vaes_attention_are_read(tiny_checkpoint: Path, checkpoint_copy: Path) -> None:
    old = {}
    for name, value in load_file(checkpoint_copy / VAE).items():
        for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f".{new}.weight" in name:
                value = value[:, :, None, None].contiguous()
            name = name.replace(f".{new}.", f".{former}.")
        old[name] = value
    assert any("proj_attn" in name for name in old)
    save_file(old, checkpoint_copy / VAE)
    assert same(load_vae(open_checkpoint(checkpoint_copy)), load_vae(open_checkpoint(tiny_checkpoint)))


def test_fp16_variants_and_shards_are_read(tiny_checkpoint: Path, checkpoint_copy: Path) -> None:
    state = load_file(checkpoint_copy / UNET)
    (checkpoint_copy / UNET).unlink()
    half = {name: value.half() for name, value in state.items()}
    save_file(half, checkpoint_copy / "unet/diffusion_pytorch_model.fp16.safetensors")
    found = load_unet(open_checkpoint(checkpoint_copy)).state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, half[name].float()) for name, value in found.items())
    (checkpoint_copy / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, checkpoint_copy / "unet" / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (checkpoint_copy / f"{UNET}.index.json").write_text(json.dumps(index))
    assert same(load_unet(open_checkpoint(checkpoint_copy)), load_unet(open_checkpoint(tiny_checkpoint)))
    (checkpoint_copy / "unet/b.safetensors").unlink()
    assert_refused(checkpoint_copy, "b.safetensors")


def test_a_shard_index_that_points_outside_is_refused(checkpoint_copy: Path) -> None:
    shutil.move(checkpoint_copy / UNET, checkpoint_copy / "stolen.safetensors")
    index = {"weight_map": {"conv_in.weight": "../stolen.safetensors"}}
    (checkpoint_copy / f"{UNET}.index.json").write_text(json.dumps(index))
    assert_refused(checkpoint_copy, "../stolen.safetensors")


def test_the_checkpoints_hash_sees_every_byte_of_its_weights(tiny_checkpoint: Path, checkpoint_copy: Path) -> None:
    before = open_checkpoint(checkpoint_copy).sha256()
    assert before == open_checkpoint(tiny_checkpoint).sha256()
    content = bytearray((checkpoint_copy / VAE).read_bytes())
    content[-1] ^= 1
    (checkpoint_copy / VAE).write_bytes(content)
    assert open_checkpoint(checkpoint_copy).sha256() != before


def test_a_missing_or_empty_tokenizer_is_refused(checkpoint_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="tokenizer"):
        read_tokenizer(tmp_path / "empty", 77, 49408)
    with pytest.raises(ExportError, match="knows 100"):
        read_tokenizer(checkpoint_copy / "tokenizer", 77, 100)
    shutil.rmtree(checkpoint_copy / "tokenizer")
    assert_refused(checkpoint_copy, "tokenizer")


@pytest.mark.parametrize("text", ["", "a red sailboat on a calm sea", "Émile 🎈 42!", "word " * 200])
def test_the_bundles_tokenizer_gives_the_ids_of_diffusers(tiny_checkpoint: Path, tmp_path: Path, text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = read_tokenizer(tiny_checkpoint / "tokenizer", 77, 49408)
    expected = tokenizer.ids(text)
    write_tokenizer(tokenizer, tiny_checkpoint / "tokenizer", tmp_path / "tokenizer")
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer/tokenizer.json")).encode(text).ids
    facts = tokenizer.facts
    cut = [*ids[:76], facts.eos_token_id] if len(ids) > 77 else ids
    assert cut + [facts.pad_token_id] * (77 - len(cut)) == expected
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {p.name for p in (tmp_path / "tokenizer").iterdir()}
