"""The command answers at once: nothing heavy is imported before it is known what for."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tintype.cli.commands import OWN_COMMANDS

HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "PIL", "rich", "tokenizers", "torch", "platformdirs", "psutil"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["info", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tintype", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(re.findall(r"\|\s+(\w+)$", done.stderr, flags=re.MULTILINE))
    assert "click" in imported
    assert imported & HEAVY == set()


def test_help_lists_every_command_without_loading_it(command) -> None:
    outcome = command("--help")
    assert outcome.code == 0
    for name, (_, line) in OWN_COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", outcome.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize("name", OWN_COMMANDS)
def test_every_command_has_help_that_begins_with_a_sentence(name: str, command) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.startswith(f"Usage: tintype {name} ")


def test_the_version_is_that_of_the_package(command) -> None:
    from importlib.metadata import version

    assert command("--version").stdout == f"tintype {version('tintype')}\n"


def test_without_a_command_the_help_goes_to_stderr_as_bad_usage(command) -> None:
    outcome = command()
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert outcome.stderr == command("--help").stdout
