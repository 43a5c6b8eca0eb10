"""A plan is kept while it fits what is free and not much more has become free; never longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tintype.costs import Costs
from tintype.free_memory import free_bytes
from tintype.memory.budget import MemoryLimits, free_limits
from tintype.memory.mode import MIB, PACKED
from tintype.memory.plan import Plan, Stage
from tintype.memory.planner import GROWN, MARGIN, KnownPlan
from tintype.recent import Recent


def plan_of(peak_mib: int, budget: int | None, device_mib: int = 0) -> Plan:
    costs = Costs(
        peak_bytes=peak_mib * MIB,
        resident_bytes=0,
        copied_bytes=0,
        open_seconds=1.0,
        held_seconds=0.0,
        call_seconds=1.0,
        device_bytes=device_mib * MIB,
    )
    stage = Stage(
        role="denoiser", mode=PACKED, split_guidance=False, opens=1, calls=1, costs=costs, before_bytes=100 * MIB
    )
    return Plan(budget_bytes=budget, base_bytes=100 * MIB, stages=(stage,), keep=False)


@pytest.mark.parametrize(
    ("now_mib", "serves"),
    [
        (1000, True),
        (950, True),
        (int(900 / MARGIN) + 1, True),
        (int(900 / MARGIN) - 1, False),
        (100, False),
        (1000 * GROWN - 1, True),
        (1000 * GROWN + 1, False),
    ],
)
def test_a_plan_serves_while_it_fits_and_no_bound_has_grown_much(now_mib: float, serves: bool) -> None:
    budget, now = 1000 * MIB, int(now_mib * MIB)
    known = KnownPlan(plan_of(800, budget), budget, MemoryLimits(host=budget))
    assert known.serves(now, MemoryLimits(host=now)) == serves


@pytest.mark.parametrize(
    ("device_mib", "serves"), [(500, True), (450, True), (300, False), (700, False), (None, False)]
)
def test_what_a_device_has_free_counts_by_itself(device_mib: int | None, serves: bool) -> None:
    budget = 4000 * MIB
    known = KnownPlan(plan_of(800, budget, device_mib=400), budget, MemoryLimits(device=500 * MIB))
    assert known.serves(budget, MemoryLimits(device=None if device_mib is None else device_mib * MIB)) == serves


def test_free_memory_that_goes_up_and_down_a_little_changes_no_plan() -> None:
    """Around the end of what a plan fits in, each new one is for less, and is kept when more is free again."""
    made_for = [1000]
    known = KnownPlan(plan_of(860, 1000 * MIB), 1000 * MIB, MemoryLimits())
    for now in [995, 985, 1000, 985, 1010, 988, 1005] * 20:
        if not known.serves(now * MIB, MemoryLimits()):
            made_for.append(now)
            known = KnownPlan(plan_of(int(now * MARGIN) - 101, now * MIB), now * MIB, MemoryLimits())
    assert len(made_for) <= 2


def group(folder: Path, version: int, limit: object, used: int, files: int, *, nested: bool = False) -> Path:
    """A control group's files; nested: in that very folder, not in one that the version has at the top."""
    names = {2: ("memory.max", "memory.current", ""), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")}
    limit_name, used_name, prefix = names[version]
    folder = folder if version == 2 or nested else folder / "memory"
    folder.mkdir(exist_ok=True)
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    stat = {"anon": used - files, f"{prefix}active_file": files // 4, f"{prefix}inactive_file": files - files // 4}
    (folder / "memory.stat").write_text("".join(f"{name} {count}\n" for name, count in stat.items()))
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_without_the_files_that_are_in_memory(tmp_path: Path, version: int) -> None:
    """A container that has read large files has used all of its memory, and nearly all of that can be had again."""
    folder = group(tmp_path, version, 200 * MIB, 199 * MIB, 150 * MIB)
    assert free_bytes(tmp_path) == min(151 * MIB, free_bytes(tmp_path / "none"))
    (folder / "memory.stat").unlink()
    assert free_bytes(tmp_path) == MIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_of_a_groups_own_limit_and_those_above_it_counts(tmp_path: Path, version: int) -> None:
    own = tmp_path / "own"
    own.write_text({1: "5:cpu:/\n4:memory:/system/kiosk\n", 2: "0::/system/kiosk\n"}[version])
    top = tmp_path / "cgroup"
    place = top if version == 2 else top / "memory"
    for folder, limit in ((place, "max"), (place / "system", 400 * MIB), (place / "system/kiosk", 225 * MIB)):
        folder.mkdir(parents=True, exist_ok=True)
        group(folder, version, limit, 100 * MIB, 60 * MIB, nested=True)
    assert free_bytes(top, own) == 185 * MIB
    group(place / "system", version, 200 * MIB, 150 * MIB, 10 * MIB, nested=True)
    assert free_bytes(top, own) == 60 * MIB
    own.write_text("0::/elsewhere\n4:memory:/elsewhere\n")  # a container that sees its own group as the top
    group(place, version, 50 * MIB, 20 * MIB, 0, nested=True)
    assert free_bytes(top, own) == 30 * MIB
    own.write_text("0::/../../etc\nnonsense\n")
    assert free_bytes(top, own) == 30 * MIB


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_limit_of_the_address_space_counts() -> None:
    code = (
        "import resource, psutil; from tintype.free_memory import free_bytes;"
        "limit = psutil.Process().memory_info().vms + 300 * 2**20;"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); print(free_bytes() / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 200 < float(done.stdout) <= 300


def test_no_limit_is_none(tmp_path: Path) -> None:
    group(tmp_path, 2, "max", 5 * MIB, MIB)
    group(tmp_path, 1, 2**63 - 4096, 5 * MIB, MIB)
    assert free_bytes(tmp_path) > 151 * MIB


@pytest.mark.skipif(not hasattr(psutil.Process().memory_info(), "shared"), reason="nobody tells what is mapped")
def test_mapped_files_in_memory_count_once(tmp_path: Path) -> None:
    """They are free already, as the system may take them back: to map and read a file makes no more memory."""
    import mmap

    path = tmp_path / "weights"
    with path.open("wb") as file:
        for _ in range(256):
            file.write(b"x" * MIB)
    before = free_limits(None).host or 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096][:10]) > 0
        grown = (free_limits(None).host or 0) - before
    assert grown < 128 * MIB


def test_what_is_recent_stays_and_the_oldest_goes() -> None:
    recent = Recent[int, str](3)
    for key in range(3):
        assert recent.put(key, str(key)) == str(key)
    assert recent.get(0) == "0"
    recent.put(3, "3")
    assert [recent.get(key) for key in range(4)] == ["0", None, "2", "3"]
    for key in range(1000):
        recent.put(key, "x")
    assert len(recent) == 3
