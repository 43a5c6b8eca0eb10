"""`tintype models`: what is here, found by name, and removed with its builds and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tintype
from tintype.bundle import MANIFEST_NAME
from tintype.bundle.bundle import embedded_folder
from tintype.bundle.library import library_place
from tintype.engine import cache_entries
from tintype.export.command import source_name

pytestmark = pytest.mark.slow

SMALL = ("--size", "64x64", "--num-inference-steps", "1", "--seed", "7")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models' folder with one bundle, of another manifest than postcard's: its builds are its own."""
    folder = tmp_path / "library"
    shutil.copytree(embedded_folder("postcard"), folder / "mine")
    manifest = json.loads((folder / "mine" / MANIFEST_NAME).read_text())
    manifest.pop("digest", None)
    (folder / "mine" / MANIFEST_NAME).write_text(json.dumps({**manifest, "licence": "mit"}))
    monkeypatch.setenv("TINTYPE_MODELS", str(folder))
    return folder


def _builds_of(bundle_hash: str) -> set[str]:
    return {each.key for each in cache_entries() if each.identity and each.identity.bundle == bundle_hash}


def _listed(command: Any, *arguments: object) -> dict[str, dict[str, Any]]:
    outcome = command("models", "--json", *arguments)
    assert outcome.code == 0, outcome.stderr
    return {row["name"]: row for row in json.loads(outcome.stdout)["models"]}


def test_models_are_listed_with_what_they_take(library: Path, command, no_builds: Path, monkeypatch) -> None:
    (library / "broken").mkdir()
    (library / "broken" / MANIFEST_NAME).write_text("{")
    (library / "notes").mkdir()
    assert _listed(command, "--no-plan")["mine"]["least_bytes"] is None
    rows = _listed(command)
    assert list(rows) == ["postcard", "broken", "mine"]
    mine = rows["mine"]
    assert (mine["family"], mine["precision"], mine["licence"]) == ("stable-diffusion", "int8", "mit")
    assert mine["bytes"] == sum(
        path.stat().st_size for path in (library / "mine").rglob("*") if path.is_file() and path.name != MANIFEST_NAME
    )
    assert mine["builds"] == 0
    assert "not a manifest" in rows["broken"]["problem"]["message"]
    with tintype.load("mine", provider="cpu", memory=mine["least_bytes"]) as pipeline:
        assert pipeline.plan(build=False).peak_bytes <= mine["least_bytes"]
    assert mine["fits"] is True
    monkeypatch.setattr(tintype, "load", None)  # it was reckoned once
    text = command("models").stdout
    assert "draws from" in text
    assert "mine             stable-diffusion, int8, 128x128" in text
    assert "broken           can't be used: " in text


def test_a_bundle_elsewhere_is_listed_by_its_path_once(library: Path, command, monkeypatch) -> None:
    place = library / "mine"
    monkeypatch.setenv("TINTYPE_MODELS", str(library / "empty"))
    assert list(_listed(command, "--no-plan", "--at", place, "--at", place)) == ["postcard", str(place)]
    command("models", "--at", library / "none").assert_one_clear_error(1, "there is no bundle")


def test_a_model_is_drawn_with_by_its_name_and_removed_with_its_builds(library: Path, command, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    assert command("generate", "a boat", "--model", "mine", "-o", picture, *SMALL).code == 0
    assert command("generate", "a boat", "-o", tmp_path / "y.png", *SMALL).code == 0
    (library / "mine" / "notes.txt").write_text("mine")
    before = _listed(command, "--no-plan")
    builds = _builds_of(before["postcard"]["hash"])
    assert before["mine"]["builds"] >= 3
    outcome = command("models", "remove", "mine", "--yes")
    assert outcome.code == 0, outcome.stderr
    assert "notes.txt" in outcome.stdout
    assert [path.name for path in (library / "mine").rglob("*")] == ["notes.txt"]
    after = _listed(command, "--no-plan")
    assert "mine" not in after
    assert len(builds) >= 3
    assert builds <= _builds_of(before["postcard"]["hash"])  # none is gone; other tests may add some meanwhile
    assert _builds_of(before["mine"]["hash"]) == set()


def test_a_picture_again_is_made_by_the_model_that_its_record_names(library: Path, command, tmp_path: Path) -> None:
    manifest = json.loads((library / "mine" / MANIFEST_NAME).read_text())
    (library / "mine" / MANIFEST_NAME).write_text(json.dumps({**manifest, "name": "mine"}))
    assert command("generate", "a boat", "--model", "mine", "-o", tmp_path / "x.png", *SMALL).code == 0
    assert command("generate", "--from-record", tmp_path / "x.png", "-o", tmp_path / "y.png").code == 0
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


@pytest.mark.parametrize("name", ["postcard", str(embedded_folder("postcard"))])
def test_the_embedded_model_is_never_removed(name: str, command) -> None:
    command("models", "remove", name, "--yes").assert_one_clear_error(1, "never removed")
    assert (embedded_folder("postcard") / MANIFEST_NAME).is_file()


def test_what_is_no_bundle_is_not_removed(library: Path, command, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    command("models", "remove", tmp_path / "home", "--yes").assert_one_clear_error(1, "there is no bundle")
    command("models", "remove", "../home", "--yes").assert_one_clear_error(1, "there is no bundle")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_nothing_is_removed_outside_of_a_bundle_by_a_link_within_it(library: Path, command, tmp_path: Path) -> None:
    shutil.move(library / "mine" / "unet", tmp_path / "unet")
    (library / "mine" / "unet").symlink_to(tmp_path / "unet")
    assert command("models", "remove", "mine", "--yes").code == 0
    assert (tmp_path / "unet" / "model.onnx").is_file()
    shutil.copytree(embedded_folder("postcard"), tmp_path / "elsewhere")
    (library / "linked").symlink_to(tmp_path / "elsewhere")
    assert command("models", "remove", "linked", "--yes").code == 0
    assert not (library / "linked").exists()
    assert (tmp_path / "elsewhere" / MANIFEST_NAME).is_file()


def test_removing_asks_first(library: Path, spawn, command) -> None:
    assert spawn("models", "remove", "mine").code == 130  # nobody answers
    assert command("models", "remove", "mine", "--json").code == 2
    assert (library / "mine" / MANIFEST_NAME).is_file()


def test_a_bundle_without_a_folder_is_exported_into_the_library(library: Path) -> None:
    assert source_name("models/sd15/") == "sd15"
    assert source_name("org/sd15@v1.0") == "sd15"
    assert source_name("org/name/sd15.safetensors@main") == "sd15"
    assert library_place("a b/../c") == library / "a-b-..-c"
    assert library_place("..") == library / "bundle"
