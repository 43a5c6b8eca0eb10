"""Who signs pictures: an operator, or this installation; what can't sign is told before anything is drawn."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from credential_files import (
    needs_extra,
    written,
)

import tintype
from tintype.cli.verify import verify
from tintype.trust.certificates import LOCAL_NAME, certificate_for

pytestmark = pytest.mark.slow

FIELDS = {"seed": 7, "num_inference_steps": 1, "width": 128, "height": 128}
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def ran(*words: object) -> Result:
    return CliRunner().invoke(verify, [str(word) for word in words])


def test_without_the_extra_nobody_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINTYPE_CREDENTIALS")
    monkeypatch.setattr("tintype.trust.certificates.is_installed", lambda: False)
    assert certificate_for(None, tmp_path) is None
    with pytest.raises(tintype.InstallError) as error:
        certificate_for("auto", tmp_path)
    assert "tintype[c2pa]" in error.value.fix
    assert list(tmp_path.iterdir()) == []


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
