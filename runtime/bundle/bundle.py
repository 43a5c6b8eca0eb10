"""What a model is: a folder of canonical graphs, weights and tokenizer, with a manifest that names every file.

A `Bundle` that `open_bundle` returned is whole: each listed file lies inside the folder, has the size and the sha256
that the manifest says, and no graph points at data outside. Nothing is loaded before that is known.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tintype import strict_json
from tintype.bounds import MAX_MANIFEST_BYTES
from tintype.bundle.library import library_bundle, library_bundles
from tintype.bundle.manifest import FORMAT_VERSION, FULL, MANIFEST_NAME, FileFacts, Graph, Manifest
from tintype.bundle.verify import check_files
from tintype.errors import BundleError, near_names
from tintype.files import read_plain, sha256_of, write_text
from tintype.uses import CONTROLNET, IMAGE_ENCODER, T2I_ADAPTER

AnyManifest = TypeVar("AnyManifest")

DIGEST = "digest"  # the key of tintype.json for its own; bundles that were made before it have none
EMBEDDED = ("postcard",)  # bundles that come with the package


@dataclass(frozen=True, slots=True)
class Beside:
    """A kind of bundle that draws nothing itself. options: how one is given beside a model, its folder where {} is."""

    what: str
    options: str


BESIDE: Mapping[str, Beside] = {  # by family
    CONTROLNET: Beside("a ControlNet", "--control {}=PICTURE"),
    T2I_ADAPTER: Beside("a T2I-Adapter", "--control {}=PICTURE"),
    IMAGE_ENCODER: Beside("an image encoder", "--ip-adapter FILE --image-encoder {} --image-prompt PICTURE"),
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model on disk, checked."""

    folder: Path
    manifest: Manifest
    hash: str  # sha256 of tintype.json, which holds the sha256 of everything else
    changed: Mapping[str, Path] = field(default_factory=dict)  # by role, an overlay's weights; see `bundle.overlay`

    @property
    def name(self) -> str:
        return self.manifest.name

    def path(self, file: str) -> Path:
        """Where a file of the manifest's list lies."""
        return self.folder / file

    def graph(self, role: str, variant: str = "full") -> Graph:
        """One graph of the manifest. Raises BundleError when the bundle has no such role or variant."""
        variants = self.manifest.graphs.get(role)
        if variants is None:
            raise BundleError(
                f"the bundle {self.name} has no {role}",
                fix=f"it has {', '.join(self.manifest.graphs)}; export a checkpoint that has a {role}",
            )
        if variant not in variants:
            known = near_names(variant, variants)
            raise BundleError(f"the {role} of {self.name} has no variant {variant!r}", fix=known)
        return variants[variant]

    def graph_path(self, role: str, variant: str = "full") -> Path:
        """Where a role's canonical graph lies."""
        return self.path(self.graph(role, variant).file)

    def largest(self, role: str, variant: str = "full") -> Mapping[str, float] | None:
        """How large values of a role's graph get, see `Graph.largest`."""
        return self.graph(role, variant).largest

    def changed_weights(self, role: str, variant: str = "full") -> Path | None:
        """The file with weights in the place of a role's own; None: it has its own. A fast denoiser always has."""
        return self.changed.get(role) if variant == FULL else None


def open_model(folder: Path) -> Bundle:
    """Open the bundle of a folder, its links resolved, and check all of it: see `opening.open_bundle`."""
    manifest, digest = read_manifest(folder)
    check_files(folder, manifest, digest)
    return Bundle(folder=folder, manifest=manifest, hash=digest)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a bundle folder and its sha256; the files that it lists are not looked at."""
    return read_manifest_as(folder, Manifest)


def read_manifest_as(folder: Path, kind: type[AnyManifest]) -> tuple[AnyManifest, str]:
    """The same of a manifest of one kind: a model's, a ControlNet's, ... BundleError for another one too."""
    path = folder / MANIFEST_NAME
    try:
        text = read_plain(path, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise _no_bundle(folder) from None
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror}", fix="check its permissions, or copy the bundle again"
        ) from None
    return _parse_manifest(path, text, kind), hashlib.sha256(text).hexdigest()


def write_manifest(folder: Path, manifest: object) -> Path:
    """Write tintype.json, of a model or what controls one, whole or not at all; returns its path.

    `file_facts` makes what `manifest.files` needs.
    """
    value = strict_json.plain(manifest)
    return write_text(folder / MANIFEST_NAME, strict_json.dump({**value, DIGEST: manifest_digest(value)}) + "\n")


def manifest_digest(value: Mapping[str, Any]) -> str:
    """What tintype.json, as parsed, says of itself: sha256 over all of it but the digest, as canonical JSON."""
    rest = {key: item for key, item in value.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_facts(folder: Path) -> dict[str, FileFacts]:
    """Bytes and sha256 of every file below `folder` but tintype.json, by path with forward slashes, sorted."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST_NAME:
            found[name] = FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
    return found


def _parse_manifest(path: Path, text: bytes, kind: type[AnyManifest]) -> AnyManifest:
    try:
        value = strict_json.parse(text)
        version = value.get("format_version") if isinstance(value, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise BundleError(
                f"{path} is of format {version}; this tintype reads up to {FORMAT_VERSION}",
                fix="upgrade tintype (pip install -U tintype), or export the checkpoint with this version",
            )
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise strict_json.Misfit(f"format_version should be {FORMAT_VERSION}, not {version!r}")
        family, wanted = (each if each in BESIDE else None for each in (str(value.get("family")), _family_of(kind)))
        if family != wanted:
            raise _of_other_kind(path.parent, family, wanted)
        manifest = strict_json.read(kind, value)
        if DIGEST in value and value[DIGEST] != manifest_digest(value):
            raise strict_json.Misfit("it isn't what its digest says: something in it changed")
        return manifest
    except strict_json.Misfit as misfit:
        raise BundleError(
            f"{path} is not a manifest: {misfit}", fix="copy the bundle again, or export the checkpoint again"
        ) from None


def _family_of(kind: type) -> str:
    """What a manifest of a kind has for its family, where all of them have the same; another word for a model's."""
    return str(next(each.default for each in fields(kind) if each.name == "family"))


def _of_other_kind(folder: Path, family: str | None, wanted: str | None) -> BundleError:
    """family, wanted: of `BESIDE`; None is that of a model."""
    if wanted is None and family is not None:
        return BundleError(
            f"{folder} is {BESIDE[family].what}, which draws nothing itself",
            fix=f"give a model, and this beside it: {BESIDE[family].options.format(folder)}",
        )
    found, other = (BESIDE[each].what if each is not None else "a model" for each in (family, wanted))
    no = f"no {other.split(maxsplit=1)[1]}"
    return BundleError(f"{folder} is {found}, and {no}", fix=f"give a bundle that was exported from {other}")


def embedded_folder(name: str) -> Path:
    """Where a bundle lies that comes with the package."""
    import importlib.resources

    return Path(str(importlib.resources.files("tintype.models"))) / name / "bundle"


def bundle_folder(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder, links resolved, so that 'inside the bundle' means one thing. Raises BundleError where none is."""
    if not isinstance(name_or_path, str | os.PathLike):
        raise BundleError(f"{name_or_path!r} is no bundle", fix='give its folder, or an embedded name: "postcard"')
    if isinstance(name_or_path, str) and name_or_path in EMBEDDED:
        folder = embedded_folder(name_or_path)
    else:
        folder = Path(name_or_path)
    try:
        if isinstance(name_or_path, str) and not folder.is_dir():
            folder = library_bundle(name_or_path) or folder
        resolved = folder.resolve()
        is_folder = resolved.is_dir()
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL inside, a loop of links
        is_folder = False
    if not is_folder:
        raise _no_bundle(folder)
    return resolved


def _no_bundle(folder: Path) -> BundleError:
    from tintype.sources.mistaken import export_from_hub, mistaken_for_bundle

    shown = str(folder) if len(str(folder)) <= 200 else f"{str(folder)[:200]}..."
    mistaken = mistaken_for_bundle(folder)
    if mistaken is not None:
        return BundleError(f"{shown!r} is {mistaken.name}, not a bundle", fix=mistaken.fix)
    return BundleError(
        f"there is no bundle at {shown!r}",
        fix=f"give a folder that holds {MANIFEST_NAME} (tintype export makes one), or a model that is here: "
        + near_names(folder.name, [*EMBEDDED, *(name for name, _ in library_bundles())])
        + export_from_hub(folder),
    )
