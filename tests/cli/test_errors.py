"""One place turns exceptions into messages: kinds, exit codes, JSON, and the way to a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import click
import pytest

from tintype.cli.failure import INTERRUPTED, describe, report
from tintype.errors import BundleError, RequestError


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RequestError("bad", fix="do good"), 2, ["bad", "do good"]),
        (BundleError("broken", fix="copy it"), 1, ["broken", "copy it"]),
        (click.UsageError("No such option."), 2, ["no such option", "--help"]),
        (MemoryError(), 1, ["not enough memory"]),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, ["torch", "pip install 'tintype[export]'"]),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, ["/x", "No space left", "free some space"]),
        (ValueError("strange\nmany lines"), 1, ["unexpected ValueError: strange", "TINTYPE_DEBUG=1"]),
        (RuntimeError(), 1, ["unexpected RuntimeError", "TINTYPE_DEBUG=1"]),
    ],
)
def test_every_exception_becomes_a_message_a_remedy_and_a_code(
    error: Exception, code: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 2
    for word in words:
        assert word in said.err


def test_an_interrupt_is_no_error_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(KeyboardInterrupt()) == INTERRUPTED == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_traceback_comes_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINTYPE_DEBUG", "1")
    try:
        raise ValueError("strange")
    except ValueError as error:
        report(error)
    assert "Traceback" in capsys.readouterr().err


def test_with_json_the_error_is_the_one_object_on_stdout(command) -> None:
    outcome = command("info", "no such bundle", "--json")
    answer = json.loads(outcome.stdout)
    assert outcome.code == answer["exit_code"] == 1
    assert answer["error"]["type"] == "BundleError"
    assert answer["error"]["message"] in outcome.stderr
    assert answer["error"]["fix"] in outcome.stderr


def test_every_remedy_of_a_usage_error_names_the_command() -> None:
    context = click.Context(click.Command("generate"), info_name="tintype generate")
    assert describe(click.UsageError("x", context)).fix == "see tintype generate --help"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("arguments", ["--help", "info nothing --json"])
def test_a_reader_that_leaves_early_brings_no_traceback(arguments: str, tintype_command: list[str]) -> None:
    script = f"{tintype_command[0]} {arguments} | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({}, ["ONNX Runtime is not installed", "pip install 'tintype[cpu]'"]),
        ({"onnxruntime": "cpu", "numpy": "cpu"}, ["2 distributions", "pip uninstall -y onnxruntime numpy"]),
    ],
    ids=["none", "two"],
)
def test_no_onnxruntime_or_two_of_them_names_the_command_that_mends_it(
    installed: dict[str, str], words: list[str], generate, command, tiny_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # numpy stands for a second one
    monkeypatch.setattr("tintype.engine.device.installation.ORT_DISTRIBUTIONS", installed)
    generate("a house").assert_one_clear_error(1, *words)
    told = command("info", tiny_bundle)
    assert told.code == 0
    for word in words:
        assert word in told.stdout
