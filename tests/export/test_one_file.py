"""A file in latent-diffusion's naming is the folder that it was made of: the same modules, the same bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_file import FAMILIES, UNET, VAE, ldm_unet_state, ldm_vae_state, open_clip_state, parts_of, write_one_file
from one_file import save_folder as save_published
from safetensors.torch import load_file, save_file

import tintype
from tintype import strict_json
from tintype.bundle import Source, open_bundle
from tintype.cli import run
from tintype.errors import ExportError
from tintype.export import Effort
from tintype.export.checkpoint import Checkpoint, demand_tensors, load, load_unet, open_checkpoint
from tintype.export.sources.ldm_unet import LdmUNet
from tintype.export.sources.source import SourceOptions
from tintype.export.writing import source_of
from tintype.files import sha256_of
from tintype.sampling.scheduler_config import SchedulerConfig
from tintype.sources.facts import describe

Published = Callable[[str], Path]
# What a config holds that isn't the model's: how it was saved, and sizes of pictures that no shape says.
NOT_THE_MODELS = ("_class_name", "_diffusers_version", "_use_default_values", "_name_or_path", "sample_size")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(path: Path, folder: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(path, SourceOptions(tokenizer=folder, **options))


def assert_same_modules(found: Checkpoint, expected: Checkpoint, *components: str) -> None:
    """Every weight, and every setting of the module that holds them."""
    for component in components or expected.family.components:
        one, other = load(found, component), load(expected, component)
        first, second = one.state_dict(), other.state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), component
        assert settings(one) == settings(other)


def settings(module: Any) -> dict[str, Any]:
    config = module.config if isinstance(module.config, dict) else module.config.to_dict()
    told = {name: value for name, value in dict(config).items() if name not in NOT_THE_MODELS}
    return json.loads(json.dumps(told))  # tuples as lists


def test_a_file_makes_the_modules_of_its_folder(family: str, published: Published, tmp_path: Path) -> None:
    folder = published(family)
    path = write_one_file(folder, tmp_path / "one.safetensors", family)
    found, expected = opened(path, folder), open_checkpoint(folder)
    assert found.family == expected.family
    assert found.index["_class_name"] == expected.index["_class_name"]
    assert_same_modules(found, expected)
    one, other = (SchedulerConfig.from_json(checkpoint.configs["scheduler"]) for checkpoint in (found, expected))
    assert one == other  # all that a sampler here reads
    assert found.force_zeros_for_empty_prompt == expected.force_zeros_for_empty_prompt


@pytest.mark.reference
def test_the_tests_own_naming_is_the_published_one(published: Published) -> None:
    from diffusers.loaders import single_file_utils as published_naming

    for family in FAMILIES:
        folder, parts = published(family), parts_of(published(family))
        unet, vae = (json.loads((folder / name / "config.json").read_text()) for name in ("unet", "vae"))
        written = {UNET + name: tensor for name, tensor in ldm_unet_state(parts["unet"]).items()}
        assert_same(published_naming.convert_ldm_unet_checkpoint(written, unet), parts["unet"])
        written = {VAE + name: tensor for name, tensor in ldm_vae_state(parts["vae"]).items()}
        assert_same(published_naming.convert_ldm_vae_checkpoint(written, vae), parts["vae"])
    words = parts_of(published("xl"))["text_encoder_2"]
    written = {f"p.{name}": tensor for name, tensor in open_clip_state(words).items()}
    converted = published_naming.convert_open_clip_checkpoint(torch.nn.Module(), written, prefix="p.")
    bare = {name.removeprefix("text_model."): tensor for name, tensor in words.items()}
    assert_same({name.removeprefix("text_model."): tensor for name, tensor in converted.items()}, bare)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("sd1", {"mid_block_type": None}),  # BK-SDM, small and tiny
        ("xl", {"mid_block_type": "UNetMidBlock2D"}),  # Segmind Vega
        (
            "xl",  # SSD-1B: other depths in each layer
            {
                "layers_per_block": 2,
                "transformer_layers_per_block": [1, [2, 1]],
                "reverse_transformer_layers_per_block": [[1, 2, 3], 1],
                "mid_block_type": "UNetMidBlock2D",
            },
        ),
    ],
    ids=["no-middle", "middle-without-attention", "depths-of-their-own"],
)
def test_a_pruned_unet_is_read_as_it_is(
    family: str, options: dict[str, Any], xl_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain = xl_checkpoint if family == "xl" else tiny_checkpoint
    folder = save_published(plain, tmp_path / "folder", family, **options)
    path = write_one_file(folder, tmp_path / "one.safetensors", family)
    assert_same_weights = load_unet(opened(path, folder)).state_dict()
    assert_same(assert_same_weights, load_unet(open_checkpoint(folder)).state_dict())


def test_the_guidance_that_an_lcm_is_told_is_in_its_config(published: Published, tiny_checkpoint: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = json.loads((published("sd1") / "unet/config.json").read_text())
    expected = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 32}).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in ldm_unet_state(expected).items()}
    unet = LdmUNet.of(tiny_checkpoint, shapes)
    assert set(unet.names().values()) == set(expected)
    assert unet.config(is_sd1=True, sample_size=16, projection_dim=0, time_ids=0)["time_cond_proj_dim"] == 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_weights_of_every_published_type_are_read(dtype: torch.dtype, published: Published, tmp_path: Path) -> None:
    folder = published("sd1")
    path = write_one_file(folder, tmp_path / "one.safetensors", "sd1", dtype=dtype, prefix="")
    found = load_unet(opened(path, folder)).state_dict()
    for name, expected in parts_of(folder)["unet"].items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], expected.to(dtype).float())


def test_averaged_weights_are_never_taken(published: Published, tmp_path: Path) -> None:
    def without_plain(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith(UNET)]:
            del state[name]

    path = write_one_file(published("sd1"), tmp_path / "one.safetensors", "sd1", change=without_plain)
    with pytest.raises(ExportError, match="EMA"):
        opened(path, published("sd1"))


def test_a_vae_may_be_given_in_every_form(published: Published, tmp_path: Path) -> None:
    """A file in either naming, and a folder; each takes the place of the file's own, or of none."""
    folder, other = published("xl"), published("sd1")

    def without_vae(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith(VAE)]:
            del state[name]

    bare = write_one_file(folder, tmp_path / "bare.safetensors", "xl", change=without_vae)
    whole = write_one_file(folder, tmp_path / "whole.safetensors", "xl")
    with pytest.raises(ExportError, match="no VAE") as caught:
        opened(bare, folder)
    assert "--vae" in caught.value.fix
    state = load_file(other / "vae/diffusion_pytorch_model.safetensors")
    forms = {"diffusers": state, "ldm": ldm_vae_state(state), "checkpoint": {}}
    for name, tensors in forms.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
    write_one_file(other, tmp_path / "checkpoint.safetensors", "sd1")
    expected = load(open_checkpoint(other), "vae").state_dict()
    for given in (*(tmp_path / f"{name}.safetensors" for name in forms), other / "vae", other):
        for path in (bare,) if given.is_dir() else (whole, folder):
            found = opened(path, folder, vae=given)
            assert_same(load(found, "vae").state_dict(), expected)
            source = source_of(found)
            assert source.vae is not None
            assert source.vae.location == ("vae" if given.is_dir() else given.name)
            assert source.vae.sha256 not in (None, source.sha256)
            assert strict_json.read(Source, strict_json.plain(source)) == source
            scaling_factor = 0.18215 if given.is_dir() else 0.13025  # a file has none, and XL's own stays
            assert found.configs["vae"]["scaling_factor"] == scaling_factor
    with pytest.raises(ExportError, match="no VAE with both halves"):
        opened(bare, folder, vae=folder / "unet/diffusion_pytorch_model.safetensors")


def marked(*marks: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({mark: torch.empty(0) for mark in marks})


@pytest.mark.parametrize(
    ("family", "marks", "metadata", "given", "kind", "assumed"),
    [
        ("sd1", (), {}, None, "epsilon", True),
        ("sd1", (), {}, "v_prediction", "v_prediction", True),
        ("sd2", (), {}, None, "v_prediction", True),
        ("sd2", (), {"modelspec.architecture": "stable-diffusion-v2-512"}, None, "epsilon", False),
        ("sd2", (), {"modelspec.prediction_type": "epsilon"}, None, "epsilon", False),
        ("xl", ("v_pred", "ztsnr"), {}, None, "v_prediction", False),
    ],
)
def test_what_a_unet_predicts_is_marked_given_or_assumed_aloud(
    family: str,
    marks: tuple[str, ...],
    metadata: dict[str, str],
    given: str | None,
    kind: str,
    assumed: bool,
    published: Published,
    tmp_path: Path,
) -> None:
    folder = published(family)
    path = write_one_file(folder, tmp_path / "one.safetensors", family, metadata=metadata, change=marked(*marks))
    found = opened(path, folder, prediction_type=given)
    assert found.prediction_type == kind
    assert [kind in sentence for sentence in found.source.assumed] == [True] * assumed
    assert found.configs["scheduler"].get("rescale_betas_zero_snr", False) is ("ztsnr" in marks)
    told = describe(path).prediction
    assert told is not None
    assert given is not None or told.kind == kind
    with pytest.raises(ExportError, match="'flow' isn't one"):
        opened(path, folder, prediction_type="flow")


def test_without_a_tokenizer_it_is_said_what_to_fetch(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And CLIP's is taken from the hub's cache, where one lies in the layout that huggingface_hub gives it."""
    import huggingface_hub.constants

    path = write_one_file(published("sd2"), tmp_path / "one.safetensors", "sd2")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ExportError, match="tokenizer") as caught:
        open_checkpoint(path)
    assert "vocab.json and merges.txt" in caught.value.fix
    with pytest.raises(ExportError, match="neither"):
        open_checkpoint(path, SourceOptions(tokenizer=tmp_path))
    repository = tmp_path / "hub/models--openai--clip-vit-large-patch14"
    snapshot = repository / "snapshots/0123456789abcdef"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(snapshot.name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).symlink_to(published("sd2") / "tokenizer" / name)
    place = open_checkpoint(path).tokenizers["tokenizer"]
    assert (place.folder, place.pad_token) == (snapshot, "!")


def test_what_is_missing_or_misshapen_is_named_before_weights_are_read(published: Published, tmp_path: Path) -> None:
    folder = published("xl")

    def demand_all(path: Path) -> None:
        checkpoint = opened(path, folder)
        for component in checkpoint.family.components:
            demand_tensors(checkpoint, component)

    def refusal(change: Callable[[dict[str, Any]], object]) -> str:
        path = write_one_file(folder, tmp_path / "one.safetensors", "xl", change=change)
        with pytest.raises(ExportError) as caught:
            demand_all(path)
        return caught.value.message

    lacking = [f"{UNET}output_blocks.{block}.0.in_layers.0.{end}" for block in range(4) for end in ("weight", "bias")]
    told = refusal(lambda state: [state.pop(name) for name in lacking])
    assert "up_blocks.0.resnets.0.norm1.bias" in told
    assert "and 3 more" in told
    told = refusal(lambda state: state.update({f"{VAE}decoder.conv_in.bias": torch.zeros(5)}))
    assert "decoder.conv_in.bias is (5,)" in told
    told = refusal(lambda state: state.update({f"{UNET}stray.weight": torch.zeros(5)}))
    assert "unknown stray.weight" in told
    told = refusal(lambda state: state.update({f"{UNET}stray.scale_weight": torch.zeros(5)}))
    assert "stray.scale_weight scales" in told
    told = refusal(lambda state: state.update({f"{UNET}conv_in.bias": torch.zeros(64)}))
    assert (
        f"{UNET}input_blocks.0.0.bias are the same tensor" in told or f"{UNET}conv_in.bias are the same tensor" in told
    )
    told = refusal(lambda state: state.pop(f"{UNET}input_blocks.2.0.op.weight"))
    assert "levels" in told


def test_an_assumption_is_said_before_the_work_begins(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_one_file(published("sd2"), tmp_path / "one.safetensors", "sd2")
    (tmp_path / "taken").write_text("mine")
    capsys.readouterr()
    assert run(["export", str(path), str(tmp_path / "taken"), "--tokenizer", str(published("sd2"))]) == 1
    note, error, fix = capsys.readouterr().err.splitlines()
    assert note.startswith("note: prediction_type is v_prediction, as 2.x of 768 pixels was")
    assert "is a file" in error
    assert fix


@pytest.mark.slow
@pytest.mark.long
def test_the_bundle_of_a_file_is_that_of_its_folder(
    published: Published, tiny_checkpoint: Path, export_once: Callable[..., Path], tmp_path: Path
) -> None:
    """Byte for byte in its graphs, their weights and its tokenizer; and so is a picture."""
    folder = published("sd2")
    metadata = {"modelspec.license": "CC0-1.0", "modelspec.title": "One"}
    path = write_one_file(folder, tmp_path / "one.safetensors", "sd2", metadata=metadata)
    effort = Effort(steps=1, calibration_prompts=1, gate_prompts=1, gate_calls=1, latent_size=8)
    common = {"effort": effort, "prompts": ["a red sailboat"]}
    options = SourceOptions(tokenizer=tiny_checkpoint)  # the same words, filled up otherwise
    bundles = [
        open_bundle(export_once("sd2-of-file", path, options=options, **common)),
        open_bundle(export_once("sd2-of-folder", folder, **common)),
    ]
    one, other = (bundle.manifest for bundle in bundles)
    same = [name for name in other.files if not name.endswith(("config.json", "model_index.json"))]
    assert {name: one.files[name] for name in same} == {name: other.files[name] for name in same}
    assert sum(name.endswith(".onnx_data") for name in same) == 4
    assert one.tokenizer == other.tokenizer
    assert one.prediction_type == other.prediction_type == "v_prediction"
    assert (one.licence, one.source.location, one.source.sha256) == ("CC0-1.0", "one.safetensors", sha256_of(path))
    assert one.source.origin["title"] == "One"
    assert ["v_prediction" in sentence for sentence in one.source.assumed] == [True]
    pixels = []
    for bundle in bundles:
        with tintype.load(bundle.folder, provider="cpu") as pipeline:
            result = pipeline.generate("a red sailboat", width=64, height=64, num_inference_steps=2, seed=7)
            pixels.append(result.image.tobytes())
    assert pixels[0] == pixels[1]
