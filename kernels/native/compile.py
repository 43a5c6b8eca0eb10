"""Compiles `src/` to a library by zig, which is a build requirement (ziglang) and brings all that it links to.

    python kernels/native/compile.py [FOLDER] [--target NAME | --all]

Run by setup.py where a wheel or an editable installation is made, and by hand for other systems: zig links for all of
TARGETS anywhere. Needs Python alone, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "src"
MISSING = "missing.txt"  # beside where the library would be: why it isn't there
FLAGS = (
    "-std=c11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
)
# Each set of instructions by the name that its kernels have, and what the compiler is told of it. The first is what any
# processor of its architecture has; operators and the choice between the sets are compiled for that one.
X86_SETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("baseline", ("-mcpu=x86_64",)),
    ("avx2", ("-mcpu=x86_64_v3",)),
    ("avxvnni", ("-mcpu=x86_64_v3+avxvnni",)),
    ("avx512", ("-mcpu=x86_64_v4", "-mprefer-vector-width=512")),
    ("avx512vnni", ("-mcpu=x86_64_v4+avx512vnni", "-mprefer-vector-width=512")),
    ("avx512bf16", ("-mcpu=x86_64_v4+avx512vnni+avx512bf16+avx512vbmi", "-mprefer-vector-width=512")),
)
ARM_SETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("baseline", ("-mcpu=generic",)),
    ("dotprod", ("-mcpu=generic+dotprod",)),
    ("i8mm", ("-mcpu=generic+dotprod+i8mm",)),
)


class CompileError(Exception):
    """There is no library, and this is why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A system and an architecture: zig's name for it, the library's, and the sets of instructions."""

    triple: str
    library: str
    sets: tuple[tuple[str, tuple[str, ...]], ...]
    wheel: str  # the tag that a wheel with it has


TARGETS = {  # as `platform.system` and `platform.machine` have it, in lower case
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "libtintype.so", X86_SETS, "manylinux_2_17_x86_64"),
    "linux-aarch64": Target("aarch64-linux-gnu.2.17", "libtintype.so", ARM_SETS, "manylinux_2_17_aarch64"),
    "windows-amd64": Target("x86_64-windows-gnu", "tintype.dll", X86_SETS, "win_amd64"),
    "windows-arm64": Target("aarch64-windows-gnu", "tintype.dll", ARM_SETS, "win_arm64"),
    "darwin-x86_64": Target("x86_64-macos.11.0", "libtintype.dylib", X86_SETS, "macosx_11_0_x86_64"),
    "darwin-arm64": Target("aarch64-macos.11.0", "libtintype.dylib", ARM_SETS, "macosx_11_0_arm64"),
}
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def this_target() -> str | None:
    """This machine's name in TARGETS; None where there is none for it."""
    name = f"{platform.system()}-{platform.machine()}".lower()
    return name if name in TARGETS else None


def compile_library(folder: Path, name: str | None = None) -> Path:
    """Write a target's library into a folder, for this machine where none is named. Raises CompileError."""
    name = name or this_target()
    if name is None:
        raise CompileError(f"there is none for {platform.system()} on {platform.machine()}")
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="tintype-native-") as scratch:
        place = Path(scratch)
        run(Zig.version(), place)
        objects, commands = [], []
        for source, label, flags in units(target):
            objects.append(place / f"{label}.o")
            commands.append(Zig.compile(target.triple, flags, SOURCES / source, objects[-1]))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: run(command, place), commands))
        run(Zig.link(target.triple, objects, place / target.library), place)
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / target.library
        # In one step: a process that has the old library open goes on with the old one.
        beside = folder / f".{target.library}.{os.getpid()}"
        beside.write_bytes((place / target.library).read_bytes())
        beside.chmod(0o755)
        beside.replace(written)
    return written


def units(target: Target) -> list[tuple[str, str, tuple[str, ...]]]:
    """What is compiled for a target: source, a name for the object, and flags."""
    plainest = target.sets[0][1]
    kernels = [("kernels.c", label, (*flags, f"-DSET={label}")) for label, flags in target.sets]
    return [("operators.c", "operators", plainest), ("processor.c", "processor", plainest), *kernels]


class Zig:
    """zig's commands."""

    PROGRAM = (sys.executable, "-m", "ziglang")

    @classmethod
    def version(cls) -> list[str]:
        return [*cls.PROGRAM, "version"]

    @classmethod
    def compile(cls, triple: str, flags: Sequence[str], source: Path, to: Path) -> list[str]:
        return [*cls.PROGRAM, "cc", "-target", triple, *FLAGS, *flags, "-c", str(source), "-o", str(to)]

    @classmethod
    def link(cls, triple: str, objects: Sequence[Path], to: Path) -> list[str]:
        return [*cls.PROGRAM, "cc", "-target", triple, "-shared", "-s", *map(str, objects), "-o", str(to)]


def run(command: Sequence[str], scratch: Path) -> None:
    """Run one of zig's commands, with its cache in a folder that goes. Raises CompileError with what it said."""
    places = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(scratch / "cache"))
    try:
        done = subprocess.run(command, env=places | os.environ, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(f"zig cannot be run: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        missing = "No module named ziglang" in lines[-1]
        raise CompileError("ziglang was not installed when it was built" if missing else "\n".join(lines[-20:]))


def main() -> int:
    """Compile as the command line says; prints the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--all", action="store_true", help="for every target, into a folder each")
    chosen = parser.parse_args()
    wanted = {name: chosen.folder / name for name in TARGETS} if chosen.all else {chosen.target: chosen.folder}
    try:
        for name, folder in wanted.items():
            print(compile_library(folder, name))
    except CompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
