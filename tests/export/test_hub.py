"""A checkpoint is fetched from the hub as the hub's own client does it: only what is used, whole, and once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from controlnets import controlnet
from hub_server import COMMIT, Hub, serving
from one_file import write_one_file

from tintype.bundle.controlnet import open_controlnet
from tintype.errors import ExportError
from tintype.export.bundling import export_bundle
from tintype.export.checkpoint import open_checkpoint
from tintype.export.sources.hub import is_address
from tintype.files import sha256_of
from tintype.sources.facts import describe

__all__ = ["controlnet"]  # the fixture
pytestmark = pytest.mark.slow

POSTCARD = Path(__file__).parents[2] / "models/postcard/checkpoint"
UNET = "unet/diffusion_pytorch_model.safetensors"
USED = {
    "model_index.json", "scheduler/scheduler_config.json", "README.md", UNET, "unet/config.json", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
}  # fmt: skip
EXPORT = """
import json, sys
from tintype.errors import ExportError
from tintype.export import export_bundle
for address, bundle in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        export_bundle(address, bundle)
    except ExportError as error:
        print(json.dumps([error.message, error.fix]))
"""
FILES = """
import json, sys
from tintype.export.progress import Silent
from tintype.export.sources.hub import fetch
print(json.dumps(sorted(path.name for path in fetch(sys.argv[1], Silent()).place.iterdir())))
"""
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

    def run(*words: str, program: str = PROGRAM, **environment: str) -> list[list[Any]]:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", **environment}
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
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


def test_a_controlnet_is_exported_from_the_hub_and_again_without_it(
    hub: Hub, fetched: Callable[..., list[list[Any]]], controlnet: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(controlnet()[0], tmp_path / "net"))
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"not asked for")
    hub.repositories["org/net"] = folder  # type: ignore[index]
    assert fetched("org/net", str(tmp_path / "bundle"), program=EXPORT) == []
    assert {name for name, _ in hub.asked} == {"config.json", "diffusion_pytorch_model.safetensors"}
    opened = open_controlnet(tmp_path / "bundle")
    assert (opened.manifest.source.location, opened.manifest.source.revision) == ("org/net", COMMIT)
    assert (
        opened.manifest.files["controlnet/model.onnx"]
        == open_controlnet(controlnet()[1]).manifest.files["controlnet/model.onnx"]
    )
    expected = ["config.json", "diffusion_pytorch_model.safetensors"]
    assert fetched("org/net", program=FILES, HF_HUB_OFFLINE="1") == [expected]
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    hub.repositories["org/vae"] = POSTCARD / "vae"  # type: ignore[index]
    asked = ("org/net", str(tmp_path / "lacking"), "org/vae", str(tmp_path / "vae"))
    (lacking, _), (vae, _) = fetched(*asked, program=EXPORT)
    assert "org/net has no weights in .safetensors" in lacking
    assert "org/vae is no diffusers folder" in vae
    assert not any((tmp_path / name).exists() for name in ("lacking", "vae"))


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


def info_of(hub: Hub, home: Path, *words: str, **environment: str) -> Any:
    """What `tintype info` says of an address, in a process of its own."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "tintype", "info", *words, "--json"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout)


def test_info_reads_of_the_hub_what_is_small_and_of_weights_their_headers(hub: Hub, tmp_path: Path) -> None:
    file = write_one_file(POSTCARD, hub.repositories["org/name"] / "one.safetensors", "sd1")
    told = info_of(hub, tmp_path / "home", "org/name")["checkpoint"]
    here = describe(POSTCARD)
    assert told["location"] == "org/name"
    assert (told["family"], told["need"], told["licence"]) == (here.family, None, here.licence)
    assert (told["parameters"], told["bytes"]) == (here.parameters, here.bytes)
    one = info_of(hub, tmp_path / "home", "org/name/one.safetensors@main")["checkpoint"]
    assert (one["family"], one["form"], one["bytes"]) == ("Stable Diffusion 1.x", "one file", describe(file).bytes)
    weights = [asked for name, asked in hub.asked if name.endswith(".safetensors")]
    assert weights
    for asked in weights:
        assert asked is not None
        first, _, last = asked.removeprefix("bytes=").partition("-")
        assert 0 < int(last) - int(first) + 1 <= 2**20
    small = {name for name, asked in hub.asked if not name.endswith(".safetensors")}
    assert small == {name for name in USED if not name.endswith(".safetensors") and not name.startswith("tokenizer/")}


def test_info_says_of_the_hub_what_an_export_says(hub: Hub, fetched: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for addresses, environment in (
        (("org/absent", "org/name/none.safetensors"), {}),
        (("org/name",), {"HF_HUB_OFFLINE": "1"}),
    ):
        for address, told in zip(addresses, fetched(*addresses, **environment), strict=True):
            error = info_of(hub, home, address, **environment)["error"]
            assert [error["message"], error["fix"]] == told
    fetched("org/name")  # from then on it is known without the hub
    assert info_of(hub, home, "org/name", HF_HUB_OFFLINE="1")["checkpoint"]["family"] == "Stable Diffusion 1.x"


def test_info_of_the_hub_names_what_is_not_done_and_what_lies(hub: Hub, tmp_path: Path) -> None:
    folder, home = hub.repositories["org/name"], tmp_path / "home"
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    told = info_of(hub, home, "org/name")["checkpoint"]
    assert told["family"] is None
    assert "it looks like FLUX, which would need" in told["need"]
    assert str(tempfile.gettempdir()) not in told["need"]
    (folder / UNET).write_bytes(b"\xff" * 100)
    error = info_of(hub, tmp_path / "other", "org/name")["error"]
    assert "org/name/unet/diffusion_pytorch_model.safetensors are broken" in error["message"]


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
