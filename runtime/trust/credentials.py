"""Content credentials (C2PA): what a written picture says of itself, signed. The last thing that is done to its file.

They say that a model made the picture, or altered another one, with what, and which watermark lies in its pixels; they
hold its record's id and not its words. Nothing is fetched, no thumbnail is made, nobody is asked for the time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype._version import __version__
from tintype.errors import InstallError, OutputError, RequestError, TintypeError, printable
from tintype.files import read_plain
from tintype.record.xmp import ALTERED, CREATED, SOURCE_TYPE, document_id
from tintype.trust.certificates import INSTALL, Certificate
from tintype.trust.manifests import PNG, scan

if TYPE_CHECKING:
    from types import ModuleType

    from tintype.record.record import Record, TrustMarkFacts, Watermark
    from tintype.request.inputs import InitImage

WATERMARK_ALGORITHM = "tintype.watermark.1"  # ours, and in no list of C2PA's
TRUSTMARK_ALGORITHM = "com.adobe.trustmark"  # and its variant, as C2PA's list has it
RECORD_LABEL = "tintype.record"
MOST_TITLE_CHARS = 200
_PARENT = "parent"  # how an action names its ingredient until it is signed

# Misspelt settings are taken in silence, so they stand here alone.
SETTINGS: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


def library() -> ModuleType:
    """c2pa. Raises InstallError where it can't be loaded."""
    try:
        import c2pa
    except (ImportError, OSError, RuntimeError) as error:
        raise InstallError(f"c2pa cannot be loaded: {error}", fix=INSTALL) from None
    return c2pa


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs the pictures of a run. parent: the file that it began with, where it came from one."""

    certificate: Certificate
    parent: Path | None = None

    def sign(self, png: bytes, record: Record, title: str) -> bytes:
        """A PNG with its credentials. title: the file's name. Raises OutputError; nothing is written here."""
        image = record.request.image
        known = None if image is None else _ingredient_of(self.parent, image)
        hashed = None if image is None else _by_hash(self.parent, image)
        c2pa = library()
        try:
            try:
                return _signed(png, manifest_of(record, title, known), self.certificate, known)
            except c2pa.C2paError:
                if known == hashed:
                    raise
                return _signed(png, manifest_of(record, title, hashed), self.certificate)  # c2pa can't read the file
        except c2pa.C2paError as error:
            fix = "leave its credentials out: --no-credentials, or credentials=False"
            raise OutputError(f"the picture cannot be signed: {error}", fix=fix) from None

    def demand_sound(self) -> None:
        """Sign a picture of one pixel: RequestError for a certificate that C2PA refuses.

        What the library takes in memory is then taken, before a budget is planned.
        """
        from PIL import Image

        c2pa, png = library(), io.BytesIO()
        Image.new("RGB", (1, 1)).save(png, format="PNG")
        try:
            _signed(png.getvalue(), _manifest("trial", [_created()], []), self.certificate)
        except c2pa.C2paError as error:
            raise RequestError(
                f"this certificate can't sign: {error}", fix="give another one, or leave it out: --no-credentials"
            ) from None


def _signed(
    png: bytes, manifest: dict[str, Any], certificate: Certificate, ingredient: _Ingredient | None = None
) -> bytes:
    """A PNG with a manifest in it. Raises c2pa's errors."""
    c2pa = library()
    facts = c2pa.C2paSignerInfo(certificate.algorithm.encode(), certificate.chain, certificate.key, None)
    with (
        c2pa.Context.from_dict(SETTINGS) as context,
        c2pa.Builder(manifest, context) as builder,
        c2pa.Signer.from_info(facts) as signer,
    ):
        if ingredient is not None and ingredient.content is not None:
            builder.add_ingredient(dict(ingredient.facts), ingredient.kind, io.BytesIO(ingredient.content))
        signed = io.BytesIO()  # in memory: where signing fails, no file is touched
        builder.sign(signer, PNG, io.BytesIO(png), signed)
        return signed.getvalue()


@dataclass(frozen=True, slots=True)
class _Ingredient:
    """A picture that another one was made from. content: its file; None where only its hash is known."""

    facts: Mapping[str, str]
    kind: str = ""
    content: bytes | None = None


def _ingredient_of(path: Path | None, image: InitImage) -> _Ingredient:
    """With its own credentials, where its file is at hand, has some and still is that picture; else by its hash."""
    hashed = _by_hash(path, image)
    found = None if path is None else _content_of(path, image)
    if found is None:
        return hashed
    facts = {name: value for name, value in hashed.facts.items() if name != "instance_id"}
    return _Ingredient(facts, *found)


def _by_hash(path: Path | None, image: InitImage) -> _Ingredient:
    """What C2PA has for a picture without its file: an id. Ours is the record's hash of its pixels."""
    name = "a picture" if path is None else _title(path.name)
    facts = {"title": name, "relationship": "parentOf", "label": _PARENT, "instance_id": f"sha256:{image.sha256}"}
    return _Ingredient(facts)


def _content_of(path: Path, image: InitImage) -> tuple[str, bytes] | None:
    """A picture's file, where it has credentials that c2pa may read, and shows what the run began with."""
    from tintype.image.source import open_picture, picture_bytes_hash

    try:
        container = scan(path)
        if container.kind is None or container.manifest_bytes == 0 or container.excess is not None:
            return None
        if picture_bytes_hash(open_picture(path, background=image.background)) != image.sha256:
            return None  # another one lies there since, or the picture of before was written over it
        return container.kind, read_plain(path, container.file_bytes)
    except (OSError, ValueError, TintypeError):
        return None


def manifest_of(record: Record, title: str, ingredient: _Ingredient | None) -> dict[str, Any]:
    """What is signed of a picture."""
    if ingredient is None:
        actions = [_created()]
    else:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [_PARENT]}}
        actions = [opened, {**_created(), "action": "c2pa.edited", "digitalSourceType": SOURCE_TYPE + ALTERED}]
    assertions: list[dict[str, Any]] = [{"label": RECORD_LABEL, "data": _record_facts(record)}]
    for mark, algorithm in _marks(record):
        actions.append({"action": "c2pa.watermarked.bound" if mark.is_read else "c2pa.watermarked.unbound"})
        if mark.is_read:
            binding = {"alg": algorithm, "blocks": [{"scope": {}, "value": mark.payload}]}
            assertions.append({"label": "c2pa.soft-binding", "data": binding})
    manifest = _manifest(_title(title), actions, assertions)
    if ingredient is not None and ingredient.content is None:
        manifest["ingredients"] = [dict(ingredient.facts)]
    return manifest


def _marks(record: Record) -> Iterator[tuple[Watermark | TrustMarkFacts, str]]:
    """Each mark that was written into the pixels, and what its algorithm is called."""
    if record.watermark is not None:
        yield record.watermark, WATERMARK_ALGORITHM
    if record.trustmark is not None and not record.trustmark.kept:
        yield record.trustmark, f"{TRUSTMARK_ALGORITHM}.{record.trustmark.variant}"


def _manifest(title: str, actions: list[dict[str, Any]], assertions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "claim_generator_info": [{"name": "Tintype", "version": __version__}],
        "title": title,
        "format": PNG,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}, *assertions],
    }


def _created() -> dict[str, Any]:
    return {
        "action": "c2pa.created",
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "digitalSourceType": SOURCE_TYPE + CREATED,
        "softwareAgent": {"name": "Tintype", "version": __version__},
    }


def _record_facts(record: Record) -> dict[str, str]:
    from tintype.image.png import RECORD_KEY

    made_with = record.made_with
    return {
        "id": document_id(record.texts()[RECORD_KEY]),
        "model": printable(made_with.bundle, MOST_TITLE_CHARS),
        "modelHash": made_with.bundle_hash,
    }


def _title(name: str | os.PathLike[str]) -> str:
    """A file's name as text, whatever bytes it has."""
    return printable(os.fspath(name), MOST_TITLE_CHARS)
