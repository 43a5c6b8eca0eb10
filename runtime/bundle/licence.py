"""Licences that bind how pictures may be used are accepted once for each bundle, and never asked about again.

What was accepted is a file named by the bundle's hash, in `.licences` below the folder of the library (else the cache),
which `tintype cache clear` doesn't touch; whoever sets up a kiosk accepts there, or passes `accept_licence`. Nothing is
ever asked on a terminal. Licences that bind nothing are not asked about, nor are those that nobody stated: there is
nothing to accept, and `tintype info` says `unknown`.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from tintype import strict_json
from tintype.bundle.bundle import Bundle
from tintype.bundle.library import library_folder
from tintype.bundle.opening import BesideModels
from tintype.engine import cache_folder
from tintype.errors import LicenceError, OutputError
from tintype.files import output_error, write_text

FOLDER = ".licences"

# Of what model cards say, as the hub names licences: use-based restrictions, no commerce, research, a community's; and
# `other`, which is one of the model's own.
_BINDING = re.compile(
    r"^other$|\brail|open-?rail|creativeml|non-?commercial|\bnc\b|-nd\b|research|communit|stability-?ai|\bsai\b|flux|faipl|llama|gemma|deepfloyd",
    re.IGNORECASE,
)


def is_binding(licence: str) -> bool:
    """Whether a licence, as a model card calls it, binds how what is made may be used."""
    return _BINDING.search(licence.replace("_", "-")) is not None


def is_accepted(bundle: Bundle | BesideModels) -> bool:
    """Whether it was, or needs not be."""
    return not is_binding(bundle.manifest.licence) or any((place / bundle.hash).is_file() for place in _places())


def accept(bundle: Bundle | BesideModels) -> Path:
    """Keep that a bundle's licence was accepted; the file that says so. Raises OutputError."""
    path = _places()[0] / bundle.hash
    try:
        return write_text(path, strict_json.dump({"bundle": bundle.name, "licence": bundle.manifest.licence}) + "\n")
    except OSError as error:
        raise output_error(path, error) from None


def demand_accepted(bundle: Bundle | BesideModels, *, accepts: bool) -> None:
    """Raises LicenceError for a binding licence that was never accepted. accepts: it is now, and that is kept."""
    if is_accepted(bundle):
        return
    if accepts:
        with contextlib.suppress(OutputError):  # where nothing can be kept it is accepted each time
            accept(bundle)
        return
    raise LicenceError(
        f"{bundle.name} is licensed under {bundle.manifest.licence}, which binds how its pictures may be used",
        fix=f"read it where the model comes from, then accept it once: tintype licence accept {bundle.folder}",
        licence=bundle.manifest.licence,
    )


def _places() -> list[Path]:
    """Where acceptances lie; new ones go to the first."""
    library = library_folder()
    folders = [cache_folder()] if library is None else [library, cache_folder()]
    return [folder / FOLDER for folder in folders]
