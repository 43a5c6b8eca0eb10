"""The README says what the command says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import tintype
from tintype.bench.job import PROMPT

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_help_text_is_the_commands_own(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = re.search(r"<!-- tintype --help -->\n```\n(.*?)```", README, flags=re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == command("--help").stdout.strip()


def test_the_picture_is_made_from_the_prompt_in_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^PROMPT := (.*)$", makefile, flags=re.MULTILINE)[1] == PROMPT
    assert PROMPT in README


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_project_file_and_the_package_have_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == tintype.__version__


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = setup["package-dir"]
    found = set()
    for package, folder in folders.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inside]))
    assert found == set(setup["packages"])


def test_torch_is_requested_by_one_exact_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requested = [line for extra in project["optional-dependencies"].values() for line in extra if "torch" in line]
    requested += [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch")]
    assert set(requested) == {"torch==2.13.0"}
    assert not any("onnxruntime" in line for line in project["dependencies"])
