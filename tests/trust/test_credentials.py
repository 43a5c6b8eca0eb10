"""Content credentials: what is signed, what reads it, who may sign, and what hostile files come to."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import tintype
from tintype.bench.photographs import photograph
from tintype.bounds import MAX_CREDENTIALS_BYTES, MAX_LISTED_PARTS, MAX_SIGNED_PARTS
from tintype.cli.verify import verify
from tintype.trust.certificates import LOCAL_NAME, certificate_for, is_installed
from tintype.trust.credential_reading import NO_CREDENTIALS, read_credentials
from tintype.trust.manifests import JPEG, PNG, WEBP, scan

needs_extra = pytest.mark.skipif(not is_installed(), reason="the extra c2pa isn't installed")

FIELDS = {"seed": 7, "num_inference_steps": 1, "width": 128, "height": 128}
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + kind + data


# The description that C2PA's outermost box begins with.
ABOUT = box(b"jumd", b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71\x03c2pa\x00")


def nested(levels: int) -> bytes:
    sizes = range((8 + len(ABOUT)) * levels, 0, -8 - len(ABOUT))
    return b"".join(struct.pack(">I", size) + b"jumb" + ABOUT for size in sizes)


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph(3, (64, 64))).save(file, format=form)
    return file.getvalue()


def png_with(*chunks: bytes) -> bytes:
    plain = encoded("PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


def jpeg_with(manifest: bytes, *, piece: int = 60_000) -> bytes:
    plain, segments = encoded("JPEG"), b""
    for number, start in enumerate(range(0, len(manifest), piece), start=1):
        data = manifest[start : start + piece] if number == 1 else manifest[:8] + manifest[start : start + piece]
        payload = b"JP\x02\x11" + struct.pack(">I", number) + data
        segments += b"\xff\xeb" + struct.pack(">H", len(payload) + 2) + payload
    return plain[:2] + segments + plain[2:]


def webp_with(manifest: bytes) -> bytes:
    plain = encoded("WEBP")
    body = plain[8:] + b"C2PA" + struct.pack("<I", len(manifest)) + manifest + b"\0" * (len(manifest) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def written(folder: Path, content: bytes, name: str = "x.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def ran(*words: object) -> Result:
    return CliRunner().invoke(verify, [str(word) for word in words])


# What headers tell, without the extra.


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (png_with(chunk(b"caBX", nested(3))), PNG),
        (jpeg_with(nested(3)), JPEG),
        (jpeg_with(nested(3000)), JPEG),
        (webp_with(nested(3)), WEBP),
    ],
    ids=["png", "jpeg", "jpeg in pieces", "webp"],
)
def test_a_manifest_is_told_by_headers(tmp_path: Path, content: bytes, kind: str) -> None:
    found = scan(written(tmp_path, content))
    assert found.kind == kind
    assert found.manifest_bytes >= len(nested(3))
    assert found.excess is None


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_plain_picture_has_none(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, encoded(form))
    assert scan(path).manifest_bytes == 0
    assert read_credentials(path, "") == NO_CREDENTIALS


def test_other_segments_of_boxes_are_no_credentials(tmp_path: Path) -> None:
    other = box(b"jumb", box(b"jumd", b"json" + ABOUT[12:]))
    assert scan(written(tmp_path, jpeg_with(other))).manifest_bytes == 0


def test_credentials_are_told_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tintype.trust.credential_reading.is_installed", lambda: False)
    path = written(tmp_path, png_with(chunk(b"caBX", nested(3))))
    done = ran(path)
    assert done.exit_code == 3
    assert "there are some, not read: the extra c2pa isn't installed; pip install 'tintype[c2pa]'" in done.output
    assert "nothing found" not in done.output
    assert json.loads(ran(path, "--json").output)["credentials"]["state"] == "unread"


def test_without_the_extra_nobody_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINTYPE_CREDENTIALS")
    monkeypatch.setattr("tintype.trust.certificates.is_installed", lambda: False)
    assert certificate_for(None, tmp_path) is None
    with pytest.raises(tintype.InstallError) as error:
        certificate_for("auto", tmp_path)
    assert "tintype[c2pa]" in error.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png_with(chunk(b"teSt", b"") * (MAX_SIGNED_PARTS + 1), chunk(b"caBX", nested(3))), "parts"),
        (png_with(chunk(b"teSt", b"") * (MAX_LISTED_PARTS + 1), chunk(b"caBX", nested(3))), "parts"),
        (png_with(chunk(b"caBX", bytes(MAX_CREDENTIALS_BYTES + 1))), "bytes"),
        (png_with(b"\xff\xff\xff\xf0caBX"), "bytes"),
    ],
    ids=["parts", "many parts", "large", "length that lies"],
)
def test_what_is_beyond_bounds_is_not_read(tmp_path: Path, content: bytes, reason: str) -> None:
    path = written(tmp_path, content)
    began = time.process_time()
    found = read_credentials(path, "")
    assert time.process_time() - began < 1
    assert found.state == "unread"
    assert reason in found.problems[0]


def test_a_large_sparse_file_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, png_with(chunk(b"caBX", nested(3))))
    os.truncate(path, 8 * 2**30)
    assert read_credentials(path, "").state == "unread"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", tmp_path):
        assert read_credentials(path, "").state == "unread"


# What c2pa is given.


@needs_extra
@pytest.mark.parametrize(
    "manifest",
    [nested(64), nested(10_000), bytes(100_000), nested(3)[:-5], box(b"jumb", ABOUT + box(b"free", b"") * 300_000)],
    ids=["nested", "nested deep", "zeros", "short", "many boxes"],
)
def test_a_hostile_manifest_is_invalid_at_once(tmp_path: Path, manifest: bytes) -> None:
    for content in (png_with(chunk(b"caBX", manifest)), webp_with(manifest)):
        began = time.process_time()
        found = read_credentials(written(tmp_path, content), "")
        assert time.process_time() - began < 1
        assert found.state == "invalid"
        assert found.problems


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
    if kind in ("in memory", "another since"):  # C2PA has an id for it and no hash
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


# Who signs.


def pem_of(
    tmp_path: Path, *, ca: bool = False, days: int = 30, uses: bool = True, order: int = 1, mode: int = 0o600
) -> tuple[Path, Path]:
    """An authority's chain for a key that it signed, and the key."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, own = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    now, names = (
        datetime.now(UTC),
        [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{it}\x1b[2J")]) for it in "AB"],
    )
    use = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign",
                         "encipher_only", "decipher_only"), False)  # fmt: skip
    chain = []
    for name, key, is_ca in ((names[1], own, ca), (names[0], authority, True)):
        usage = x509.KeyUsage(digital_signature=not is_ca or ca, key_cert_sign=is_ca, **use)
        builder = (
            x509.CertificateBuilder(names[0], name, key.public_key(), 7, now - timedelta(days=60),
                                    now + timedelta(days=days if key is own else 60))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )  # fmt: skip
        if uses and key is own:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True
            )
        chain.append(builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    key_bytes = own.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    cert, key_path = written(tmp_path, b"".join(chain[::order]), "cert.pem"), written(tmp_path, key_bytes, "key.pem")
    key_path.chmod(mode)
    return cert, key_path


@needs_extra
def test_an_operator_signs(tmp_path: Path) -> None:
    cert, key = pem_of(tmp_path)
    with tintype.load("postcard", provider="cpu", credentials=f"{cert},{key}") as pipeline:
        result = pipeline.generate("a boat", **FIELDS)
    assert result.record.credentials == "operator"
    path = result.save(tmp_path / "x.png")[0]
    assert tintype.verify(path).credentials.state == "untrusted"
    assert tintype.verify(path, trust=cert).credentials.state == "valid"
    done = ran(path, "--trust", cert)
    assert done.exit_code == 0
    assert "they hold; signed by B" in done.output
    assert "\x1b" not in done.output


@needs_extra
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"ca": True}, "CA:TRUE"),
        ({"days": -1}, "it is over since"),
        ({"uses": False}, "extendedKeyUsage"),
        ({"order": -1}, "in the wrong order"),
        pytest.param({"mode": 0o644}, "others can read the key",
                     marks=pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")),
    ],
    ids=["authority", "over", "uses", "order", "mode"],
)  # fmt: skip
def test_what_cannot_sign_is_told_at_once(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(tintype.RequestError, match=message):
        tintype.load("postcard", provider="cpu", credentials=pem_of(tmp_path, **how))


@needs_extra
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("one.pem", "no two files"),
        ("no.pem,no.pem", "cannot be read"),
        (("a", "b", "c"), "no two files"),
        (7, "no two"),
    ],
    ids=str,
)
def test_what_names_no_certificate_is_told(tmp_path: Path, asked: Any, message: str) -> None:
    with pytest.raises(tintype.RequestError, match=message):
        certificate_for(asked, tmp_path)


@needs_extra
def test_a_key_of_another_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cert, _ = pem_of(tmp_path)
    _, key = pem_of(tmp_path / "other")
    with pytest.raises(tintype.RequestError, match="that of another certificate"):
        certificate_for((cert, key), tmp_path)
    cert.chmod(0o600)
    with pytest.raises(tintype.RequestError, match="holds no private key"):
        certificate_for((cert, cert), tmp_path)
    with pytest.raises(tintype.RequestError, match="holds no certificate"):
        certificate_for((key, key), tmp_path)


@needs_extra
def test_an_installation_draws_its_own_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINTYPE_CREDENTIALS")
    first, second = (certificate_for(asked, tmp_path) for asked in (None, "auto"))
    assert first == second
    assert first is not None
    assert "PRIVATE" not in repr(first)
    if os.name == "posix":
        path = tmp_path / LOCAL_NAME
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)  # others may have read the key since
        assert certificate_for("auto", tmp_path) != first
    for asked in (False, "none"):
        assert certificate_for(asked, tmp_path) is None
    monkeypatch.setenv("TINTYPE_CREDENTIALS", "none")
    assert certificate_for(None, tmp_path) is None


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


def test_the_library_is_loaded_by_nobody_who_does_not_sign(tmp_path: Path) -> None:
    path = written(tmp_path, encoded("PNG"))
    code = f"import sys, tintype; tintype.verify({str(path)!r}); print({{'c2pa', 'cryptography'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
