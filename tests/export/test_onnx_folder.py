"""A folder of ONNX graphs as optimum exports it becomes the same bundle as the checkpoint itself, without torch."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tintype
from tintype.bundle import converted as in_cache
from tintype.bundle import open_bundle
from tintype.bundle.converted import converted, converted_bundles, is_converted, key_of
from tintype.cli import run
from tintype.engine import adaptable_shapes
from tintype.engine.build.cache import LEFTOVER_SECONDS, bundles_folder, clear_cache
from tintype.errors import ExportError
from tintype.export import export_bundle, psnr_db
from tintype.export.checkpoint import open_checkpoint
from tintype.export.converting import roles_of
from tintype.export.progress import Silent
from tintype.sources.facts import describe
from tintype.uses import GraphRef

pytestmark = pytest.mark.slow

GATE_DB = 80.0
WHOLE = ("Attention", "GroupNormalization", "LayerNormalization", "Gelu", "Conv", "MatMul", "Gemm", "Softmax", "Erf")


@pytest.fixture
def copy(onnx_folder: Path, tmp_path: Path) -> Path:
    """A folder of graphs that a test may change."""
    return Path(shutil.copytree(onnx_folder, tmp_path / "folder"))


def session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_manifest_is_that_of_the_checkpoints_own_bundle(onnx_bundle: Path, tiny_bundle: Path) -> None:
    made, own = open_bundle(onnx_bundle).manifest, open_bundle(tiny_bundle).manifest
    same = ("family", "prediction_type", "scaling_factor", "vae_scale_factor", "default_request", "size", "tokenizer")
    assert {name: getattr(made, name) for name in same} == {name: getattr(own, name) for name in same}
    assert made.graphs.keys() == own.graphs.keys()
    for role, variants in own.graphs.items():
        assert made.graphs[role]["full"].inputs == variants["full"].inputs
        assert made.graphs[role]["full"].outputs == variants["full"].outputs
    assert made.clip_skips == own.clip_skips == 2
    assert {(gate.reference, gate.passed) for gate in made.parity} == {("the folder's own graph, fp32", True)}
    assert min(gate.psnr_db for gate in made.parity) >= GATE_DB


def test_the_same_operators_are_whole(onnx_bundle: Path, tiny_bundle: Path) -> None:
    def operators(bundle: Path, role: str) -> dict[str, int]:
        graph = onnx.load(open_bundle(bundle).graph_path(role), load_external_data=False).graph
        return {kind: count for kind, count in Counter(node.op_type for node in graph.node).items() if kind in WHOLE}

    for role in open_bundle(tiny_bundle).manifest.graphs:
        assert operators(onnx_bundle, role) == operators(tiny_bundle, role)


def test_every_output_of_the_text_encoder_is_that_of_the_checkpoints_own(onnx_bundle: Path, tiny_bundle: Path) -> None:
    made, own = (session(open_bundle(bundle).graph_path("text_encoder")) for bundle in (onnx_bundle, tiny_bundle))
    names = [output.name for output in own.get_outputs()]
    feed = {"input_ids": np.random.default_rng(0).integers(0, 500, (3, 77))}
    assert names == ["last_hidden_state", "clip_skip.1", "clip_skip.2"]
    for found, expected in zip(made.run(names, feed), own.run(names, feed), strict=True):
        assert psnr_db(expected, found) >= GATE_DB


def test_its_picture_is_that_of_the_checkpoints_own_bundle(onnx_bundle: Path, tiny_bundle: Path) -> None:
    pictures = []
    for bundle in (onnx_bundle, tiny_bundle):
        with tintype.load(bundle, provider="cpu") as pipeline:
            made = pipeline.generate("a red sailboat on a calm sea", seed=7, num_inference_steps=6).image
        pictures.append(np.asarray(made, np.float32))
    assert pictures[0].std() > 5
    assert psnr_db(pictures[1], pictures[0]) >= 60


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"])
def test_graphs_of_xl_mean_the_same_at_another_size(xl_onnx_folder: Path, tmp_path: Path, part: str) -> None:
    from tintype.export.canonical import canonical_graph
    from tintype.export.converting import role_plan
    from tintype.export.storage import save_graph

    checkpoint = open_checkpoint(xl_onnx_folder)
    plan = role_plan(checkpoint, "denoiser" if part == "unet" else part)
    model, counts = canonical_graph(xl_onnx_folder / part / "model.onnx", plan)
    save_graph(model, tmp_path / "model.onnx")
    assert counts["Attention"] == {"unet": 16, "text_encoder": 3, "text_encoder_2": 3}.get(part, 1)
    made, own = session(tmp_path / "model.onnx"), session(xl_onnx_folder / part / "model.onnx")
    sizes = {"batch": 3, "height": 8 * plan.multiple, "width": 10 * plan.multiple, "sequence": 154}
    random = np.random.default_rng(1)
    feed: dict[str, Any] = {}
    for name, dims in plan.inputs.items():
        shape = [sizes.get(str(dim), dim) for dim in dims]
        feed[name] = (
            random.standard_normal(shape, np.float32) if name != "input_ids" else random.integers(0, 500, shape)
        )
    names = {"hidden_states": "hidden_states.2", "clip_skip.1": "hidden_states.1", "clip_skip.2": "hidden_states.0"}
    for output, found in zip(made.get_outputs(), made.run(None, feed), strict=True):
        (expected,) = own.run([names.get(output.name, output.name)], feed)
        assert psnr_db(expected, found) >= GATE_DB


def test_info_knows_it_without_reading_weights(onnx_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = describe(onnx_folder)
    assert (facts.form, facts.family, facts.need) == ("ONNX folder of optimum", "Stable Diffusion 1.x", None)
    assert facts.prediction is not None
    assert facts.prediction.kind == "epsilon"
    assert facts.resolution == 64
    assert facts.parts["unet"].precision == "float32"
    own = describe(onnx_folder.with_name("checkpoint"))
    assert abs(facts.parts["unet"].parameters / own.parts["unet"].parameters - 1) < 0.01
    assert run(["info", str(onnx_folder)]) == 0
    printed = capfd.readouterr().out
    assert "ONNX folder of optimum" in printed
    assert f"--model {onnx_folder}" in printed


def test_info_says_what_cannot_be_taken(copy: Path) -> None:
    path = copy / "unet/model.onnx"
    model = onnx.load(path)
    fused(model.graph)
    onnx.save(model, path)
    assert "without --optimize" in str(describe(copy).need)
    shutil.rmtree(copy / "text_encoder")
    onnx.save(onnx.load(copy / "vae_decoder/model.onnx"), path)
    assert "text_encoder/model.onnx isn't there" in str(describe(copy).need)


# Drawn from directly, by way of the cache


def test_it_is_drawn_from_directly_and_made_once(
    onnx_folder: Path, onnx_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["generate", "a boat", "--seed", "1", "--num-inference-steps", "1", "--model", str(onnx_folder)]
    assert is_converted(onnx_folder)
    assert run([*asked, "-o", str(tmp_path / "a.png"), "--json"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["pictures"][0]["record"]["made_with"]["bundle"] == onnx_folder.name
    assert "once" not in printed.err
    assert run(["cache", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)["bundles"]
    assert {each["source"]: each["path"] for each in listed}[str(onnx_folder)] == str(onnx_bundle)


def test_another_source_is_another_bundle(copy: Path, onnx_folder: Path) -> None:
    before = key_of(copy)
    assert before != key_of(onnx_folder)  # elsewhere
    os.utime(copy / "unet/model.onnx", ns=(1, 1))
    changed = key_of(copy)
    (copy / "scheduler/scheduler_config.json").write_text("{}")
    assert len({before, changed, key_of(copy)}) == 3


def test_a_folder_that_is_refused_leaves_nothing_in_the_cache(copy: Path, no_builds: Path) -> None:
    shutil.rmtree(copy / "vae_decoder")
    with pytest.raises(ExportError, match=r"has no vae_decoder/model\.onnx"):
        converted(copy)
    assert [path.name for path in bundles_folder().iterdir() if path.is_dir()] == []


def test_older_bundles_of_a_folder_and_what_was_killed_are_swept_and_cleared(no_builds: Path, tmp_path: Path) -> None:
    def entry(key: str, location: Path) -> Path:
        place = bundles_folder() / key
        (place / "bundle").mkdir(parents=True)
        (place / "bundle/tintype.json").write_text("{}")
        (place / "source.json").write_text(json.dumps({"location": str(location)}))
        return place

    mine, older, others = entry("a" * 24, tmp_path), entry("b" * 24, tmp_path), entry("c" * 24, tmp_path / "other")
    killed, working = bundles_folder() / ("d" * 24), bundles_folder() / ("e" * 24)
    for place in (killed, working):
        (place / ".bundle.partial-x").mkdir(parents=True)
    long_ago = time.time() - LEFTOVER_SECONDS - 60
    os.utime(killed, (long_ago, long_ago))
    in_cache._sweep(tmp_path, mine.name)
    assert [place.exists() for place in (mine, older, others, killed, working)] == [True, False, True, False, True]
    assert [bundle.key for bundle in converted_bundles()] == [mine.name, others.name]
    clear_cache()
    assert list(bundles_folder().iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="who may write where is asked on POSIX alone")
def test_a_place_for_bundles_that_others_can_write_is_refused(no_builds: Path) -> None:
    bundles_folder().chmod(0o777)
    with pytest.raises(tintype.TintypeError, match="can be written by everybody"):
        bundles_folder()


# What can't be taken, said before anything is spent


def in_half(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def fused(graph: onnx.GraphProto) -> None:
    graph.node[-1].domain = "com.microsoft"
    graph.node[-1].op_type = "MultiHeadAttention"


def quantized(graph: onnx.GraphProto) -> None:
    graph.node[-1].op_type = "MatMulInteger"


def with_a_loop(graph: onnx.GraphProto) -> None:
    graph.node[-1].attribute.append(helper.make_attribute("body", onnx.GraphProto(name="body")))


def with_another_input(graph: onnx.GraphProto) -> None:
    graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n", 77]))


def with_another_operator(graph: onnx.GraphProto) -> None:
    graph.node[-1].op_type = "Einsum"


def without_its_output(graph: onnx.GraphProto) -> None:
    del graph.output[0]


def with_wider_words(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[1].dim_value = 78


def of_another_set(_graph: onnx.GraphProto) -> None:
    """Its number is changed by the test."""


@pytest.mark.parametrize(
    ("change", "message", "fix"),
    [
        (in_half, r"text_encoder/model\.onnx computes in half precision", "--dtype fp32"),
        (fused, "it has MultiHeadAttention of com.microsoft", "without --optimize"),
        (quantized, r"was quantized elsewhere \(MatMulInteger\)", "don't quantize"),
        (with_a_loop, "a node of it runs a graph", "export it again"),
        (of_another_set, "is of operator set 11, and 14 to 23 are known", "--opset 18"),
        (with_another_input, "it has the input attention_mask", "export it again"),
        (with_another_operator, "has Einsum, which isn't known here", "optimum-onnx 0.1"),
        (without_its_output, "it has no output last_hidden_state", "export it again"),
        (with_wider_words, r"its input input_ids is of shape \(batch_size, 78\)", "export it again"),
    ],
)
def test_a_graph_that_cannot_be_taken_is_one_error_that_says_what_to_do(
    copy: Path, tmp_path: Path, change: Callable[[onnx.GraphProto], None], message: str, fix: str
) -> None:
    path = copy / "text_encoder/model.onnx"
    model = onnx.load(path)
    change(model.graph)
    if change is of_another_set:
        model.opset_import[0].version = 11
    onnx.save(model, path)
    with pytest.raises(ExportError, match=message) as caught:
        export_bundle(copy, tmp_path / "bundle")
    assert fix in caught.value.fix
    assert not (tmp_path / "bundle").exists()


def with_external_data(folder: Path, location: str = "model.onnx_data") -> Path:
    path = folder / "text_encoder/model.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=64)
    if location != "model.onnx_data":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        onnx.save(model, path)
    return path.with_name("model.onnx_data")


def test_weights_may_lie_beside_the_graph(copy: Path) -> None:
    data = with_external_data(copy)
    graphs = open_checkpoint(copy).source.graphs
    assert graphs["text_encoder"].files == (copy / "text_encoder/model.onnx", data)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../../secret", "lies outside"),
        ("/etc/passwd", "lies outside"),
        ("gone", "isn't there"),
        ("x\0y", "lies outside"),
    ],
)
def test_weights_that_lie_elsewhere_are_refused(copy: Path, location: str, message: str) -> None:
    (copy.parent / "secret").write_bytes(b"\0" * 2**20)
    with_external_data(copy, location)
    with pytest.raises(ExportError, match=message):
        open_checkpoint(copy)


def test_weights_that_were_cut_short_are_refused(copy: Path) -> None:
    data = with_external_data(copy)
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(ExportError, match="it was cut short"):
        open_checkpoint(copy)


def test_without_an_encoder_there_are_no_pictures_to_begin_with(copy: Path) -> None:
    shutil.rmtree(copy / "vae_encoder")
    remarks: list[str] = []
    assert roles_of(open_checkpoint(copy), Silent(remarks.append)) == ["text_encoder", "denoiser", "vae_decoder"]
    assert "takes no picture to begin with" in remarks[0]
    for config in (copy / "unet/config.json",):
        config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    with pytest.raises(ExportError, match="begins with a picture"):
        roles_of(open_checkpoint(copy), Silent())


def test_optimums_own_classes_stand_for_those_of_diffusers(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "ORTStableDiffusionPipeline"
    index["unet"] = ["optimum.onnxruntime.modeling_diffusion", "ORTUnet"]
    del index["vae"]
    (copy / "model_index.json").write_text(json.dumps(index))
    scheduler = copy / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    opened = open_checkpoint(copy)
    assert opened.prediction_type == "v_prediction"
    assert opened.index["_class_name"] == "StableDiffusionPipeline"
    assert opened.index["vae"] == ["diffusers", "AutoencoderKL"]
    index["text_encoder"] = ["transformers", "T5EncoderModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match="T5EncoderModel"):
        open_checkpoint(copy)


@pytest.mark.parametrize("role", ["denoiser", "text_encoder"])
def test_layers_have_the_names_that_loras_know_them_by(onnx_bundle: Path, tiny_bundle: Path, role: str) -> None:
    ours, exported = (adaptable_shapes(open_bundle(folder), GraphRef(role)) for folder in (onnx_bundle, tiny_bundle))
    assert ours.shapes == exported.shapes
    assert ours.among == exported.among
