"""A distilled denoiser goes into the bundle of the model that it came from, and into no other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tintype.bundle import file_facts, open_bundle, read_manifest, write_manifest
from tintype.cli import run
from tintype.errors import ExportError
from tintype.export import add_fast

pytestmark = pytest.mark.slow


@pytest.fixture
def copies(tiny_bundle: Path, distilled_bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copytree(each, tmp_path / each.name)) for each in (tiny_bundle, distilled_bundle))


def test_the_denoiser_is_added_with_what_its_bundle_draws_by_and_nothing_else_changes(
    tiny_bundle: Path, distilled_bundle: Path, fast_bundle: Path
) -> None:
    before, giver, made = (open_bundle(each) for each in (tiny_bundle, distilled_bundle, fast_bundle))
    assert made.manifest.fast is not None
    assert made.manifest.fast.num_inference_steps == 4
    assert (made.manifest.fast.guidance_scale, made.manifest.fast.sampler) == (1.0, "euler")
    assert made.manifest.defaults(fast=True).sigmas == "trailing"
    assert made.manifest.defaults(fast=False) == before.manifest.default_request
    assert made.manifest.source.fast is not None
    assert made.manifest.source.fast.sha256 == giver.manifest.source.sha256
    for name, facts in before.manifest.files.items():
        assert made.manifest.files[name] == facts
    for name in ("model.onnx", "model.onnx_data"):
        assert made.manifest.files[f"unet_fast/{name}"] == giver.manifest.files[f"unet/{name}"]
    assert [each.graph for each in made.manifest.parity if each.graph.startswith("denoiser")] == [
        "denoiser",
        "denoiser.fast",
    ]


def test_one_that_was_there_is_replaced(fast_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fast_bundle, tmp_path / "again"))
    add_fast(folder, tiny_bundle)
    made = open_bundle(folder)
    assert made.manifest.fast is not None
    assert made.manifest.fast.num_inference_steps == 20
    assert made.manifest.files["unet_fast/model.onnx_data"] == made.manifest.files["unet/model.onnx_data"]
    assert [each.graph for each in made.manifest.parity].count("denoiser.fast") == 1


def test_what_was_trained_on_other_noise_or_takes_many_steps_is_refused(copies: tuple[Path, Path]) -> None:
    bundle, distilled = copies
    manifest, _ = read_manifest(distilled)
    file = distilled / manifest.scheduler
    known = file.read_text()
    file.write_text(json.dumps({**json.loads(known), "beta_end": 0.02}))
    write_manifest(distilled, replace(manifest, files=file_facts(distilled)))
    before = file_facts(bundle)
    with pytest.raises(ExportError, match="another noise schedule"):
        add_fast(bundle, distilled)
    file.write_text(known)
    slow = replace(manifest.default_request, num_inference_steps=50)
    write_manifest(distilled, replace(manifest, default_request=slow))
    with pytest.raises(ExportError, match="50 steps"):
        add_fast(bundle, distilled)
    write_manifest(distilled, replace(manifest, scaling_factor=0.5))
    with pytest.raises(ExportError, match=r"scaling_factor is 0\.5"):
        add_fast(bundle, distilled)
    assert file_facts(bundle) == before, "a refused one leaves nothing"


def test_an_older_bundle_whose_timestep_is_in_a_list_takes_one(copies: tuple[Path, Path]) -> None:
    bundle, distilled = copies
    manifest, _ = read_manifest(bundle)
    graph = manifest.graphs["denoiser"]["full"]
    inputs = tuple(replace(port, shape=(1,)) if port.name == "timestep" else port for port in graph.inputs)
    graphs = {**manifest.graphs, "denoiser": {"full": replace(graph, inputs=inputs)}}
    write_manifest(bundle, replace(manifest, graphs=graphs))
    made = add_fast(bundle, distilled)
    assert [
        next(port.shape for port in made.graphs["denoiser"][variant].inputs if port.name == "timestep")
        for variant in ("full", "fast")
    ] == [(1,), ()]


def test_another_family_is_refused(xl_bundle: Path, copies: tuple[Path, Path]) -> None:
    with pytest.raises(ExportError, match="family"):
        add_fast(copies[0], xl_bundle)


def test_the_command_exports_with_one(
    tiny_checkpoint: Path, distilled_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    assert run(["export", str(tiny_checkpoint), str(out), "--fast", str(distilled_bundle)]) == 0, capsys.readouterr()
    assert open_bundle(out).manifest.fast is not None
    capsys.readouterr()
    assert run(["info", str(out)]) == 0
    told = capsys.readouterr().out
    assert "with --fast" in told
    assert "4 steps of euler on trailing sigmas, guidance 1" in told
    assert "denoiser (fast): fp32" in told
