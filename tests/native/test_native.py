"""The operators in C for every system, and run where they may touch nothing else, and on emulated processors.

Takes ziglang, and minutes of compiling the first time: see `make test-native`, which says where zig keeps what it made.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tintype.engine.device.machine import instruction_sets
from tintype.kernels.native import compile as compiling

HERE = Path(__file__).parent
ARM = "aarch64-linux-musl"
X86 = "x86_64-linux-gnu.2.17"
# qemu's processors, with the sets of instructions that each has.
PROCESSORS = {
    "Nehalem": (X86, ["baseline"]),
    "Haswell": (X86, ["baseline", "avx2"]),
    "cortex-a53": (ARM, ["baseline"]),
    "neoverse-n1": (ARM, ["baseline", "dotprod"]),
    "max": (ARM, ["baseline", "dotprod", "i8mm"]),
}
AVXVNNI = "avxvnni"
Unit = tuple[Path, str, tuple[str, ...]]  # source, a name for the object, flags
UNDEFINED = ("-fsanitize=undefined", "-fsanitize-trap=undefined")

on_linux_x86 = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="runs a program for Linux on x86-64"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ZIG_GLOBAL_CACHE_DIR" not in os.environ, reason="takes minutes: see make test-native"),
]


def _checker(folder: Path, triple: str, flags: tuple[str, ...] = ()) -> Path:
    """check.c and all kernels as a program; for arm64 it needs no library, as qemu has none."""
    target = compiling.TARGETS["linux-aarch64" if triple == ARM else "linux-x86_64"]
    units = [unit for unit in compiling.units(target) if unit[0] != "operators.c"]
    return _program(folder, triple, [(compiling.SOURCES / name, label, sets) for name, label, sets in units], flags)


def _program(folder: Path, triple: str, sources: list[Unit], flags: tuple[str, ...] = ()) -> Path:
    target, objects = compiling.TARGETS["linux-aarch64" if triple == ARM else "linux-x86_64"], []
    for source, label, sets in (*sources, (HERE / "check.c", "check", target.sets[0][1])):
        objects.append(folder / f"{label}.o")
        given = (*sets, *flags, f"-I{compiling.SOURCES}")
        compiling.run(compiling.Zig.compile(triple, given, source, objects[-1]), folder)
    program = folder / "check"
    static = ["-static"] if triple == ARM else []
    link = [*compiling.Zig.PROGRAM, "cc", "-target", triple, *static, *map(str, objects), "-lm", "-o", str(program)]
    compiling.run(link, folder)
    return program


def _sets(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.split()


@pytest.fixture(scope="module")
def checkers(tmp_path_factory):
    return {triple: _checker(tmp_path_factory.mktemp(triple), triple) for triple in (X86, ARM)}


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="runs a program for Linux, x86-64"
)
def test_kernels_are_right_here_and_touch_nothing_beside_their_arrays(checkers):
    assert _sets([str(checkers[X86])])[0] == "baseline"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="runs a program for Linux, x86-64"
)
def test_kernels_do_nothing_that_c_leaves_undefined(tmp_path, checkers):
    assert _sets([str(_checker(tmp_path, X86, UNDEFINED))]) == _sets([str(checkers[X86])])


@pytest.mark.parametrize("processor", PROCESSORS)
def test_kernels_are_right_on_other_processors_which_take_what_they_have(checkers, processor):
    triple, sets = PROCESSORS[processor]
    qemu = shutil.which(f"qemu-{triple.partition('-')[0]}")
    if qemu is None:
        pytest.skip("no qemu-user")
    assert _sets([qemu, "-cpu", processor, str(checkers[triple])]) == sets


@on_linux_x86
@pytest.mark.parametrize("flags", [(), UNDEFINED], ids=["", "undefined"])
def test_kernels_of_avx_vnni_are_right_but_for_the_instruction_that_nothing_here_has(tmp_path, flags):
    """No processor here, nor of qemu's, has AVX-VNNI: its kernels are run with AVX2's exact products for VPDPBUSD."""
    if "avx2" not in instruction_sets():
        pytest.skip("no AVX2")
    plainest, of_avx2 = (dict(compiling.X86_SETS)[name] for name in ("baseline", "avx2"))
    given = (*of_avx2, f"-DSET={AVXVNNI}", "-include", str(HERE / "stand_in.h"))
    sources = [(compiling.SOURCES / "kernels.c", AVXVNNI, given), (HERE / "stand_in.c", "stand_in", plainest)]
    assert _sets([str(_program(tmp_path, X86, sources, flags))]) == [AVXVNNI]


@on_linux_x86
def test_the_instruction_that_is_stood_in_for_is_in_what_is_shipped(tmp_path):
    (given,) = (flags for _, label, flags in compiling.units(compiling.TARGETS["linux-x86_64"]) if label == AVXVNNI)
    listing = tmp_path / "kernels.s"
    given = (*given, "-Wno-unused-command-line-argument")
    command = compiling.Zig.compile(X86, given, compiling.SOURCES / "kernels.c", listing)
    command[command.index("-c")] = "-S"
    compiling.run(command, tmp_path)
    assert listing.read_bytes().count(b"vpdpbusd") > 20


MACHINES = {  # of ELF, PE and Mach-O files: where it is said, and what
    "linux-x86_64": (18, "<H", 0x3E),
    "linux-aarch64": (18, "<H", 0xB7),
    "windows-amd64": (None, "<H", 0x8664),
    "windows-arm64": (None, "<H", 0xAA64),
    "darwin-x86_64": (4, "<I", 0x01000007),
    "darwin-arm64": (4, "<I", 0x0100000C),
}


@pytest.mark.parametrize("name", compiling.TARGETS)
def test_it_links_for_every_system(tmp_path, name):
    library = compiling.compile_library(tmp_path, name)
    content = library.read_bytes()
    place, form, machine = MACHINES[name]
    if place is None:
        place = struct.unpack_from("<I", content, 0x3C)[0] + 4
    assert struct.unpack_from(form, content, place)[0] == machine
    assert b"RegisterCustomOps" in content
    assert len(content) < 1 << 20
    assert [file.name for file in tmp_path.iterdir()] == [library.name]


def test_what_zig_says_is_the_reason(tmp_path, monkeypatch):
    broken = tmp_path / "src"
    shutil.copytree(compiling.SOURCES, broken)
    (broken / "operators.c").write_text("int broken(void) { return nothing; }\n")
    monkeypatch.setattr(compiling, "SOURCES", broken)
    with pytest.raises(compiling.CompileError, match="nothing"):
        compiling.compile_library(tmp_path / "made", "linux-x86_64")
    assert not (tmp_path / "made").exists()
