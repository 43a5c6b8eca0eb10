"""Writes cuda-kernels.json: every kernel that a wheel of onnxruntime-gpu registers for CUDA, by type, without a GPU.

    pip download --no-deps onnxruntime-gpu==1.31.1 && python cuda_kernels.py onnxruntime_gpu-1.31.1-*.whl

The CUDA libraries are not needed: stubs take their place, of functions that do nothing, since registering kernels calls
none that matters. Takes gcc, nm, objdump, and the Python that the wheel is for.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIBRARIES = ("libonnxruntime_providers_cuda.so", "libonnxruntime_providers_tensorrt.so")
STUBBED = re.compile(r"lib(cu|nv)\w*\.so\.\d+")
DUMP = """
import json, sys, onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state
rows = [
    [d.domain, d.op_name, *d.version_range, {k: sorted(t[7:-1] for t in v) for k, v in d.type_constraints.items()}]
    for d in state.get_all_opkernel_def() if d.provider == "CUDAExecutionProvider"
]
json.dump({"onnxruntime-gpu": onnxruntime.__version__, "kernels": sorted(rows, key=str)}, open(sys.argv[1], "w"))
"""


def _tool(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make_stubs(folder: Path, stubs: Path) -> None:
    """Libraries with the names and functions that the providers ask of CUDA, cuDNN and TensorRT."""
    needed: set[str] = set()
    functions: dict[str, dict[str, bool]] = collections.defaultdict(dict)
    for library in (folder / name for name in LIBRARIES):
        needed |= {
            name for name in re.findall(r"NEEDED\s+(\S+)", _tool("objdump", "-p", str(library))) if STUBBED.match(name)
        }
        for line in _tool("nm", "-D", "--undefined-only", str(library)).splitlines():
            name, _, version = line.split()[-1].partition("@")
            if STUBBED.match(version) or re.match(r"(__)?cu[a-zA-Z]|create\w+_INTERNAL|get(Infer|Plugin)", name):
                functions[version or ("libcuda.so.1" if name.startswith("cu") else "libnvinfer.so.10")][name] = bool(
                    version
                )
    for library in sorted(needed | set(functions)):
        names = functions[library]
        code, map_file = stubs / f"{library}.c", stubs / f"{library}.map"
        code.write_text(
            "static char d[65536];\n"
            + "".join(f"void *{name}(void) {{ return d; }}\n" for name in names if name.startswith("__cuda"))
            + "".join(f"void *{name}(void) {{ return 0; }}\n" for name in names if not name.startswith("__cuda"))
        )
        map_file.write_text(f"{library} {{ global: *; }};\n")
        versioned = [f"-Wl,--version-script={map_file}"] if any(names.values()) else []
        _tool(
            "gcc", "-shared", "-fPIC", "-w", "-o", str(stubs / library), str(code), f"-Wl,-soname,{library}", *versioned
        )


def main(wheel: str) -> None:
    """Unpack the wheel, put stubs beside it, and ask it which kernels it has."""
    output = Path(__file__).with_name("cuda-kernels.json")
    with tempfile.TemporaryDirectory() as scratch:
        zipfile.ZipFile(wheel).extractall(scratch)
        stubs = Path(scratch) / "stubs"
        stubs.mkdir()
        make_stubs(Path(scratch) / "onnxruntime/capi", stubs)
        paths = {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": scratch}
        subprocess.run([sys.executable, "-c", DUMP, str(output)], env={**os.environ, **paths}, check=True)
    told = json.loads(output.read_text())
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in told["kernels"])
    output.write_text(f'{{"onnxruntime-gpu":"{told["onnxruntime-gpu"]}","kernels":[\n{rows}\n]}}\n')


if __name__ == "__main__":
    main(sys.argv[1])
