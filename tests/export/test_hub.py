"""A checkpoint is fetched from the hub as the hub's own client does it: only what is used, whole, and once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Hub, serving

from tintype.errors import ExportError
from tintype.export.bundling import export_bundle
from tintype.export.checkpoint import open_checkpoint
from tintype.export.sources.hub import is_address
from tintype.files import sha256_of

POSTCARD = Path(__file__).parents[2] / "models/postcard/checkpoint"
UNET = "unet/diffusion_pytorch_model.safetensors"
USED = {
    "model_index.json", "scheduler/scheduler_config.json", "README.md", UNET, "unet/config.json", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
}  # fmt: skip
PROGRAM = """
import json, sys
from tintype.errors import ExportError
from tintype.export.checkpoint import open_checkpoint
from tintype.export.progress import Silent
from tintype.export.sources.hub import fetch
for address in sys.argv[1:]:
    try:
        found = fetch(address, Silent())
        print(json.dumps([found.address, found.revision, open_checkpoint(found.place).sha256()]))
    except ExportError as error:
        print(json.dumps([error.message, error.fix]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The repository holds what published ones do besides; each test changes the server as it likes."""
    folder = Path(shutil.copytree(POSTCARD, tmp_path / "published"))
    for name in (
        "v1-5-pruned.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "safety_checker/model.safetensors",
        "vae/diffusion_flax_model.msgpack",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not asked for")
    with serving(Hub({"org/name": folder}, gated=("org/gated",))) as running:
        yield running


@pytest.fixture
def fetched(hub: Hub, tmp_path: Path) -> Callable[..., list[list[Any]]]:
    """Addresses one after another, in a process whose hub is the test's and whose cache is empty at first."""

    def run(*addresses: str, **environment: str) -> list[list[Any]]:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", **environment}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *addresses],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_only_what_is_used_is_fetched_once_and_goes_on_where_it_broke_off(
    hub: Hub, fetched: Callable[..., list[list[Any]]], tmp_path: Path
) -> None:
    """Within a run, and from an earlier one that was ended."""
    hub.broken.add(UNET)
    vae = POSTCARD / "vae/diffusion_pytorch_model.safetensors"
    blobs = tmp_path / "home/hub/models--org--name/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256_of(vae)}.part").write_bytes(vae.read_bytes()[:1000])
    expected = ["org/name", COMMIT, open_checkpoint(POSTCARD).sha256()]
    assert fetched("org/name", "org/name@main") == [expected, expected]
    assert {name for name, _ in hub.asked} == USED
    first, second = [asked for name, asked in hub.asked if name == UNET]
    assert first == "bytes=0-"
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= (POSTCARD / UNET).stat().st_size // 2
    assert ("vae/diffusion_pytorch_model.safetensors", "bytes=1000-") in hub.asked
    assert len(hub.asked) == len(USED) + 1
    assert fetched("org/name", HF_HUB_OFFLINE="1") == [expected]  # and from the cache, without the hub


def test_what_the_hub_says_of_its_bytes_is_held_against_them(hub: Hub, fetched: Callable[..., list[list[Any]]]) -> None:
    hub.altered.add(UNET)
    ((message, fix),) = fetched("org/name")
    assert message == f"{UNET} of org/name isn't what the hub says: its sha256 differs"
    assert "again" in fix
    hub.altered.clear()
    hub.empty.add(UNET)
    ((message, fix),) = fetched("org/name")
    assert f"nothing more of {UNET}" in message
    assert "goes on where it was" in fix
    hub.empty.clear()
    assert fetched("org/name")[0][:2] == ["org/name", COMMIT]


def test_each_reason_for_nothing_has_its_remedy(hub: Hub, fetched: Callable[..., list[list[Any]]]) -> None:
    gated, absent, revision, file = fetched("org/gated", "org/absent", "org/name@v9", "org/name/none.safetensors")
    assert "gated" in gated[0]
    assert "accept its terms" in gated[1]
    assert "nor on the hub" in absent[0]
    assert "no such revision" in revision[0]
    assert "has no none.safetensors" in file[0]
    (offline,) = fetched("org/name", HF_HUB_OFFLINE="1")
    assert "can't be reached" in offline[0]
    assert "hf download org/name" in offline[1]
    (hub.repositories["org/name"] / UNET).unlink()
    (hub.repositories["org/name"] / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    (pickled,) = fetched("org/name")
    assert "no unet in .safetensors" in pickled[0]
    assert all(not name.endswith((".bin", ".ckpt")) for name, _ in hub.asked)


def test_without_huggingface_hub_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ExportError, match="needs huggingface_hub") as caught:
        export_bundle("org/absent", tmp_path / "bundle")
    assert "tintype[hub]" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_what_is_here_is_never_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_address("org/name")
    assert is_address("org/name/model.safetensors@main")
    (tmp_path / "org/name").mkdir(parents=True)
    for source in ("org/name", "name", "/org/name", "../org/name", "org/../name", "a/b/c", str(tmp_path / "absent")):
        assert not is_address(source), source
