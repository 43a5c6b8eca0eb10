"""A disk that is full and memory that is not there, for real: a clear error, a clean cache, and good builds stay."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tintype.bundle import open_bundle
from tintype.engine import BuildOptions, ensure_build, resolve_provider
from tintype.engine.build.cache import damage
from tintype.errors import BuildError

pytestmark = pytest.mark.slow

CELLS = {"batch": 2, "height": 32, "width": 32, "sequence": 77}


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A file system of 3 MiB with the cache on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    monkeypatch.setenv("TINTYPE_CACHE", str(folder / "cache"))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of its own")
@pytest.mark.parametrize(("segment_bytes", "full"), [(None, False), (2**20, True)], ids=["soon", "now"])
def test_a_disk_that_fills_while_a_build_is_made(small_disk, segment_bytes, full):
    if full:
        _fill(small_disk)
    options = BuildOptions.for_shape(CELLS, exactness="exact", segment_bytes=segment_bytes, threads=1)
    with pytest.raises(BuildError) as caught:
        ensure_build(open_bundle("postcard"), "denoiser", resolve_provider("cpu"), options=options)
    assert "disk" in caught.value.fix
    builds = small_disk / "cache" / "builds"
    assert [path.name for path in builds.glob("*") if path.is_dir()] == []
    if not full:  # what the build had written is free again
        assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize > 2.5 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of a process's memory")
def test_memory_that_is_not_there_is_told_and_the_build_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path))
    options = BuildOptions.for_shape(CELLS, exactness="exact", threads=1)
    folder = ensure_build(open_bundle("postcard"), "denoiser", resolve_provider("cpu"), options=options)
    weight_bytes = (folder / "model.onnx_data").stat().st_size
    code = (
        "import resource, numpy\n"
        "from tintype.bundle import open_bundle\n"
        "from tintype.engine import BuildOptions, open_role, resolve_provider\n"
        "from tintype.engine.device.providers import load_onnxruntime\n"
        "load_onnxruntime()\n"
        f"options = BuildOptions.for_shape({CELLS!r}, exactness='exact', threads=1)\n"
        "bundle, cpu = open_bundle('postcard'), resolve_provider('cpu')\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        f"limit = pages * resource.getpagesize() + {weight_bytes} // 2\n"  # seen to end in "free(): invalid pointer"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n"
        "    open_role(bundle, 'denoiser', cpu, options=options)\n"
        "except BaseException as error:\n"
        "    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "MemoryBudgetError", done.stderr
    assert Path(folder).is_dir()
    assert damage(folder) is None


def _fill(folder):
    """Write until nothing more fits."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 2**16):
            pass
