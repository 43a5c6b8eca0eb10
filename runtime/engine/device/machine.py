"""What this machine is, as far as a build or a thread pool depends on it. Reads only, and runs no program.

What isn't known makes nothing fail: a processor without a name is called by its architecture, and one whose
instruction sets nobody knows has none.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

CPUINFO = Path("/proc/cpuinfo")
CPU_FOLDER = Path("/sys/devices/system/cpu")
CGROUP_FOLDER = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")
X86 = frozenset({"x86_64", "amd64", "i686", "x86"})
ARM64 = frozenset({"aarch64", "arm64"})

# numpy has names for what several instruction sets make together. Members are named too, so far.
_GROUPS = {
    "x86_v2": {"sse42"},
    "x86_v3": {"sse42", "avx2"},
    "x86_v4": {"sse42", "avx2", "avx512f"},
    "avx512_skx": {"sse42", "avx2", "avx512f"},
    "avx512_clx": {"sse42", "avx2", "avx512f", "avx512vnni"},
    "avx512_cnl": {"sse42", "avx2", "avx512f"},
    "avx512_icl": {"sse42", "avx2", "avx512f", "avx512vnni"},
    "avx512_spr": {"sse42", "avx2", "avx512f", "avx512vnni"},
}
# What ONNX Runtime's kernels differ by, as far as every numpy since 1.26 names it: with a numpy that names more, a
# machine stays the same.
KERNEL_SETS = {
    *("sse41", "sse42", "avx", "avx2", "fma3", "f16c", "asimd", "asimdhp", "asimddp", "asimdfhm", "vsx", "vsx3", "vx"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512fp16"),
}
# The best that a processor has decides its kind. Without any: its architecture's least.
_X86_KINDS = {"avx512vnni": "avx512-vnni", "avx512f": "avx512", "avx2": "avx2", "sse42": "sse4.2"}
X86_LEAST = "sse2"
_PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE = 43


def most_threads() -> int:
    """More than these never help, and thousands never end: a few for each processor that this machine has."""
    return max(64, 4 * (os.cpu_count() or 1))


def default_threads() -> int:
    """Physical cores that this process may use: ONNX Runtime gains nothing from a core's second thread.

    Of a quota (a container's, a service's) a part of a core counts as one.
    """
    try:
        counts = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]
    except OSError:  # a container that hides what psutil reads
        counts = [os.cpu_count() or 1]
    allowed = _allowed_cpus()
    if allowed:
        counts.append(core_count(allowed, CPU_FOLDER))
    quota = cpu_quota(_text(PROCESS_CGROUPS), CGROUP_FOLDER)
    if quota is not None:
        counts.append(math.ceil(quota))
    return max(1, min(counts))


def core_count(cpus: Collection[int], folder: Path) -> int:
    """Of how many cores these logical processors are; one whose siblings aren't known is a core of its own."""
    return len({_text(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def cpu_quota(cgroups: str, folder: Path) -> float | None:
    """Processors' worth of time that a process may use, of any of its control groups; None is without limit.

    cgroups: its /proc/PID/cgroup. folder: where control groups are mounted, of version 1 or 2.
    """
    quotas = []
    for line in cgroups.splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = folder / "cpu" if controllers else folder
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        for part in ("", *path.split("/")):  # every group above counts too; a container sees its own as the first
            group = group / part
            words = " ".join(_text(group / file) for file in files).split()
            if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):  # max and -1 are no limit
                quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def system_name() -> str:
    """The operating system, its version and the architecture; `platform.platform` would run uname."""
    macos = platform.mac_ver()[0]
    name, version = ("macOS", macos) if macos else (platform.system(), platform.release())
    return "-".join((name, version, platform.machine()))


@functools.cache
def cpu_identity() -> str:
    """The processor's name and a digest of its instruction sets: an optimized graph is good for these alone."""
    digest = hashlib.sha256(" ".join(sorted(instruction_sets() & KERNEL_SETS)).encode()).hexdigest()[:8]
    return f"{platform.system()} {platform.machine()} {cpu_name()} {digest}"


@functools.cache
def cpu_name() -> str:
    """The processor as its maker calls it, by what the system says; its architecture where it says nothing."""
    ask = {"Linux": _linux_name, "Windows": _windows_name, "Darwin": _macos_name}.get(platform.system())
    try:
        name = ask() if ask is not None else ""
    except (OSError, AttributeError, ImportError):
        name = ""
    return " ".join(name.split()) or platform.machine() or "processor"


def processor_kind() -> str:
    """The kind of processor by the best that it has for a product of matrices: sse2, sse4.2, avx2, avx512, avx512-vnni;
    neon, neon-dotprod; of other architectures, their name.
    """
    return kind_of(platform.machine(), instruction_sets())


def kind_of(architecture: str, sets: Collection[str]) -> str:
    """`processor_kind` of an architecture, as `platform.machine` names it, with these instruction sets."""
    # Its sets come first: Windows says ARM64 to a program for x86-64 that it emulates.
    if "sse2" in sets or ("neon" not in sets and architecture.lower() in X86):
        return next((kind for name, kind in _X86_KINDS.items() if name in sets), X86_LEAST)
    if "neon" in sets or architecture.lower() in ARM64:
        return "neon-dotprod" if "asimddp" in sets else "neon"
    return architecture.lower() or "unknown"


@functools.cache
def instruction_sets() -> frozenset[str]:
    """Those that the processor has and the system lets programs use, as numpy names them, in lower case: avx2,
    avx512vnni, asimddp. Empty where nobody knows.

    numpy asks the processor itself (CPUID), so an emulator's or a virtual machine's answer counts, and what a
    container shows as /proc/cpuinfo doesn't. It knows nothing of AVX-VNNI and AMX.
    """
    names = single_sets(_numpy_features())
    # On arm64 numpy asks Linux alone; elsewhere it says what it was compiled for.
    return names | {"asimddp"} if "neon" in names and _has_dot_product() else names


def single_sets(features: Mapping[str, bool]) -> frozenset[str]:
    """Names of instruction sets from numpy's table of features, whose groups stand for their members."""
    present = {name.lower() for name, has in features.items() if has}
    members = (_GROUPS[name] for name in present & _GROUPS.keys())
    return frozenset((present - _GROUPS.keys()).union(*members))


def _numpy_features() -> Mapping[str, bool]:
    for module in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):  # of numpy 2 and 1
        try:
            return dict(import_module(module).__cpu_features__)
        except (ImportError, AttributeError):
            continue
    return {}


def _has_dot_product() -> bool:
    """Whether Windows or macOS says that an arm64 processor has products of bytes."""
    try:
        if platform.system() == "Windows":
            windll: Any = import_module("ctypes").windll
            return bool(windll.kernel32.IsProcessorFeaturePresent(_PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE))
        return platform.system() == "Darwin" and any(_sysctl("hw.optional.arm.FEAT_DotProd"))
    except (OSError, AttributeError):
        return False


def _linux_name() -> str:
    """The first processor's name; on arm64, which has none, every kind of core by its numbers."""
    fields = cpuinfo()
    implementers, parts = fields.get("CPU implementer", []), fields.get("CPU part", [])
    numbers = f"implementer {' '.join(implementers)} part {' '.join(parts)}" if implementers and parts else ""
    return fields.get("model name", [numbers])[0]


def cpuinfo() -> dict[str, list[str]]:
    """/proc/cpuinfo: each field's different values, in order. Empty where it is hidden; strange where it is faked."""
    fields: dict[str, dict[str, None]] = {}
    for line in _text(CPUINFO).splitlines():
        field, colon, value = line.partition(":")
        if colon and value.strip():
            fields.setdefault(field.strip(), {})[value.strip()] = None
    return {field: list(values) for field, values in fields.items()}


def _windows_name() -> str:
    winreg: Any = import_module("winreg")
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
        return str(winreg.QueryValueEx(key, "ProcessorNameString")[0])


def _macos_name() -> str:
    return _sysctl("machdep.cpu.brand_string").rstrip(b"\0").decode("ascii", "ignore")


def _sysctl(name: str) -> bytes:
    """What macOS's kernel says to a name, as its bytes; none where it doesn't know the name."""
    answer, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), answer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return b"" if failed else answer.raw[: size.value]


def _allowed_cpus() -> Collection[int]:
    """Logical processors that this process may run on; empty where the system doesn't say, as on macOS."""
    try:
        if hasattr(os, "sched_getaffinity"):
            return os.sched_getaffinity(0)
        return psutil.Process().cpu_affinity() or ()
    except (OSError, AttributeError, psutil.Error):
        return ()


def _text(file: Path) -> str:
    """A file of the kernel's, or nothing where it can't be read."""
    try:
        return file.read_text(encoding="ascii", errors="ignore")
    except OSError:
        return ""
