"""Which family a checkpoint is of, what its first picture is drawn with, and what is said of others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from families import VARIANTS, save_tiny_vae

from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint, load_tiny_vae, open_checkpoint
from tintype.export.defaults import usual_request
from tintype.export.sources.replacement import with_tiny_vae
from tintype.export.sources.source import SourceOptions
from tintype.sources.families import FAMILIES, check_configs, family_of
from tintype.sources.foreign import FOREIGN
from tintype.sources.header import read_header

FOLDER = Path("some-model")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def asked(checkpoint: Checkpoint, few_steps: int | None = None) -> tuple[Any, ...]:
    request = usual_request(checkpoint, few_steps)
    return request.num_inference_steps, request.sampler, request.sigmas, request.guidance_scale


PLAIN = (20, "dpmpp_2m", None, 7.5)
TURBO = (1, "euler_a", "trailing", 1.0)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("stable-diffusion-v1-5", PLAIN),
        ("hyperrealistic-v3", PLAIN),
        ("sd-turbo", TURBO),
        ("SDXL_Turbo", TURBO),
        ("dreamshaper-xl-v2-turbo", (4, "euler_a", "trailing", 1.0)),
        ("sdxl_lightning_2step_unet", (2, "euler", "trailing", 1.0)),
        ("RealVisXL-V5.0-Lightning", (4, "euler", "trailing", 1.0)),
        ("Hyper-SDXL-4steps-merged", (4, "ddim", "trailing", 1.0)),
        ("dmd2_sdxl_4step", (4, "lcm", None, 1.0)),
        ("LCM_Dreamshaper_v7", (4, "lcm", None, 1.0)),
        ("sdxs-512-0.9", (1, "euler", "trailing", 1.0)),
    ],
)
@pytest.mark.parametrize("where", ["folder", "_name_or_path", "base_model"])
def test_a_distilled_model_is_known_by_its_name(
    checkpoint_copy: Path, tmp_path: Path, name: str, wanted: tuple[Any, ...], where: str
) -> None:
    if where == "folder":
        checkpoint_copy = checkpoint_copy.rename(tmp_path / name)
    elif where == "_name_or_path":
        change_json(checkpoint_copy / "unet/config.json", _name_or_path=f"/lightning/somebody/{name}")
    else:
        (checkpoint_copy / "README.md").write_text(f"---\nlicense: mit\nbase_model: x/{name}\n---\nAs sdxl-turbo does.")
    assert asked(open_checkpoint(checkpoint_copy)) == wanted


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, TURBO),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, TURBO),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, PLAIN),
        ({"_class_name": "LCMScheduler"}, (4, "lcm", None, 1.0)),
        ({"_class_name": "TCDScheduler"}, (4, "tcd", None, 1.0)),
    ],
    ids=str,
)
def test_a_distilled_model_is_known_by_its_scheduler(
    checkpoint_copy: Path, scheduler: dict[str, Any], wanted: tuple[Any, ...]
) -> None:
    change_json(checkpoint_copy / "scheduler/scheduler_config.json", **scheduler)
    assert asked(open_checkpoint(checkpoint_copy)) == wanted


def test_where_no_name_tells_the_user_does(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    assert asked(checkpoint) == PLAIN
    assert asked(checkpoint, 3) == (3, "euler", "trailing", 1.0)
    for steps in (0, 33):
        with pytest.raises(ExportError, match=f"{steps} steps"):
            usual_request(checkpoint, steps)


def test_more_levels_than_a_picture_has_pixels_are_refused(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    for part in ("unet", "vae"):
        checkpoint.configs[part]["block_out_channels"] = [8] * 16  # type: ignore[index]
    with pytest.raises(ExportError, match="levels"):
        usual_request(checkpoint)


def test_zero_terminal_snr_is_spaced_to_the_last_timestep_and_rescaled(xl_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(xl_checkpoint)
    checkpoint.configs["scheduler"] |= {  # type: ignore[index]
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    assert asked(checkpoint) == (28, "euler", "trailing", 5.0)
    assert usual_request(checkpoint).guidance_rescale == 0.7


def configs_of(variant_name: str, plain: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Index and configs of a family's checkpoint."""
    variant = VARIANTS[variant_name]
    index = {**json.loads((plain / "model_index.json").read_text()), "_class_name": variant.pipeline, **variant.index}
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    configs = {
        part: json.loads((plain / part / "config.json").read_text()) for part in parts if (plain / part).is_dir()
    }
    configs["scheduler"] = json.loads((plain / "scheduler/scheduler_config.json").read_text())
    configs["unet"] |= variant.unet
    return index, configs


HOSTILE: tuple[dict[str, Any], ...] = (
    {"layers_per_block": 10**9},
    {"transformer_layers_per_block": [1, [10**9]]},
    {"layers_per_block": "2"},
    {"time_cond_proj_dim": 2},
    {"time_cond_proj_dim": 10**6},
)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_each_familys_configs_are_taken_and_others_of_it_refused(
    name: str, tiny_checkpoint: Path, xl_checkpoint: Path
) -> None:
    plain = tiny_checkpoint if VARIANTS[name].base == "sd" else xl_checkpoint
    index, configs = configs_of(name, plain)
    family = family_of(FOLDER, index)
    wanted = {"instruct-pix2pix": "instruct-pix2pix", "refiner": "stable-diffusion-xl-refiner"}
    usual = "stable-diffusion" if VARIANTS[name].base == "sd" else "stable-diffusion-xl"
    assert family.name == wanted.get(name, usual)
    check_configs(family, configs)
    for option in ({"num_class_embeds": 1000}, {"class_embed_type": "timestep"}, {"in_channels": 7}, *HOSTILE):
        with pytest.raises(ExportError):
            check_configs(family, {**configs, "unet": {**configs["unet"], **option}})
    if VARIANTS[name].base == "xl":
        with pytest.raises(ExportError, match="belong together"):
            check_configs(family, {**configs, "unet": {**configs["unet"], "projection_class_embeddings_input_dim": 96}})


def test_an_image_to_image_index_of_xl_with_both_encoders_is_plain_xl(xl_checkpoint: Path) -> None:
    index, _ = configs_of("ssd-1b", xl_checkpoint)
    assert family_of(FOLDER, {**index, "_class_name": "StableDiffusionXLImg2ImgPipeline"}).name == "stable-diffusion-xl"


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"_class_name": "FluxPipeline"}, "it looks like FLUX, which would need"),
        ({"_class_name": "Flux2Pipeline"}, "FLUX.2"),
        ({"_class_name": "StableDiffusion3Img2ImgPipeline"}, "Stable Diffusion 3, which would need"),
        ({"_class_name": "PixArtSigmaPipeline"}, "T5"),
        ({"_class_name": "WanPipeline"}, "frames"),
        ({"_class_name": "StableDiffusionUpscalePipeline"}, "noise level"),
        ({"_class_name": "NewPipeline", "transformer": ["diffusers", "NewTransformer2DModel"]}, "a transformer"),
        ({"_class_name": ["\x1b[2J"]}, "doesn't know"),
        ({}, "None"),
    ],
    ids=str,
)
def test_what_is_not_done_is_named_by_what_it_looks_like(index: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError) as caught:
        family_of(FOLDER, index)
    assert words in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "StableDiffusionXLPipeline" in caught.value.fix


def test_no_family_that_is_done_is_called_foreign_too() -> None:
    starts = list(FOREIGN)
    for index, start in enumerate(starts):
        assert not [earlier for earlier in starts[:index] if start.startswith(earlier)], f"{start} is never reached"
    done = {pipeline for family in FAMILIES for pipeline in family.pipelines}
    assert not [pipeline for pipeline in done for start in starts if pipeline.startswith(start)]


def test_a_tiny_autoencoder_is_taken_from_a_folder_and_refused_where_it_does_not_fit(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def beside(source: Path) -> Checkpoint:
        return open_checkpoint(tiny_checkpoint, SourceOptions(tiny_vae=source))

    save_tiny_vae(tmp_path / "tiny")
    plain = open_checkpoint(tiny_checkpoint)
    checkpoint = beside(tmp_path / "tiny")
    assert checkpoint.components == (*plain.components, "tiny_vae")
    assert checkpoint.sha256() == plain.sha256() != checkpoint.source.sha256_of_given("tiny_vae")
    load_tiny_vae(checkpoint)
    file = tmp_path / "tiny/diffusion_pytorch_model.safetensors"
    for source, words in (
        (tmp_path / "nowhere", "no tiny autoencoder"),
        (file, "factor 8"),  # without a config it is TAESD's shape, which this checkpoint's VAE isn't of
        (tiny_checkpoint / "vae", "AutoencoderKL"),
    ):
        with pytest.raises(ExportError, match=words) as caught:
            beside(source)
        assert caught.value.fix
    for changes, words in (
        ({"latent_channels": 16}, "belong together"),
        ({"latent_channels": "4"}, "latent_channels"),
        ({"block_out_channels": [8] * 99}, "block_out_channels"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"num_decoder_blocks": [1, 10**9, 1]}, "num_decoder_blocks"),
    ):
        config = json.loads((tmp_path / "tiny/config.json").read_text())
        change_json(tmp_path / "tiny/config.json", **changes)
        with pytest.raises(ExportError, match=words):
            beside(tmp_path / "tiny")
        (tmp_path / "tiny/config.json").write_text(json.dumps(config))


def authors_naming(folder: Path, place: Path) -> None:
    """TAESD's two files, as its authors write them, of a folder of diffusers: the decoder begins with a clamp."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    for half, first in (("encoder", 0), ("decoder", 1)):
        layers = {name.removeprefix(f"{half}.layers."): tensor for name, tensor in state.items() if half in name}
        numbered = {}
        for name, tensor in layers.items():
            number, _, rest = name.partition(".")
            numbered[f"{int(number) + first}.{rest}"] = tensor
        save_file(numbered, place / f"taesd_{half}.safetensors")


def test_taesd_in_its_authors_naming_is_the_same_module(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its usual shape, of factor 8, as its authors publish it: both halves are found from either file."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(5)
    tiny = AutoencoderTiny()
    tiny.save_pretrained(tmp_path / "tiny")
    authors_naming(tmp_path / "tiny", tmp_path)
    decoder, encoder = (tmp_path / f"taesd_{half}.safetensors" for half in ("decoder", "encoder"))
    assert {"1.weight", "3.conv.0.weight", "19.bias"} <= read_header(decoder).tensors.keys()
    plain = open_checkpoint(tiny_checkpoint)
    for given in (decoder, encoder):
        source = with_tiny_vae(plain.source, given)
        found = load_tiny_vae(dataclasses.replace(plain, source=source)).state_dict()
        assert found.keys() == tiny.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tiny.state_dict().items())
        assert source.sha256_of_given("tiny_vae") == with_tiny_vae(plain.source, decoder).sha256_of_given("tiny_vae")
    encoder.rename(tmp_path / "elsewhere.safetensors")
    for given, words in ((decoder, "alone"), (tmp_path / "elsewhere.safetensors", "alone")):
        with pytest.raises(ExportError, match=words) as caught:
            with_tiny_vae(plain.source, given)
        assert "beside it" in caught.value.fix
    decoder.with_name("taesd_encoder.safetensors").write_bytes(decoder.read_bytes())
    with pytest.raises(ExportError, match="isn't the encoder"):
        with_tiny_vae(plain.source, decoder)
