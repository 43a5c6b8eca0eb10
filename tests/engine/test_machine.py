"""What the engine takes the machine for: the processor is asked, and what isn't known makes nothing fail."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import types

import pytest

from tintype.engine import default_threads
from tintype.engine.device import machine
from tintype.engine.device.machine import core_count, cpu_quota, kind_of, single_sets

QEMU = shutil.which("qemu-x86_64")


@pytest.fixture(autouse=True)
def _ask_anew():
    """Each test asks the machine itself, and leaves nothing that it was told."""
    for answer in (machine.instruction_sets, machine.cpu_name, machine.cpu_identity):
        answer.cache_clear()
    yield
    for answer in (machine.instruction_sets, machine.cpu_name, machine.cpu_identity):
        answer.cache_clear()


# Instruction sets


def test_the_processor_has_what_its_architecture_demands():
    """Also where no /proc/cpuinfo says so; of others than these two nothing is claimed."""
    least = {"x86_64": "sse2", "amd64": "sse2", "aarch64": "neon", "arm64": "neon"}.get(platform.machine().lower())
    assert least is None or least in machine.instruction_sets()
    assert machine.processor_kind()


def test_no_file_is_asked_for_instruction_sets(tmp_path, monkeypatch):
    known = machine.instruction_sets()
    machine.instruction_sets.cache_clear()
    lying = tmp_path / "cpuinfo"
    lying.write_text("model name : Marvel\nflags : sse9 avx4096\n")
    monkeypatch.setattr(machine, "CPUINFO", lying)
    assert machine.instruction_sets() == known
    assert (machine.cpu_name() == "Marvel") == (platform.system() == "Linux")


@pytest.mark.skipif(platform.machine() != "x86_64" or QEMU is None, reason="takes qemu-user, on x86-64")
@pytest.mark.parametrize(
    ("model", "kind", "has", "lacks"),
    [
        ("Haswell", "avx2", {"sse42", "avx2", "fma3"}, {"avx512f", "avx512vnni"}),
        ("Nehalem", "sse4.2", {"sse42", "popcnt"}, {"avx", "avx2", "avx512f"}),
    ],
)
def test_an_emulated_processor_is_asked_itself(model, kind, has, lacks):
    """/proc/cpuinfo is the host's there."""
    script = (
        "import json; from tintype.engine.device import machine as m; print(json.dumps([sorted(m.instruction_sets()), "
        "m.processor_kind(), m.cpu_identity(), m.default_threads(), m.cpuinfo().get('flags')]))"
    )
    done = subprocess.run(
        [QEMU, "-cpu", model, sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    sets, emulated_kind, identity, threads, flags = json.loads(done.stdout)
    assert has <= set(sets)
    assert not lacks & set(sets)
    assert emulated_kind == kind
    same = set(sets) & machine.KERNEL_SETS == machine.instruction_sets() & machine.KERNEL_SETS
    assert (identity == machine.cpu_identity()) == same
    assert 1 <= threads <= (os.cpu_count() or 1)
    assert flags == machine.cpuinfo().get("flags")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"AVX2": True, "FMA3": True, "AVX512F": False}, {"avx2", "fma3"}),  # numpy 1.26 names each set
        ({"SSE42": True, "X86_V2": True, "AVX512_SKX": False}, {"sse42"}),  # numpy 2 has groups beside them
        ({"X86_V3": True}, {"sse42", "avx2"}),  # if a numpy had groups alone
        ({"AVX512_CLX": True}, {"sse42", "avx2", "avx512f", "avx512vnni"}),
        ({"ASIMD": True, "NEON": True, "ASIMDDP": True}, {"asimd", "neon", "asimddp"}),
        ({}, set()),
    ],
)
def test_a_group_of_instruction_sets_is_its_members(features, expected):
    assert single_sets(features) == expected


@pytest.mark.parametrize(
    ("architecture", "sets", "kind"),
    [
        ("x86_64", {"sse2", "sse42", "avx2", "avx512f", "avx512vnni"}, "avx512-vnni"),
        ("x86_64", {"sse2", "sse42", "avx2", "avx512f"}, "avx512"),
        ("AMD64", {"sse2", "sse42", "avx", "avx2", "fma3"}, "avx2"),
        ("x86_64", {"sse2", "sse42", "avx"}, "sse4.2"),
        ("x86_64", {"sse2"}, "sse2"),
        ("AMD64", set(), "sse2"),
        ("ARM64", {"sse2", "sse42"}, "sse4.2"),  # what Windows on arm64 calls the machine of an emulated program
        ("aarch64", {"asimd", "neon", "asimddp"}, "neon-dotprod"),
        ("arm64", {"asimd", "neon"}, "neon"),
        ("arm64", set(), "neon"),
        ("armv7l", {"neon"}, "neon"),
        ("riscv64", {"rvv"}, "riscv64"),
        ("", set(), "unknown"),
    ],
)
def test_a_processors_kind_is_the_best_that_it_has(architecture, sets, kind):
    assert kind_of(architecture, sets) == kind


def test_a_numpy_that_tells_nothing_leaves_a_processor_without_instruction_sets(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(machine, "import_module", refuse)
    assert machine.instruction_sets() == frozenset()
    assert machine.processor_kind() in ("sse2", "neon", platform.machine().lower())
    assert len(machine.cpu_identity().split()) >= 3


# Its name


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF\0\xff\xfe:\0\n:::\n", b"model name\t:\nflags\t:\n", "folder"])
def test_a_hidden_or_strange_cpuinfo_leaves_a_usable_name(content, tmp_path, monkeypatch):
    """As containers and sandboxes have it: no file, an empty one, another kind of file."""
    file = tmp_path / "cpuinfo"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(machine, "CPUINFO", file)
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    assert machine.cpu_name() == platform.machine()
    assert machine.cpu_identity().split()[1:3] == [platform.machine()] * 2
    assert default_threads() >= 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t:  AMD  EPYC \nflags : sse2\n\nmodel name : other\n", "AMD EPYC"),
        (
            "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd05\n\n"
            "processor : 4\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd0a\n",
            "implementer 0x41 part 0xd05 0xd0a",
        ),
    ],
)
def test_linux_names_a_processor_or_numbers_its_cores(text, name, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    assert machine.cpu_name() == name


class _Registry(types.ModuleType):
    """Of Windows' registry what the name takes."""

    HKEY_LOCAL_MACHINE = "machine"

    def OpenKey(self, root, path):
        assert (root, path.split("\\")[-1]) == ("machine", "0")
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def QueryValueEx(self, key, name):
        return {"ProcessorNameString": ("Snapdragon(R) X Elite  ", 1)}[name]


def test_windows_names_a_processor_in_its_registry(monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Windows")
    monkeypatch.setitem(sys.modules, "winreg", _Registry("winreg"))
    assert machine.cpu_name() == "Snapdragon(R) X Elite"


@pytest.mark.parametrize("system", ["Windows", "Darwin", "Haiku", ""])
def test_a_system_that_answers_nothing_leaves_a_usable_name(system, monkeypatch):
    """Here neither Windows' registry nor macOS's names exist, as a damaged one wouldn't."""
    if platform.system() in ("Windows", "Darwin"):
        pytest.skip("here that system answers")
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    assert machine.cpu_name() == platform.machine()
    assert machine.processor_kind() == kind_of(platform.machine(), machine.instruction_sets())


@pytest.mark.skipif(platform.system() != "Darwin", reason="asks macOS")
def test_macos_names_a_processor():
    assert machine.cpu_name() != platform.machine()


def test_the_processor_is_named_the_same_each_time():
    first = machine.cpu_identity()
    machine.cpu_identity.cache_clear()
    assert machine.cpu_identity() == first
    assert len(first.split()) >= 3


def test_a_numpy_that_names_more_takes_the_machine_for_the_same(monkeypatch):
    """Else every build would be thrown away with an old numpy; a set that kernels use makes another machine."""
    identities = []
    for features in ({"SSE42", "AVX2"}, {"SSE42", "AVX2", "LAHF", "X86_V3"}, {"SSE42", "AVX512F"}):
        monkeypatch.setattr(machine, "_numpy_features", lambda sets=features: dict.fromkeys(sets, True))
        machine.instruction_sets.cache_clear()
        machine.cpu_identity.cache_clear()
        identities.append(machine.cpu_identity())
    assert identities[0] != identities[2]
    assert identities[0] == identities[1]


# Its cores


def test_threads_are_cores_that_this_process_may_use():
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="takes a system with affinities")
def test_a_process_bound_to_one_core_has_one_thread():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + (
        "from tintype.engine import default_threads; print(default_threads())"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "1\n"


def test_where_nothing_is_known_of_cores_there_is_a_thread(monkeypatch):
    def hidden(logical):
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(machine.psutil, "cpu_count", hidden)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: None)
    assert default_threads() == 1


def test_two_threads_of_one_core_are_one_core(tmp_path):
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{siblings}\n")
    assert core_count({0, 1, 2, 3}, tmp_path) == 2
    assert core_count({0, 2}, tmp_path) == 1
    assert core_count({0, 1}, tmp_path) == 2
    assert core_count({0, 2, 8, 9}, tmp_path) == 3  # nobody tells of 8 and 9
    assert core_count({0, 1, 2}, tmp_path / "hidden") == 3


@pytest.mark.parametrize(
    ("cgroups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container's own view, version 2
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a.slice/b.service\n", {"a.slice/cpu.max": "200000 100000", "a.slice/b.service/cpu.max": "max 1"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/elsewhere\n", {"cpu.max": "300000 100000"}, 3.0),  # of a group that isn't mounted here
        ("4:cpu,cpuacct:/docker/1\n", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ("4:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("5:cpuset:/\n", {"cpu.max": "100000 100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("nonsense", {}, None),
        ("", {}, None),
    ],
)
def test_a_quota_is_the_least_of_all_groups_above(cgroups, files, quota, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(cgroups, tmp_path) == quota


def test_threads_keep_within_a_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP_FOLDER", tmp_path)
    (tmp_path / "cgroup").write_text("0::/\n")
    monkeypatch.setattr(machine, "PROCESS_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_allowed_cpus", lambda: range(8))
    monkeypatch.setattr(machine, "CPU_FOLDER", tmp_path)
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda logical: 8)
    threads = []
    for quota in ("max", "800000", "350000", "50000"):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        threads.append(default_threads())
    assert threads == [8, 8, 4, 1]
