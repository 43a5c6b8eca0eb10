"""What to do when a device cannot be used: the package, the driver or the system that is missing."""

from __future__ import annotations

import platform

from tintype.engine.device.hardware import system_library

SYSTEM_NAMES = {"Darwin": "macOS"}
DRIVER_FIXES = {
    "cuda": "install NVIDIA's driver for CUDA 13, so that nvidia-smi lists the GPU",
    "tensorrt-rtx": "install NVIDIA's driver for CUDA 13, so that nvidia-smi lists the GPU",
    "openvino": "it wants an Intel device and its driver; onnxruntime-openvino in place of onnxruntime takes any x86",
    "qnn": "it wants a Snapdragon with Qualcomm's NPU driver",
    "directml": "install the GPU's driver for DirectX 12",
}
CUDA_LIBRARIES = {"Linux": "libcuda.so.1", "Windows": "nvcuda.dll"}
VULKAN_LIBRARIES = {"Linux": "libvulkan.so.1"}
NO_VULKAN = f"there is no Vulkan loader ({VULKAN_LIBRARIES['Linux']})"


def missing_driver(target: str) -> str | None:
    """What a device of this kind needs of the system and does not find; None when that cannot be told from here."""
    if target in ("cuda", "tensorrt-rtx") and system_library(CUDA_LIBRARIES) is None:
        return f"no NVIDIA driver is installed ({CUDA_LIBRARIES.get(platform.system(), 'CUDA')} is not found)"
    if target == "webgpu" and platform.system() in VULKAN_LIBRARIES and system_library(VULKAN_LIBRARIES) is None:
        return NO_VULKAN
    return None


def driver_fix(target: str) -> str:
    """How the driver of a device of this kind is installed here."""
    if target == "webgpu" and platform.system() == "Linux":
        return "apt-get install libvulkan1 mesa-vulkan-drivers, or the GPU vendor's driver; vulkaninfo lists what works"
    return DRIVER_FIXES.get(target, "install the device's driver")


def package_fix(extra: str, installed: str, *, beside: bool) -> str:
    """The command that installs a provider: beside the onnxruntime that is installed, or in its place."""
    install = f"pip install 'tintype[{extra}]'"
    return install if beside else f"pip uninstall -y {installed} && {install}"


def system_fix(system: str) -> str:
    name = SYSTEM_NAMES.get(system, system)
    return f"use it on {name}; here choose cpu, or webgpu for a GPU"


def says_no_memory(text: str) -> bool:
    """Whether a message of ONNX Runtime is that memory ran out: no class says it, and std::bad_alloc is one way to."""
    return any(word in text.lower() for word in ("alloc", "out of memory"))
