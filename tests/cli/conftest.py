"""The command line as the tests call it: `command` in this process, `spawn` as a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tintype.cli import run

SCRIPT = shutil.which("tintype", path=str(Path(sys.executable).parent))
COMMAND = [SCRIPT] if SCRIPT else [sys.executable, "-m", "tintype"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def assert_one_clear_error(self, code: int, *words: str) -> None:
        """One `error:` with one `fix:`, the exit code, the words that have to be told, and no traceback."""
        assert self.code == code, self.stderr
        lines = self.stderr.splitlines()
        assert len(lines) == 2, self.stderr
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("  fix: ")
        assert len(lines[1]) > len("  fix: ")
        assert "Traceback" not in self.stderr
        for word in words:
            assert word in self.stderr


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line through the function that the `tintype` script calls."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return call


@pytest.fixture
def spawn() -> Callable[..., Outcome]:
    """Run the installed `tintype` as a process."""

    def call(*arguments: object, **options: Any) -> Outcome:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=300,
            **options,
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


@pytest.fixture
def tintype_command() -> list[str]:
    return list(COMMAND)


@pytest.fixture
def generate(command: Callable[..., Outcome], tiny_bundle: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """`tintype generate` on the tiny bundle with one step, into tmp_path/x.png; later arguments win."""

    def call(*arguments: object) -> Outcome:
        usual = ["--model", tiny_bundle, "-o", tmp_path / "x.png", "--seed", 1, "--num-inference-steps", 1]
        return command("generate", *usual, *arguments)

    return call
