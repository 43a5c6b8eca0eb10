"""Image encoders as they are published become bundles: each near to transformers, and others refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ip_adapters import HIDDEN, SIDE, image_encoder, ip_adapter
from known_image_encoder import write_image_encoder
from pictures import photo
from pictures import psnr_db as pixel_db
from safetensors.numpy import load_file, save_file

import tintype
from tintype.arrays import psnr_db
from tintype.bundle.image_encoder import open_image_encoder
from tintype.engine import run_graph
from tintype.errors import ExportError
from tintype.export import export_bundle
from tintype.export.sources.image_encoder import CLIP_MEAN, CLIP_STD, mean_and_std, open_image_encoder_source
from tintype.export.tracing import plain_name

__all__ = ["image_encoder", "ip_adapter"]  # the fixtures


@pytest.fixture
def copied(image_encoder, tmp_path):
    """A copy of an encoder's checkpoint with changes to its config."""

    def made(**changes) -> Path:
        folder = Path(shutil.copytree(image_encoder()[0], tmp_path / "encoder"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return made


def states(folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers import CLIPVisionModelWithProjection

    with torch.inference_mode():
        model = CLIPVisionModelWithProjection.from_pretrained(folder)
        made = model(torch.from_numpy(pixels), output_hidden_states=True)
    return made.image_embeds.numpy(), made.hidden_states[-2].numpy()


@pytest.mark.reference
@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 80.0), ("fp16", 50.0), ("int8", 38.0), ("int4", 30.0)])
def test_a_bundle_gives_what_transformers_does(image_encoder, precision, least_db):
    folder, bundle = image_encoder(precision=precision)
    opened = open_image_encoder(bundle)
    manifest = opened.manifest
    assert (manifest.side, manifest.states) == (SIDE, ((SIDE // 8) ** 2 + 1, HIDDEN))
    assert (manifest.mean, manifest.std) == (CLIP_MEAN, CLIP_STD)
    assert manifest.graph.precision == precision
    pixels = np.random.default_rng(2).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    outputs = run_graph(opened.graph_path("image_encoder"), {"pixel_values": pixels})
    for made, expected in zip(outputs.values(), states(folder, pixels), strict=True):
        assert psnr_db(expected, made) >= least_db


def test_an_int8_bundle_is_smaller(image_encoder):
    sizes = [
        sum(facts.bytes for facts in open_image_encoder(image_encoder(precision=precision)[1]).manifest.files.values())
        for precision in ("fp32", "fp16", "int8", "int4")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_its_preprocessor_says_what_is_taken_off(copied, tmp_path):
    folder = copied()
    told = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    export_bundle(folder, tmp_path / "bundle")
    manifest = open_image_encoder(tmp_path / "bundle").manifest
    assert (manifest.mean, manifest.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    for wrong in ([1, 2], [0.5, 0.5, 7.0], "x", [True, 0.5, 0.5]):
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": wrong}))
        with pytest.raises(ExportError, match="image_mean in"):
            mean_and_std(folder)


def test_positions_of_older_files_are_passed_by(copied, image_encoder, tmp_path):
    folder = copied()
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = np.arange(17, dtype=np.int64)[np.newaxis]
    save_file(tensors, folder / "model.safetensors")
    export_bundle(folder, tmp_path / "bundle")
    one, other = (
        open_image_encoder(bundle).manifest.files["image_encoder/model.onnx_data"]
        for bundle in (tmp_path / "bundle", image_encoder()[1])
    )
    assert one == other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1}, "has one layer"),
        ({"hidden_act": "swish"}, "has hidden_act 'swish'"),
        ({"num_channels": 1}, "takes no RGB picture"),
        ({"patch_size": 64}, "takes no RGB picture"),
        ({"image_size": 10**9}, "image_size in"),
        ({"hidden_size": "wide"}, "hidden_size in"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers in"),
        ({"num_attention_heads": 5}, "share its width"),
    ],
    ids=str,
)
def test_what_makes_no_encoder_is_refused(copied, changes, words):
    with pytest.raises(ExportError, match=words) as refusal:
        open_image_encoder_source(copied(**changes))
    assert refusal.value.fix


def test_weights_that_are_broken_are_refused(copied, tmp_path):
    folder = copied()
    tensors = load_file(folder / "model.safetensors")
    for change, words in (
        (lambda found: found.pop("visual_projection.weight"), "it lacks visual_projection.weight"),
        (lambda found: found.update(more=np.zeros(2, np.float32)), "it has unknown more"),
        (lambda found: found["visual_projection.weight"].__setitem__((0, 0), np.nan), "NaN or infinity"),
    ):
        changed = {name: array.copy() for name, array in tensors.items()}
        change(changed)
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(ExportError, match=words):
            export_bundle(folder, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()
    with pytest.raises(ExportError, match="an image encoder has none"):
        export_bundle(folder, tmp_path / "bundle", few_steps=4)


def test_a_bundle_of_optimums_graphs_takes_image_prompts(onnx_bundle, tiny_bundle, image_encoder, ip_adapter):
    """Its attentions were found in graphs by another tracer, and are called as those of our own."""
    given = {"ip_adapter": ip_adapter(kind="plus"), "image_encoder": image_encoder()[1], "image_prompts": [photo()]}
    asked = {
        "seed": 7,
        "num_inference_steps": 2,
        "width": 64,
        "height": 48,
        "exactness": "exact",
        "guidance_scale": 5.0,
    }
    made = []
    for bundle in (onnx_bundle, tiny_bundle):
        with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
            made.append(pipeline.generate("a boat", **asked, **given).image)
    assert pixel_db(*made) >= 60.0


@pytest.mark.reference
def test_the_encoder_that_is_made_without_torch_is_transformers(image_encoder, tmp_path):
    """Devices are tested with it where torch isn't there."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    weights = write_image_encoder(tmp_path / "bundle")
    opened = open_image_encoder(tmp_path / "bundle")
    model = CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(image_encoder()[0]))
    own = {plain_name(name): value for name, value in model.state_dict().items()}
    assert set(weights) == set(own) - {"vision_model.embeddings.position_ids"}
    with torch.no_grad():
        for name, array in weights.items():
            own[name].copy_(torch.from_numpy(array).reshape(own[name].shape))
        pixels = np.random.default_rng(2).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
        made = model.eval()(torch.from_numpy(pixels), output_hidden_states=True)
    outputs = run_graph(opened.graph_path("image_encoder"), {"pixel_values": pixels})
    for found, expected in zip(outputs.values(), (made.image_embeds, made.hidden_states[-2]), strict=True):
        assert psnr_db(expected.numpy(), found) >= 80.0
        assert np.abs(found[0] - found[1]).max() > 0.1 * np.abs(found).max()
