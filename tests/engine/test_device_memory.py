"""What a driver tells of a device's memory: the kernel's files on Linux, NVIDIA's library, or nobody.

No card is here: files and library are laid out as their documentation has them.
"""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest

from tintype.engine.device.device_memory import device_bytes, drm_bytes, free_device_bytes, nvidia_bytes
from tintype.engine.device.providers import TARGETS

AMD = """pos:	0
flags:	02100002
drm-driver:	amdgpu
drm-client-id:	{client}
drm-pdev:	0000:03:00.0
drm-memory-vram:	{vram} KiB
drm-memory-gtt: 	512 KiB
drm-memory-cpu: 	0 KiB
drm-resident-vram:	{vram} KiB
drm-engine-compute:	123 ns
"""
INTEL = """drm-driver:	xe
drm-client-id:	7
drm-pdev:	0000:00:02.0
drm-total-system:	900 MiB
drm-resident-system:	3 MiB
drm-resident-vram0:	2097152
"""
PLAIN = "pos:\t0\nflags:\t0100000\nmnt_id:\t14\n"


def lay_out(folder, *texts):
    for number, text in enumerate(texts):
        (folder / str(number)).write_text(text)
    return folder


def test_clients_of_every_card_are_added_up_and_each_counts_once(tmp_path):
    twice = AMD.format(client=3, vram=2048)  # two file descriptors of one client
    folder = lay_out(tmp_path, PLAIN, twice, twice, AMD.format(client=4, vram=1024), INTEL)
    assert drm_bytes(folder) == (2048 + 512 + 1024 + 512) * 2**10 + 3 * 2**20 + 2 * 2**20


@pytest.mark.parametrize("text", [PLAIN, "drm-driver:\tnouveau\ndrm-client-id:\t1\n", ""])
def test_a_driver_that_tells_no_memory_is_no_zero(tmp_path, text):
    assert drm_bytes(lay_out(tmp_path, text)) is None


def test_where_there_are_no_such_files_nobody_tells(tmp_path):
    assert drm_bytes(tmp_path / "missing") is None


class NVMLError(Exception):
    pass


@dataclasses.dataclass
class Row:
    pid: int
    usedGpuMemory: int | None  # NVML's name


@pytest.fixture
def nvml(monkeypatch):
    """A management library with lists of processes by card, which the test fills."""
    module = types.SimpleNamespace(NVMLError=NVMLError, compute=[[]], graphics=[[]], open=0)

    def start():
        module.open += 1

    def stop():
        module.open -= 1

    module.nvmlInit, module.nvmlShutdown = start, stop
    module.nvmlDeviceGetCount = lambda: len(module.compute)
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetComputeRunningProcesses = lambda card: module.compute[card]
    module.nvmlDeviceGetGraphicsRunningProcesses = lambda card: module.graphics[card]
    module.nvmlDeviceGetMemoryInfo = lambda card: types.SimpleNamespace(free=5 * 2**30)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvidia_tells_by_process_and_one_that_also_draws_counts_once(nvml):
    nvml.compute = [[Row(41, 7), Row(42, 100)], [Row(42, 30)]]
    nvml.graphics = [[Row(42, 100)], []]
    assert nvidia_bytes(42) == 130
    assert nvidia_bytes(43) is None
    assert nvml.open == 0


def test_nvidia_on_windows_lists_processes_without_their_memory(nvml):
    nvml.compute = [[Row(42, None)]]
    assert nvidia_bytes(42) is None


def test_of_one_card_it_is_known_what_is_free(nvml):
    cuda = TARGETS["cuda"]
    assert free_device_bytes(cuda) == 5 * 2**30
    nvml.compute = nvml.graphics = [[], []]
    assert free_device_bytes(cuda) is None  # which of them ONNX Runtime takes, this library does not say


def test_a_driver_that_refuses_tells_nothing(nvml):
    def refuses():
        raise NVMLError("Driver/library version mismatch")

    nvml.nvmlInit = refuses
    assert nvidia_bytes(42) is None
    assert free_device_bytes(TARGETS["cuda"]) is None


def test_without_the_library_nobody_tells(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_bytes(42) is None


def test_the_processor_has_no_memory_of_its_own():
    assert device_bytes(TARGETS["cpu"]) == 0
    assert free_device_bytes(TARGETS["cpu"]) is None
