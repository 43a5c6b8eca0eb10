"""What the machine has, and what the rest lacks: every target is named, with a device or with a reason and a remedy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import psutil
import pytest

from tintype.engine import list_devices, resolve_provider
from tintype.engine.device import plugins
from tintype.engine.device.devices import device_identity
from tintype.engine.device.hardware import Gpu, drm_gpus, system_library
from tintype.engine.device.machine import cpu_identity, cpu_name, processor_kind
from tintype.engine.device.providers import TARGETS, load_onnxruntime, session_of_devices


def test_every_target_works_or_says_what_is_missing_and_what_to_do():
    found = {device.target: device for device in list_devices()}
    assert list(found) == list(TARGETS)
    assert found["cpu"].usable
    assert found["cpu"].memory_bytes == psutil.virtual_memory().total
    assert (found["cpu"].name, found["cpu"].kind) == (cpu_name(), processor_kind())
    assert {device.kind for device in found.values() if device.target != "cpu"} == {None}
    assert found["cpu"].version.split() == ["onnxruntime", load_onnxruntime().__version__]
    for device in found.values():
        assert device.usable == (device.problem is None) == (device.fix is None) == (device.version is not None)


NVML = """
#include <string.h>
int nvmlInit_v2(void) { return STATUS; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "580.95.05", size); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card) { *card = (char *)0x7f0000000000 + index; return 0; }
int nvmlDeviceGetName(void *card, char *text, unsigned size) {
    strncpy(text, (size_t)card & 1 ? "NVIDIA X" : "NVIDIA GeForce RTX 3060", size);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *card, unsigned long long *bytes) {
    if ((size_t)card & 1) return 3;  /* not supported */
    bytes[0] = 12ull << 30; bytes[1] = 1; bytes[2] = 2;
    return 0;
}
"""


@pytest.mark.parametrize("status", [0, 999])
def test_nvidia_cards_have_name_memory_and_driver_and_a_broken_driver_lists_nothing(tmp_path, status):
    """As NVIDIA's management library tells them, or one in its place: an unknown error is 999."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("makes a library for Linux in place of NVIDIA's, which takes a C compiler")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", f"-DSTATUS={status}", "-o", str(library), str(tmp_path / "nvml.c")]
    subprocess.run(command, check=True)
    shutil.copy(library, tmp_path / "libcuda.so.1")
    script = (
        "from tintype.engine.device.hardware import gpus, nvidia_gpus; "
        "from tintype.engine.device.remedies import missing_driver; "
        "print(nvidia_gpus()); print(gpus()[:2] == nvidia_gpus()); print(missing_driver('cuda'))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PATH": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    expected = [
        Gpu("NVIDIA", "NVIDIA GeForce RTX 3060", 12 * 2**30, "580.95.05"),
        Gpu("NVIDIA", "NVIDIA X", None, "580.95.05"),
    ]
    listed = expected if status == 0 else []
    assert done.stdout.splitlines()[0] == str(listed)
    assert done.stdout.splitlines()[2] == "None"
    if status == 0:
        assert done.stdout.splitlines()[1] == "True"


def test_a_library_of_the_system_is_there_or_not():
    assert system_library({"Linux": "libc.so.6", "Windows": "kernel32.dll", "Darwin": "libSystem.dylib"}) is not None
    assert system_library({platform.system(): "no-such-library.so.1"}) is None
    assert system_library({}) is None


def test_linux_cards_are_read_from_the_kernel(tmp_path):
    for name, vendor, device in (
        ("card0", "0x1002", "0x744c"),
        ("card1", "0x8086", "0x56a0"),
        ("card2", "nonsense", ""),
    ):
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "device/vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "device/device").write_text(f"{device}\n")
    (tmp_path / "card0/device/mem_info_vram_total").write_text("17163091968\n")
    (tmp_path / "drivers/amdgpu").mkdir(parents=True)
    (tmp_path / "card0/device/driver").symlink_to(tmp_path / "drivers/amdgpu")
    (tmp_path / "card0-HDMI-A-1").symlink_to(tmp_path / "card0")
    assert drm_gpus(tmp_path) == [Gpu("AMD", "AMD 1002:744c", 17163091968, "amdgpu"), Gpu("Intel", "Intel 8086:56a0")]
    assert drm_gpus(tmp_path / "none") == []


def test_a_build_for_the_processor_depends_on_nothing_else():
    assert device_identity(TARGETS["cpu"]) == cpu_identity()
    assert device_identity(TARGETS["cuda"]).startswith(cpu_identity())


def test_a_provider_library_that_cannot_be_loaded_is_told_not_raised(tmp_path, monkeypatch):
    (tmp_path / "no_such_ep.py").write_text("def get_library_path():\n    return '/nowhere/libep.so'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.is_installed("no_such_ep")
    assert "no_such_ep cannot be loaded" in plugins.register(load_onnxruntime(), "no_such_ep")
    assert not plugins.is_registered("no_such_ep")


def test_a_session_can_be_opened_by_the_device_api(bundle, feed):
    runtime = load_onnxruntime()
    (device, *_) = plugins.devices(runtime, "CPUExecutionProvider")
    session = session_of_devices(str(bundle.graph_path("denoiser")), runtime.SessionOptions(), [device], {})
    assert session.get_providers() == ["CPUExecutionProvider"]
    plain = runtime.InferenceSession(bundle.graph_path("denoiser"), providers=["CPUExecutionProvider"])
    assert (session.run(None, feed)[0] == plain.run(None, feed)[0]).all()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_named_device_is_used_or_it_is_an_error(name):
    device = next(device for device in list_devices() if device.target == name)
    if device.usable:
        assert resolve_provider(name) is TARGETS[name]
    else:
        with pytest.raises(Exception, match=f"provider {name} cannot be used") as caught:
            resolve_provider(name)
        assert (caught.value.reason, caught.value.fix) == (device.problem, device.fix)
