"""What optimum exports draws here as the checkpoint does in diffusers, at the same noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_parity import MARKS, NEGATIVE, SEED, asked, mask, take_the_encoders_mean, theirs
from pictures import PROMPT, psnr_db

import tintype
from tintype.export import export_bundle
from tintype.sampling import noise_source

pytestmark = MARKS

GATE_DB = 50.0
STEPS = 10


@pytest.fixture(scope="session")
def bundle_of(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By the name of a checkpoint's folder: the fp32 bundle of what optimum exports."""
    made: dict[str, Path] = {}

    def bundle(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("bundles") / name
            report = export_bundle(exported(name), made[name])
            assert min(graph.parity.psnr_db for graph in report.graphs) >= 80
        return made[name]

    return bundle


def drawn(bundle: Path, width: int, height: int) -> np.ndarray:
    with tintype.load(bundle, provider="cpu") as pipeline:
        made = pipeline.generate(
            PROMPT, negative_prompt=NEGATIVE, width=width, height=height, num_inference_steps=STEPS, sampler="euler",
            guidance_scale=7.5, seed=SEED, noise="torch-cpu", watermark=False,
        )  # fmt: skip
        assert np.asarray(made.image).std() > 5
        return np.asarray(made.image)


def drawn_by_diffusers(pipeline: Any, width: int, height: int) -> np.ndarray:
    import diffusers
    import torch

    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    noise = noise_source("torch-cpu", [SEED]).draw((1, 4, height // 4, width // 4))
    made = pipeline(
        PROMPT, negative_prompt=NEGATIVE, width=width, height=height, num_inference_steps=STEPS, guidance_scale=7.5,
        latents=torch.from_numpy(noise),
    )  # fmt: skip
    return np.asarray(made.images[0])


@pytest.mark.parametrize("size", [(64, 64), (96, 40)], ids=str)
@pytest.mark.parametrize("name", ["checkpoint", "xl-checkpoint"])
def test_pictures_are_those_of_diffusers(
    bundle_of: Callable[[str], Path], tiny_checkpoint: Path, name: str, size: tuple[int, int]
) -> None:
    import diffusers

    kind, extra = (
        (diffusers.StableDiffusionXLPipeline, {"add_watermarker": False})
        if name.startswith("xl")
        else (diffusers.StableDiffusionPipeline, {"safety_checker": None})
    )
    expected = drawn_by_diffusers(kind.from_pretrained(tiny_checkpoint.with_name(name), **extra), *size)
    measured = psnr_db(drawn(bundle_of(name), *size), expected)
    print(f"{measured:.1f} dB")
    assert measured >= GATE_DB


def test_inpainting_is_that_of_diffusers(
    bundle_of: Callable[[str], Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    take_the_encoders_mean(monkeypatch)
    name, size = "inpainting-checkpoint", (64, 64)
    place = tiny_checkpoint.with_name(name)
    reference = diffusers.StableDiffusionInpaintPipeline.from_pretrained(place, safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    with tintype.load(bundle_of(name), provider="cpu") as pipeline:
        made = pipeline.generate(PROMPT, mask=mask(*size), **asked(size, 1.0)).image
    (expected,) = theirs(reference, size, 1.0, mask(*size))
    assert np.asarray(made).std() > 5
    measured = psnr_db(made, expected)
    print(f"{measured:.1f} dB")
    assert measured >= GATE_DB


def test_v_prediction_is_that_of_diffusers(
    exported: Callable[[str], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As 2.x has it: the same graphs, another meaning of what they give."""
    import diffusers

    folder = Path(shutil.copytree(exported("checkpoint"), tmp_path / "folder"))
    place = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    for each in (folder, place):
        path = each / "scheduler/scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    export_bundle(folder, tmp_path / "bundle", precision="fp16")
    reference = diffusers.StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    measured = psnr_db(drawn(tmp_path / "bundle", 64, 64), drawn_by_diffusers(reference, 64, 64))
    print(f"{measured:.1f} dB with weights in half")
    assert measured >= 40  # fp16 weights; the gate of the graphs is 50 dB each


def test_what_its_pipeline_saves_is_the_same_source(
    exported: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from optimum.onnxruntime import ORTDiffusionPipeline

    from tintype.export.checkpoint import open_checkpoint
    from tintype.sources.facts import describe

    ORTDiffusionPipeline.from_pretrained(exported("checkpoint")).save_pretrained(tmp_path / "saved")
    capfd.readouterr()
    saved, first = open_checkpoint(tmp_path / "saved"), open_checkpoint(exported("checkpoint"))
    assert saved.sha256() == first.sha256()
    assert saved.index["_class_name"] == "StableDiffusionPipeline"
    assert describe(tmp_path / "saved").need is None
