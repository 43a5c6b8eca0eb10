"""Emulated processors, each with a Python that `emulated.py` made. A run there takes minutes, so runs go side by side.

TINTYPE_PROCESSORS names the folder of these Pythons; without it the tests are skipped. See `make test-processors`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tintype.record import Record, read_record

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
HOST = "host"
DEADLINE_SECONDS = 1800  # against a hang
PRODUCTS = (
    "tests/kernels/cpu/test_dynamic_linear.py",
    "tests/kernels/cpu/test_quantized_conv.py",
    "tests/kernels/native",  # skipped on arm64, for which a checkout has no library; tests/native runs there
)


@dataclass(frozen=True, slots=True)
class Drawing:
    """What one processor drew."""

    latents: NDArray[np.float32]
    picture: NDArray[np.uint8]
    record: Record
    features: frozenset[str]  # as numpy names them


@dataclass(frozen=True, slots=True)
class Job:
    """A process on a processor, and how it ended."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    def drawing(self) -> Drawing:
        assert self.done.returncode == 0, self.done.stderr
        picture = self.folder / "picture.png"
        features = frozenset(json.loads((self.folder / "features.json").read_text()))
        latents = np.load(self.folder / "latents.npy")
        with Image.open(picture) as image:
            return Drawing(latents, np.asarray(image), read_record(picture), features)


@pytest.fixture(scope="session")
def jobs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], Job]]:
    """What a job (`exact`, `balanced` or `products`) did on a processor. All that selected tests need start at once."""
    pythons = os.environ.get("TINTYPE_PROCESSORS")
    if pythons is None:
        pytest.skip("no folder with emulated processors: see make test-processors")
    started: dict[tuple[str, str], Future[Job]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def job(processor: str, kind: str) -> Future[Job]:
            if (processor, kind) not in started:
                emulated = Path(pythons, processor, "bin/python").absolute()
                python = Path(sys.executable) if processor == HOST else emulated
                folder = tmp_path_factory.mktemp(f"{processor}-{kind}")
                started[processor, kind] = pool.submit(_run, python, kind, folder)
            return started[processor, kind]

        for item in request.session.items:
            wanted = getattr(item, "callspec", None)
            if wanted is not None and {"processor", "kind"} <= wanted.params.keys():
                job(wanted.params["processor"], wanted.params["kind"])
        yield lambda processor, kind: job(processor, kind).result()
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def drawing(jobs: Callable[[str, str], Job]) -> Callable[[str, str], Drawing]:
    return lambda processor, exactness: jobs(processor, exactness).drawing()


def _run(python: Path, kind: str, folder: Path) -> Job:
    if kind == "products":
        # Options of pyproject.toml may name plug-ins that an emulated Python has not.
        options = ["-q", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "--basetemp"]
        command = ["-m", "pytest", *options, str(folder / "temporary"), *PRODUCTS]
    else:
        command = [str(HERE / "draw.py"), kind, str(folder)]
    environment = os.environ | {"TINTYPE_CACHE": str(folder / "cache"), "ORT_DISABLE_TELEMETRY": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        [str(python), *command],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s", file=sys.__stderr__, flush=True)
    return Job(folder, done)
