"""Content credentials: what is signed, and what reads it. c2pa itself reads it too."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from credential_files import (
    chunk,
    encoded,
    needs_extra,
    png_with,
    written,
)
from PIL import Image

import tintype
from tintype.cli.verify import verify
from tintype.trust.certificates import LOCAL_NAME
from tintype.trust.credential_reading import NO_CREDENTIALS
from tintype.trust.manifests import JPEG, PNG

pytestmark = pytest.mark.slow

FIELDS = {"seed": 7, "num_inference_steps": 1, "width": 256, "height": 256}  # a smaller one's payload may be lost
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def ran(*words: object) -> Result:
    return CliRunner().invoke(verify, [str(word) for word in words])


@pytest.fixture(scope="module")
def postcard() -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu", credentials="auto") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def signed(postcard: tintype.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return postcard.generate("a boat", **FIELDS).save(tmp_path_factory.mktemp("signed") / "boat.png")[0]


def read_by_c2pa(path: Path) -> dict[str, Any]:
    """As c2pa itself says it, beside what is ours."""
    import c2pa

    context = c2pa.Context.from_dict({"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}})
    with path.open("rb") as file, c2pa.Reader("image/png", file, context=context) as reader:
        return json.loads(reader.json())  # type: ignore[no-any-return]


@needs_extra
def test_a_picture_says_signed_that_a_model_made_it(signed: Path) -> None:
    store = read_by_c2pa(signed)
    assert store["validation_state"] == "Valid"
    manifest = store["manifests"][store["active_manifest"]]
    assert manifest["title"] == "boat.png"
    assert (manifest["claim_generator_info"][0]["name"], manifest["claim_generator_info"][0]["version"]) == (
        "Tintype",
        tintype.__version__,
    )
    said = {each["label"]: each["data"] for each in manifest["assertions"]}
    created, marked = said["c2pa.actions.v2"]["actions"]
    assert created["action"] == "c2pa.created"
    assert created["digitalSourceType"] == f"{SOURCE}trainedAlgorithmicMedia"
    assert created["softwareAgent"] == {"name": "Tintype", "version": tintype.__version__}
    assert marked["action"] == "c2pa.watermarked.bound"
    record = tintype.read_record(signed)
    assert record.watermark is not None
    assert said["c2pa.soft-binding"]["blocks"][0]["value"] == record.watermark.payload
    with Image.open(signed) as picture:
        assert said["tintype.record"]["id"] in picture.text["XML:com.adobe.xmp"]  # type: ignore[attr-defined]
    assert "thumbnail" not in json.dumps(store)
    assert record.credentials == "local"
    assert "boat" not in json.dumps(store).replace("boat.png", "")  # the words stay in the record


@needs_extra
def test_signing_changes_neither_pixels_nor_record(postcard: tintype.Pipeline, signed: Path, tmp_path: Path) -> None:
    again = postcard.reproduce(tintype.read_record(signed))
    second = again.save(tmp_path / "again.png")[0]
    assert again.record == tintype.read_record(signed)
    with Image.open(signed) as one, Image.open(second) as other:
        assert one.tobytes() == other.tobytes()
        assert one.text == other.text  # type: ignore[attr-defined]


@needs_extra
def test_verify_says_what_is_signed_and_that_nobody_vouches(signed: Path) -> None:
    found = tintype.verify(signed)
    assert found.credentials.state == "untrusted"
    assert found.credentials.made_with == f"Tintype {tintype.__version__}"
    assert found.credentials.actions == ("c2pa.created (trainedAlgorithmicMedia)", "c2pa.watermarked.bound")
    assert found.credentials.watermark_bound is True
    done = ran(signed)
    assert done.exit_code == 0
    assert "for whom nobody vouches" in done.output
    assert "the watermark is the one that was signed" in done.output


@needs_extra
def test_who_trusts_the_authority_is_told_that_it_is_valid(signed: Path, tmp_path: Path) -> None:
    chain = json.loads((Path(os.environ["TINTYPE_CACHE"]) / LOCAL_NAME).read_text())["chain"]
    authority = written(tmp_path, ("-----BEGIN" + chain.split("-----BEGIN")[2]).encode(), "authority.pem")
    assert tintype.verify(signed, trust=authority).credentials.state == "valid"
    with pytest.raises(tintype.RequestError, match="no certificate in PEM"):
        tintype.verify(signed, trust=written(tmp_path, b"words", "words.pem"))


def changed(path: Path) -> bytes:
    """A picture with one byte of its pixels changed, whole as a PNG."""
    with Image.open(path) as picture:
        pixels = np.array(picture)
    pixels[0, 0, 0] ^= 1
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    data = path.read_bytes()
    start = data.index(b"IDAT") - 4
    return data[:start] + file.getvalue()[file.getvalue().index(b"IDAT") - 4 :]


@needs_extra
def test_one_changed_byte_is_invalid(signed: Path, tmp_path: Path) -> None:
    path = written(tmp_path, changed(signed))
    found = tintype.verify(path)
    assert found.credentials.state == "invalid"
    assert found.credentials.problems == ("assertion.dataHash.mismatch",)
    assert found.watermark.found
    done = ran(path)
    assert done.exit_code == 1
    assert "they don't hold: assertion.dataHash.mismatch" in done.output


@needs_extra
def test_what_was_saved_again_has_none_and_is_still_marked(signed: Path, tmp_path: Path) -> None:
    with Image.open(signed) as picture:
        picture.save(tmp_path / "x.png")
    found = tintype.verify(tmp_path / "x.png")
    assert found.credentials == NO_CREDENTIALS
    assert found.watermark.found


@needs_extra
def test_anothers_watermark_is_told(postcard: tintype.Pipeline, signed: Path, tmp_path: Path) -> None:
    """Signed of one picture, with the pixels of an unmarked one: what a signer who cheats would do."""
    record = tintype.read_record(signed)
    plain = postcard.generate("a boat", watermark=False, **FIELDS)
    assert plain.signer is not None
    tintype.Picture(0, plain.image, record, plain.signer).save(tmp_path / "x.png")
    found = tintype.verify(tmp_path / "x.png").credentials
    assert (found.state, found.watermark_bound) == ("untrusted", False)


@needs_extra
@pytest.mark.parametrize("kind", ["signed", "tampered", "plain", "in memory", "another since"])
def test_a_picture_from_a_picture_names_its_parent(
    kind: str, postcard: tintype.Pipeline, signed: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent.png"
    content = {"tampered": changed(signed), "plain": encoded("PNG")}
    parent.write_bytes(content.get(kind, signed.read_bytes()))
    with Image.open(parent) as picture:
        picture.load()
    result = postcard.generate("a boat", image=picture if kind == "in memory" else parent, **FIELDS)
    if kind == "another since":
        parent.write_bytes(encoded("PNG"))
    path = result.save(tmp_path / "child.png")[0]
    store = read_by_c2pa(path)
    manifest = store["manifests"][store["active_manifest"]]
    actions = manifest["assertions"][0]["data"]["actions"]
    assert [each["action"] for each in actions] == ["c2pa.opened", "c2pa.edited", "c2pa.watermarked.bound"]
    assert actions[1]["digitalSourceType"] == f"{SOURCE}compositeWithTrainedAlgorithmicMedia"
    (ingredient,) = manifest["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    assert len(store["manifests"]) == (2 if kind in ("signed", "tampered") else 1)
    image = result.record.request.image
    assert image is not None
    if kind not in ("signed", "tampered"):  # C2PA has an id for it and no hash
        assert ingredient["instance_id"] == f"sha256:{image.sha256}"
    found = tintype.verify(path).credentials
    assert found.state == "untrusted"
    (told,) = found.ingredients
    assert told.state == {"signed": "untrusted", "tampered": "invalid"}.get(kind, "none")
    assert told.problems == (("assertion.dataHash.mismatch",) if kind == "tampered" else ())


@needs_extra
def test_a_parent_that_is_written_over_is_still_an_ingredient(
    postcard: tintype.Pipeline, signed: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, signed.read_bytes())
    postcard.generate("a boat", image=path, **FIELDS).save(path)
    (told,) = tintype.verify(path).credentials.ingredients
    assert (told.title, told.state) == ("x.png", "untrusted")


@needs_extra
@pytest.mark.parametrize("of", [PNG, JPEG])
def test_credentials_that_a_parent_only_names_an_address_of_are_not_fetched(
    of: str, postcard: tintype.Pipeline, tmp_path: Path
) -> None:
    asked: list[str] = []

    class Listening(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listening) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/x.c2pa"
        rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
        xmp = (
            f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}"><rdf:Description rdf:about="" '
            f'xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{address}"/></rdf:RDF></x:xmpmeta>'
        ).encode()
        if of == PNG:
            content = png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
        else:
            segment, plain = b"http://ns.adobe.com/xap/1.0/\0" + xmp, encoded("JPEG")
            content = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
        parent = written(tmp_path, content, "parent.png")
        child = postcard.generate("a boat", image=parent, **FIELDS).save(tmp_path / "child.png")[0]
        assert tintype.verify(parent).credentials == NO_CREDENTIALS
        (told,) = tintype.verify(child).credentials.ingredients
        server.shutdown()
    assert asked == []
    assert (told.title, told.state) == ("parent.png", "none")


@needs_extra
def test_the_command_signs_unless_it_is_not_to(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TINTYPE_CREDENTIALS"}
    for name, words in (("signed", []), ("plain", ["--no-credentials"])):
        words = ["a boat", "--num-inference-steps", "1", "--size", "64x64", "-o", f"{name}.png", *words]
        command = [sys.executable, "-m", "tintype", "generate", *words]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert tintype.verify(tmp_path / "signed.png").credentials.state == "untrusted"
    assert tintype.verify(tmp_path / "plain.png").credentials == NO_CREDENTIALS


@needs_extra
def test_a_picture_that_cannot_be_signed_leaves_what_was_there(
    postcard: tintype.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import c2pa

    def fails(*args: object) -> Callable[..., Any]:
        raise c2pa.C2paError("no")

    path = written(tmp_path, b"old")
    result = postcard.generate("a boat", **FIELDS)
    monkeypatch.setattr(c2pa.Builder, "sign", fails)
    with pytest.raises(tintype.OutputError, match="cannot be signed"):
        result.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
