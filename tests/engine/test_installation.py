"""ONNX Runtime crashes where an arm64 Linux hides its processor: that is an error with a remedy, not a dead process."""

from __future__ import annotations

import os

import pytest

from tintype.engine.device import installation, machine
from tintype.errors import InstallError

ARM64 = "Features : fp asimd asimddp\nCPU implementer : 0x41\nCPU part : 0xd0c\n"
X86_64 = "model name : AMD EPYC\nflags : fpu sse2\n"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """An arm64 Linux with this /proc/cpuinfo, whose children have this package in place of onnxruntime."""

    def lay(text, package):
        (tmp_path / "onnxruntime").mkdir()
        (tmp_path / "onnxruntime/__init__.py").write_text(package)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(installation.platform, "system", lambda: "Linux")
        monkeypatch.setattr(installation.platform, "machine", lambda: "aarch64")

    return lay


DIES = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"


@pytest.mark.skipif(os.name != "posix", reason="takes signals")
@pytest.mark.parametrize("text", ["", X86_64])
def test_a_library_that_would_crash_is_an_error_that_says_what_to_do(cpuinfo, text):
    cpuinfo(text, DIES)
    with pytest.raises(InstallError) as caught:
        installation.check_cpuinfo()
    assert "crashes" in caught.value.message
    assert "/proc/cpuinfo" in caught.value.fix
    assert "pip install 'onnxruntime<1.28'" in caught.value.fix


def test_a_library_that_loads_there_is_no_error(cpuinfo, tmp_path):
    cpuinfo("", f"open({str(tmp_path / 'loaded')!r}, 'w').close()\n")
    installation.check_cpuinfo()
    assert (tmp_path / "loaded").exists()


def test_where_the_processor_is_described_no_process_is_started(cpuinfo, tmp_path):
    cpuinfo(ARM64, f"open({str(tmp_path / 'loaded')!r}, 'w').close()\n")
    installation.check_cpuinfo()
    assert not (tmp_path / "loaded").exists()


def test_elsewhere_no_process_is_started(cpuinfo, tmp_path, monkeypatch):
    cpuinfo("", f"open({str(tmp_path / 'loaded')!r}, 'w').close()\n")
    monkeypatch.setattr(installation.platform, "machine", lambda: "x86_64")
    installation.check_cpuinfo()
    assert not (tmp_path / "loaded").exists()
