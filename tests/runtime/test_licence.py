"""A licence that binds is accepted once for a bundle, by a command or in code, and nothing else is ever asked."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import tintype
from tintype.bundle.bundle import embedded_folder, write_manifest
from tintype.bundle.licence import FOLDER, is_accepted, is_binding
from tintype.cli import run as run_command

FIELDS = {"seed": 7, "num_inference_steps": 1, "width": 64, "height": 64}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINTYPE_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def bound(tmp_path: Path, library: Path) -> Path:
    """Postcard's bundle under CreativeML's licence."""
    folder = Path(shutil.copytree(embedded_folder("postcard"), tmp_path / "bound"))
    manifest = tintype.open_bundle(folder).manifest
    write_manifest(folder, dataclasses.replace(manifest, name="bound", licence="creativeml-openrail-m"))
    return folder


@pytest.mark.parametrize(
    "licence",
    ["creativeml-openrail-m", "openrail++", "bigscience-bloom-rail-1.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0",
     "stabilityai-ai-community", "sai-nc-community", "Stability AI Community License", "flux-1-dev-non-commercial",
     "faipl-1.0-sd", "other", "CC BY-NC 4.0", "cc-by-nd-4.0", "deepfloyd-if-license"],
)  # fmt: skip
def test_a_licence_that_restricts_use_binds(licence: str) -> None:
    assert is_binding(licence)


@pytest.mark.parametrize(
    "licence",
    ["apache-2.0", "Apache-2.0", "mit", "CC0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "unlicense", "unknown",
     "gpl-3.0", "another one", "trail-1.0"],
)  # fmt: skip
def test_one_that_restricts_nothing_or_that_nobody_stated_does_not(licence: str) -> None:
    assert not is_binding(licence)


def test_what_comes_along_is_never_asked_about(library: Path) -> None:
    with tintype.load("postcard", provider="cpu") as pipeline:
        assert is_accepted(pipeline.bundle)
    assert not library.exists()


def test_a_binding_licence_is_accepted_once_by_a_command(
    bound: Path, library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(tintype.LicenceError) as refused:
        tintype.load(bound, provider="cpu")
    assert refused.value.licence == "creativeml-openrail-m"
    assert refused.value.fix.endswith(f"tintype licence accept {bound.resolve()}")
    assert run_command(["generate", "a boat", "--model", str(bound), "-o", str(tmp_path / "x.png"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["licence"] == "creativeml-openrail-m"
    assert run_command(["info", str(bound)]) == 0
    assert f"creativeml-openrail-m, to accept: tintype licence accept {bound.resolve()}" in capsys.readouterr().out
    assert run_command(["licence", "accept", str(bound)]) == 0
    assert run_command(["info", str(bound)]) == 0
    assert "creativeml-openrail-m, accepted" in capsys.readouterr().out
    (kept,) = (library / FOLDER).iterdir()
    assert json.loads(kept.read_text()) == {"bundle": "bound", "licence": "creativeml-openrail-m"}
    kept.chmod(0o400)  # nothing is written from now on
    with tintype.load(bound, provider="cpu") as pipeline:
        record = pipeline.generate("a red boat", **FIELDS).record
    assert record.made_with.licence == "creativeml-openrail-m"
    write_manifest(bound, dataclasses.replace(pipeline.bundle.manifest, name="another"))
    with pytest.raises(tintype.LicenceError):
        tintype.load(bound, provider="cpu")


def test_code_accepts_for_itself_and_is_not_asked_again(bound: Path, library: Path) -> None:
    for refiner in (None, bound):
        with pytest.raises(tintype.LicenceError):
            tintype.load("postcard" if refiner else bound, provider="cpu", refiner=refiner)
    tintype.load(bound, provider="cpu", accept_licence=True).close()
    tintype.load(bound, provider="cpu").close()
    shutil.rmtree(library)
    library.write_text("where no folder can be made")
    tintype.load(bound, provider="cpu", accept_licence=True).close()
    assert not is_accepted(tintype.open_bundle(bound))


def test_a_permissive_one_needs_no_command(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["licence", "accept", "postcard", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] is None
    assert not library.exists()
