"""Whose certificate signs pictures: an operator's, or one of this installation's own, which nobody vouches for.

The extra `c2pa` brings what is needed here (cryptography); nothing is imported before somebody signs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype.errors import InstallError, RequestError
from tintype.files import others_can_read, read_plain, write_whole

if TYPE_CHECKING:
    from cryptography.x509 import Certificate as X509

AUTO, NONE = "auto", "none"
LOCAL, OPERATOR = "local", "operator"  # what a record says
VARIABLE = "TINTYPE_CREDENTIALS"  # what holds where nothing is asked for: auto, none, or CERT.pem,KEY.pem
INSTALL = "pip install 'tintype[c2pa]'"
LOCAL_NAME = "credentials.json"  # in the cache folder
LOCAL_YEARS = 25  # nobody states the time of a signature, so that a picture is read as long as its certificate lasts
MOST_PEM_BYTES = 2**18

# Uses of a key that C2PA takes for signing: e-mail, documents, and its own.
_KEY_USES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_FORM = "give CERT.pem,KEY.pem: the chain, its own certificate first, and its key; or auto, or none"

Asked = str | bool | Sequence[str | os.PathLike[str]] | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """What signs."""

    chain: bytes  # PEM, its own certificate first
    key: bytes = field(repr=False)  # PEM, PKCS#8, without a passphrase
    algorithm: str  # as C2PA names it
    whose: str  # LOCAL or OPERATOR


def is_installed() -> bool:
    """Whether pictures can be signed here: nothing is loaded for it."""
    return all(importlib.util.find_spec(name) is not None for name in ("c2pa", "cryptography"))


def certificate_for(asked: Asked, folder: Path) -> Certificate | None:
    """Who signs pictures; None for nobody. folder: where an installation keeps its own certificate.

    asked: None is what the variable says, else the installation's own where the extra is installed; False or `none` is
    nobody; True or `auto` is its own; a pair of files, or CERT.pem,KEY.pem, is an operator's. Raises RequestError for
    what can't sign, InstallError where signing is asked for and the extra isn't there.
    """
    asked = os.environ.get(VARIABLE) or None if asked is None else asked
    if asked is False or asked == NONE or (asked is None and not is_installed()):
        return None
    if not is_installed():
        raise InstallError("content credentials need the extra c2pa", fix=INSTALL)
    if asked in (None, True, AUTO):
        return local_certificate(folder)
    return read_certificate(*_pair(asked))


def _pair(asked: object) -> tuple[str, str]:
    """The names of both files."""
    parts: list[Any] = asked.split(",") if isinstance(asked, str) else []
    if isinstance(asked, list | tuple):
        parts = list(asked)
    if len(parts) != 2 or not all(isinstance(part, str | os.PathLike) and os.fspath(part) for part in parts):
        raise RequestError(f"credentials {str(asked)[:200]!r} are no two files", fix=_FORM)
    return os.fspath(parts[0]), os.fspath(parts[1])


def read_certificate(chain: str | os.PathLike[str], key: str | os.PathLike[str]) -> Certificate:
    """An operator's, of PEM files. Raises RequestError with what is wrong with them."""
    from cryptography import x509

    contents = {}
    for path in (chain, key):
        try:
            contents[path] = read_plain(path, MOST_PEM_BYTES)
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} cannot be read: {error}", fix=_FORM) from None
    if others_can_read(key):
        raise RequestError(f"others can read the key {key}", fix=f"chmod 600 {key}")
    try:
        found = x509.load_pem_x509_certificates(contents[chain])
    except ValueError as error:
        raise RequestError(f"{chain} holds no certificate in PEM: {_first_line(error)}", fix=_FORM) from None
    private = _private_key(key, contents[key])
    _demand_order(chain, found, private)
    _demand_signer(chain, found[0])
    return _certificate(found, private, OPERATOR)


def _private_key(path: str | os.PathLike[str], content: bytes) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(content, None)
    except TypeError:
        fix = f"take it off: openssl pkcs8 -topk8 -nocrypt -in {path} -out KEY.pem"
        raise RequestError(f"the key {path} has a passphrase", fix=fix) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(f"{path} holds no private key in PEM: {_first_line(error)}", fix=_FORM) from None


def _demand_order(path: str | os.PathLike[str], chain: list[X509], private: Any) -> None:
    """RequestError where the first certificate isn't the key's, or one isn't signed by the next."""
    own = [each.public_key() == private.public_key() for each in chain]
    if not any(own):
        raise RequestError(f"the key is that of another certificate than {path}", fix=_FORM)
    order = "put the key's own certificate first, then the one that signed it, and so on"
    if not own[0]:
        raise RequestError(f"the chain in {path} is in the wrong order", fix=order)
    for each, issuer in itertools.pairwise(chain):
        try:
            each.verify_directly_issued_by(issuer)
        except Exception:  # of a signature, of names, and TypeError for keys that sign nothing
            raise RequestError(f"the chain in {path} is in the wrong order, or has a gap", fix=order) from None


def _demand_signer(path: str | os.PathLike[str], leaf: X509) -> None:
    """RequestError where C2PA does not let a certificate sign."""
    from cryptography import x509

    def extension(kind: Any) -> Any:
        try:
            return leaf.extensions.get_extension_for_class(kind).value
        except (x509.ExtensionNotFound, ValueError):
            return None

    now = datetime.now(UTC)
    basic, use, uses = map(extension, (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage))
    allowed = [] if uses is None else [each.dotted_string for each in uses]
    wrong = {
        f"it is over since {leaf.not_valid_after_utc:%Y-%m-%d}": now > leaf.not_valid_after_utc,
        f"it begins on {leaf.not_valid_before_utc:%Y-%m-%d}": now < leaf.not_valid_before_utc,
        "it is an authority's (CA:TRUE), which signs certificates and no pictures": basic is not None and basic.ca,
        "it is signed by itself": leaf.issuer == leaf.subject,
        "its keyUsage has no digitalSignature": use is None or not use.digital_signature,
        "its extendedKeyUsage has neither emailProtection nor documentSigning": not set(allowed) & set(_KEY_USES),
        "it has no authorityKeyIdentifier": extension(x509.AuthorityKeyIdentifier) is None,
    }
    for reason, is_so in wrong.items():
        if is_so:
            raise RequestError(
                f"the certificate {path} can't sign: {reason}",
                fix="get one for C2PA, or leave it out (--no-credentials)",
            )


def _certificate(chain: list[X509], private: Any, whose: str) -> Certificate:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    algorithm = None
    if isinstance(private, ec.EllipticCurvePrivateKey):
        algorithm = _CURVES.get(private.curve.name)
    elif isinstance(private, ed25519.Ed25519PrivateKey):
        algorithm = "ed25519"
    elif isinstance(private, rsa.RSAPrivateKey) and private.key_size >= 2048:
        algorithm = "ps256"
    if algorithm is None:
        raise RequestError(
            "C2PA does not sign with a key of that kind", fix="take one of P-256, P-384, P-521, Ed25519 or RSA of 2048"
        )
    key = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certificate(b"".join(each.public_bytes(Encoding.PEM) for each in chain), key, algorithm, whose)


def local_certificate(folder: Path) -> Certificate:
    """This installation's own, drawn the first time, for nobody else to read; who reads a picture calls it untrusted.

    It says that pictures come from one place, and nothing of who or where that is. Where the folder can't keep it, it
    lasts as long as the process.
    """
    path = folder / LOCAL_NAME
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        if not others_can_read(path):
            known = json.loads(read_plain(path, MOST_PEM_BYTES))
            if datetime.fromisoformat(known["until"]) > datetime.now(UTC) + timedelta(days=365):
                return Certificate(known["chain"].encode(), known["key"].encode(), known["algorithm"], LOCAL)
    drawn, until = _draw()
    kept = {"until": until.isoformat(), "algorithm": drawn.algorithm, "chain": drawn.chain.decode()}
    text = json.dumps({**kept, "key": drawn.key.decode()}, indent=1)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, lambda file: file.write(text.encode()), mode=0o600)
    return drawn


def _draw() -> tuple[Certificate, datetime]:
    """A new certificate and its key, signed by an authority whose key is forgotten at once: C2PA takes none that is
    signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    until = now + timedelta(days=365 * LOCAL_YEARS)

    def name(text: str) -> x509.Name:
        organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tintype")
        return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def made(subject: str, key: Any, *, is_authority: bool) -> X509:
        names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
        use = "key_cert_sign" if is_authority else "digital_signature"
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("an authority that nobody knows"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
            .add_extension(x509.KeyUsage(**{each: each == use for each in names}), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )
        if not is_authority:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True
            )
        return builder.sign(authority, hashes.SHA256())

    chain = [
        made("an installation of Tintype, unverified", own, is_authority=False),
        made("an authority that nobody knows", authority, is_authority=True),
    ]
    return _certificate(chain, own, LOCAL), until


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
