"""Pythons on emulated processors: `python tests/processors/emulated.py build/processors` makes one for each.

FOLDER/NAME/bin/python stands in a virtual environment of its own and is a script that runs Python in Debian's
qemu-user, so that its child processes (`sys.executable`) are emulated too. A processor of this machine's architecture
takes Python and packages of the environment that runs this file. One of another architecture takes Python from
Debian's packages, unpacked into a folder, and wheels of the same versions. It needs no
root, and a second run downloads nothing.

CPUID and the auxiliary vector are the emulated processor's. /proc/cpuinfo is this machine's on its own architecture,
and else the emulated processor's, as ONNX Runtime reads it there.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
DEBIAN_PACKAGES = ("python3", "libstdc++6", "zlib1g")  # the last two are what wheels expect of a system
ARM = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor by qemu's name for it."""

    name: str
    machine: str
    arm_part: str = ""  # CPU part and features, as /proc/cpuinfo has them
    arm_features: str = ""


PROCESSORS = (
    Processor("Nehalem", "x86_64"),  # SSE4.2
    Processor("Haswell", "x86_64"),  # AVX2 without VNNI
    Processor("cortex-a72", "aarch64", "0xd08", ARM),  # without dot products
    Processor("neoverse-n1", "aarch64", "0xd0c", f"{ARM} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"),
)


class MissingError(Exception):
    """Something that this machine lacks, with what brings it."""


def make(processor: Processor, folder: Path) -> Path:
    """Make a processor's environment, or bring it up to date; returns its Python. Raises MissingError."""
    qemu = shutil.which(f"qemu-{processor.machine}")
    if qemu is None:
        raise MissingError(f"there is no qemu-{processor.machine}; fix: apt-get install qemu-user")
    environment = folder / processor.name
    shutil.rmtree(environment, ignore_errors=True)
    (environment / "bin").mkdir(parents=True)
    options = ["-cpu", processor.name]
    if processor.machine == platform.machine():
        real, library = Path(sys.executable).resolve(), Path(sys.prefix) / "lib"
        (environment / "lib").symlink_to(library)
    else:
        system = _debian(processor.machine, folder)
        real = (system / "usr/bin/python3").resolve()
        site = environment / "lib" / real.name / "site-packages"
        site.parent.mkdir(parents=True)
        site.symlink_to(_wheels(processor.machine, real.name.removeprefix("python"), folder))
        options += ["-L", str(_root(processor, system, environment / "root"))]
    (environment / "pyvenv.cfg").write_text(f"home = {real.parent}\ninclude-system-site-packages = false\n")
    python = environment / "bin/python"
    words = shlex.join([qemu, *options, "-0", str(python), str(real)])
    python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    python.chmod(0o755)
    return python


def _root(processor: Processor, system: Path, root: Path) -> Path:
    """What an emulated process sees in place of this machine's files: Debian's, and a /proc/cpuinfo."""
    (root / "proc").mkdir(parents=True)
    for entry in system.iterdir():
        (root / entry.name).symlink_to(entry)
    core = (
        f"BogoMIPS\t: 50.00\nFeatures\t: {processor.arm_features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: 0x0\nCPU part\t: {processor.arm_part}\nCPU revision\t: 1\n\n"
    )
    cores = (f"processor\t: {number}\n{core}" for number in range(os.cpu_count() or 1))
    (root / "proc/cpuinfo").write_text("".join(cores))
    return root


def _debian(machine: str, folder: Path) -> Path:
    """Debian's Python for an architecture and what it needs, of this machine's release, unpacked."""
    architecture = DEBIAN_NAMES[machine]
    system = folder / f"debian-{architecture}"
    if system.is_dir():
        return system
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(program) is None:
            raise MissingError(f"there is no {program}: {machine} takes Python from Debian's packages; fix: {package}")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial", "system"):
            (scratch / part).mkdir(parents=True)
        (scratch / "state/status").touch()  # nothing is installed
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "",  # which could not read the folder
            "Dir::State": f"{scratch}/state",
            "Dir::State::status": f"{scratch}/state/status",
            "Dir::Cache": f"{scratch}/cache",
        }
        apt = ["apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
        fix = f"give apt sources that have {architecture}"
        _run([*apt, "update"], fix)
        _run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", *DEBIAN_PACKAGES], fix)
        for package in sorted((scratch / "cache/archives").glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(package), str(scratch / "system")], "make room on the disk")
        for part in ("bin", "lib"):  # links of base-files, where a release has these only below /usr
            if not (scratch / "system" / part).exists():
                (scratch / "system" / part).symlink_to(f"usr/{part}")
        (scratch / "system").rename(system)
    return system


@functools.cache  # one for all processors of an architecture, whatever is installed here meanwhile
def _wheels(machine: str, python_version: str, folder: Path) -> Path:
    """What the runtime and pytest need, as wheels of an architecture in the versions that are installed here."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["cpu"], "pytest"]
    here = {re.sub(r"[-_.]+", "-", each.name).lower(): each.version for each in metadata.distributions()}
    pinned = sorted(f"{name}=={version}" for name, version in here.items() if name != "tintype" and "+" not in version)
    key = hashlib.sha256("\n".join([python_version, *wanted, *pinned]).encode()).hexdigest()[:12]
    site = folder / f"site-{machine}-{key}"
    if not site.is_dir():
        for other in folder.glob(f"site-{machine}-*"):
            shutil.rmtree(other)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            constraints = Path(name) / "constraints.txt"
            constraints.write_text("\n".join(pinned))
            tags = (f"manylinux_2_28_{machine}", f"manylinux_2_17_{machine}", f"manylinux2014_{machine}")
            platforms = [word for tag in tags for word in ("--platform", tag)]
            command = [sys.executable, "-m", "pip", "install", "-q", "--target", f"{name}/site", *platforms]
            command += ["--only-binary", ":all:", "--python-version", python_version, "-c", str(constraints), *wanted]
            _run(command, "give pip an index that has these wheels")
            (Path(name) / "site").rename(site)
    _link_package(project["tool"]["setuptools"]["package-dir"], site / "tintype")
    return site


def _link_package(folders: dict[str, str], package: Path) -> None:
    """Make the package out of links into this checkout."""
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir()
    for entry in (REPOSITORY / folders["tintype"]).iterdir():
        (package / entry.name).symlink_to(entry)
    for name, source in folders.items():
        if name != "tintype":
            (package / name.removeprefix("tintype.")).symlink_to(REPOSITORY / source)


def _run(command: list[str], fix: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}\nfix: {fix}")


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for processor in PROCESSORS:
        try:
            print(make(processor, folder), flush=True)
        except MissingError as error:
            print(f"error: {processor.name} can't be emulated: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
