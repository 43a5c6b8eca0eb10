"""Compiling the operators where it can't be done: a reason, and no library. What can be done is in tests/native."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from tintype.kernels.native import compile as compiling
from tintype.kernels.native import library

ROOT = Path(__file__).parents[3]


def test_without_zig_the_reason_is_that(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.Zig, "PROGRAM", (sys.executable, "-I", "-S", "-m", "ziglang"))
    with pytest.raises(compiling.CompileError, match="ziglang was not installed"):
        compiling.compile_library(tmp_path / "made", "linux-x86_64")
    monkeypatch.setattr(compiling.Zig, "PROGRAM", (str(tmp_path / "zig"),))
    with pytest.raises(compiling.CompileError, match="cannot be run"):
        compiling.compile_library(tmp_path / "made", "linux-x86_64")
    assert not (tmp_path / "made").exists()


def test_a_machine_that_zig_has_no_target_for_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.platform, "machine", lambda: "riscv64")
    assert compiling.this_target() is None
    with pytest.raises(compiling.CompileError, match="riscv64"):
        compiling.compile_library(tmp_path)


def test_what_is_compiled_is_what_is_looked_for():
    """setup.py, the package and git know the library by one name a system."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for name, target in compiling.TARGETS.items():
        system = {"linux": "linux", "windows": "win32", "darwin": "darwin"}[name.partition("-")[0]]
        assert library._NAMES.get(system, "libtintype.so") == target.library
        assert any(Path(f"kernels/native/{target.library}").match(line) for line in ignored)
    assert compiling.MISSING == library.MISSING
    assert f"kernels/native/{library.MISSING}" in ignored


def test_zig_is_a_build_requirement_where_there_is_a_target():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    (zig,) = (line for line in required if line.startswith("ziglang"))
    machines = {name.partition("-")[2] for name in compiling.TARGETS}
    assert machines == {word.lower() for word in re.findall(r"x86_64|aarch64|AMD64|ARM64|arm64", zig)}
