"""What headers tell of content credentials without the extra, and what becomes of hostile ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from credential_files import (
    ABOUT,
    box,
    chunk,
    encoded,
    jpeg_with,
    needs_extra,
    nested,
    png_with,
    webp_with,
    written,
)

from tintype.bounds import MAX_CREDENTIALS_BYTES, MAX_LISTED_PARTS, MAX_SIGNED_PARTS
from tintype.cli.verify import verify
from tintype.trust.credential_reading import NO_CREDENTIALS, read_credentials
from tintype.trust.manifests import JPEG, PNG, WEBP, scan


def ran(*words: object) -> Result:
    return CliRunner().invoke(verify, [str(word) for word in words])


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


def test_the_library_is_loaded_by_nobody_who_does_not_sign(tmp_path: Path) -> None:
    path = written(tmp_path, encoded("PNG"))
    code = f"import sys, tintype; tintype.verify({str(path)!r}); print({{'c2pa', 'cryptography'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


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
