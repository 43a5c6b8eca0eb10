"""Whole pictures with LoRAs are those of diffusers with the same ones fused: 1.x, 2.x and XL, in every naming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import Variant, save_variant
from loras import ASKED, CONVOLUTIONS, TRANSFORMER, WORDS, demand_near, drawn_by, files, pairs, save_kohya
from pictures import PROMPT

import tintype
from tintype.errors import RecordError

__all__ = ["files"]  # the fixture


def drawn_by_diffusers(checkpoint: Path, loras: dict[Path, float], *, xl: bool = False) -> np.ndarray:
    """One picture by Euler's method of diffusers' pipeline with LoRAs fused into its weights."""
    import diffusers

    kind = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    pipe = kind.from_pretrained(checkpoint, **({} if xl else {"safety_checker": None}))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    for number, file in enumerate(loras):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"a{number}")
    if loras:
        pipe.set_adapters([f"a{number}" for number in range(len(loras))], list(loras.values()))
        pipe.fuse_lora(adapter_names=[f"a{number}" for number in range(len(loras))])
    return drawn_by(pipe)


PARITY = [
    ("kohya", {"kohya": 0.8}),
    ("no-alpha", {"no-alpha": 1.0}),
    ("fp16", {"fp16": 0.7}),
    ("locon", {"locon": 1.0}),
    ("diffusers", {"diffusers": 0.8}),
    ("told-alpha", {"told-alpha": 1.0}),
    ("negative", {"attention": -0.7}),
    ("several", {"attention": 0.6, "again": 0.5, "kohya": 0.4}),
]


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "weights"), PARITY, ids=[name for name, _ in PARITY])
def test_whole_pictures_are_those_of_diffusers_with_fused_loras(pipeline, tiny_checkpoint, files, name, weights):
    loras = {files[name]: weight for name, weight in weights.items()}
    made = pipeline.generate(PROMPT, **ASKED, loras=list(loras.items()))
    demand_near(made, drawn_by_diffusers(tiny_checkpoint, loras), pipeline.generate(PROMPT, **ASKED), name)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "weight"), [("xl-kohya", 0.9), ("xl-ldm", 0.9), ("xl-diffusers", 0.6)])
def test_so_are_those_of_xl_with_its_two_text_encoders(xl, xl_checkpoint, files, name, weight):
    made = xl.generate(PROMPT, **ASKED, loras=[(files[name], weight)])
    expected = drawn_by_diffusers(xl_checkpoint, {files[name]: weight}, xl=True)
    demand_near(made, expected, xl.generate(PROMPT, **ASKED), name)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.long
def test_so_are_those_of_2_x(tiny_checkpoint, export_once, tmp_path):
    """Linear projections around its transformers, and a denoiser that predicts v."""
    checkpoint = tmp_path / "two"
    save_variant(Variant("sd", "StableDiffusionPipeline", {"use_linear_projection": True}), tiny_checkpoint, checkpoint)
    config = checkpoint / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    layers = {"unet": pairs(checkpoint, "unet", (*TRANSFORMER, *CONVOLUTIONS), 4, seed=1, size=0.4)}
    file = save_kohya(
        tmp_path / "a.safetensors",
        {**layers, "text_encoder": pairs(checkpoint, "text_encoder", WORDS, 4, seed=2, size=0.5)},
        alpha=2.0,
    )
    bundle = export_once("tiny-two", checkpoint, precision="fp32")
    with tintype.load(bundle, provider="cpu", threads=1) as opened:
        made, plain = opened.generate(PROMPT, **ASKED, loras=[file]), opened.generate(PROMPT, **ASKED)
    demand_near(made, drawn_by_diffusers(checkpoint, {file: 1.0}), plain, "2.x")


def _saved_by_peft(model, names, folder, seed, **options):
    """A model with random LoRAs as PEFT saves it; and the model with them merged."""
    import peft
    import torch

    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=names, **options)
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                weight.normal_(0.0, 0.25)
    adapted.save_pretrained(folder)
    return folder / "adapter_model.safetensors", adapted.merge_and_unload()


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("use_rslora", [False, True], ids=["plain", "rank-stabilised"])
def test_files_as_peft_saves_them_draw_what_peft_merges(pipeline, tiny_checkpoint, tmp_path, use_rslora):
    """Two folders, as PEFT has one a model, with alphas in their configs alone, of one layer another."""
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    options = {"use_rslora": use_rslora, "alpha_pattern": {"attn2.to_k": 1.5}}
    unet, pipe.unet = _saved_by_peft(pipe.unet, ["to_q", "to_k", "proj_in"], tmp_path / "unet", 1, **options)
    words, pipe.text_encoder = _saved_by_peft(pipe.text_encoder, ["q_proj", "fc1"], tmp_path / "text_encoder", 2)
    made, plain = pipeline.generate(PROMPT, **ASKED, loras=[unet, words]), pipeline.generate(PROMPT, **ASKED)
    demand_near(made, drawn_by(pipe), plain, "PEFT")
    assert pipeline.reproduce(made.record, loras=[unet, words]).image.tobytes() == made.image.tobytes()
    config = tmp_path / "unet/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 9}))
    with pytest.raises(RecordError, match="drawn with the LoRA adapter_model"):  # its alphas are of the picture too
        pipeline.reproduce(made.record, loras=[unet, words])
