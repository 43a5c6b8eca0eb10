"""Is a bundle's folder what its manifest says? Sizes each time, sha256 and graphs as often as it takes to be sure.

Nothing here follows a path out of the folder, opens what is no plain file, or believes a size before measuring it.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_SCHEDULER_BYTES, MAX_TOKENIZER_BYTES
from tintype.bundle.manifest import COPY_AGAIN, MANIFEST_NAME, FileFacts, Listing, Manifest
from tintype.engine.build.cache import cache_folder
from tintype.errors import BundleError
from tintype.files import read_cached, read_plain, sha256_of, write_cached
from tintype.strict_json import Misfit

ALWAYS_HASHED_BYTES = 64 * 2**20  # a bundle up to this size is hashed at each opening; it takes tens of milliseconds
VERDICT_VERSION = 2  # raise it when the checks below get stricter, so that old verdicts don't count


def check_files(folder: Path, manifest: Listing, digest: str) -> None:
    """BundleError unless every listed file is inside the folder, whole and unchanged, and graphs point at those.

    folder: links resolved. digest: the sha256 of tintype.json.
    """
    stamps, remembered = _check_hashes(folder, manifest.files, digest)
    if set(remembered) != set(stamps):  # the bytes are those of the manifest, so one look within is enough
        from tintype.bundle.graph_check import check_graphs

        check_graphs(folder, manifest)
        if isinstance(manifest, Manifest):  # others read no words, and take no steps
            for tokenizer in manifest.text_encoders.values():
                _check_tokenizer(folder, tokenizer.file)
            _check_sampling(folder, manifest)
    if remembered != stamps:
        _write_verdict(_verdict_path(folder, digest), stamps)


def check_hashes(folder: Path, files: Mapping[str, FileFacts], digest: str) -> None:
    """BundleError unless these files are inside the folder, whole and unchanged. digest: of what lists them."""
    stamps, remembered = _check_hashes(folder, files, digest)
    if remembered != stamps:
        _write_verdict(_verdict_path(folder, digest), stamps)


def _check_hashes(
    folder: Path, files: Mapping[str, FileFacts], digest: str
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The files' stamps, and those that are remembered of when they were checked before."""
    stamps = {file: _check_place_and_size(folder, file, facts.bytes) for file, facts in files.items()}
    remembered = _read_verdict(_verdict_path(folder, digest))
    is_small = sum(facts.bytes for facts in files.values()) <= ALWAYS_HASHED_BYTES
    for file, stamp in stamps.items():
        if is_small or remembered.get(file) != stamp:
            _check_hash(folder / file, file, files[file].sha256)
    return stamps, remembered


def _check_place_and_size(folder: Path, file: str, expected: int) -> list[int]:
    """The file's stamp: its size and when it last changed, in nanoseconds."""
    try:
        resolved = (folder / file).resolve()
        facts = resolved.stat()
    except FileNotFoundError:
        raise BundleError(f"{file} is missing from {folder}", fix=COPY_AGAIN) from None
    except (OSError, RuntimeError) as error:  # no permission, a loop of links
        raise BundleError(f"{file} in {folder} cannot be read: {error}", fix=COPY_AGAIN) from None
    if not resolved.is_relative_to(folder):
        raise BundleError(
            f"{file} is a link to {resolved}, outside the bundle",
            fix="copy the bundle with links followed (cp -rL), if you trust what they point at",
        )
    if not stat.S_ISREG(facts.st_mode):
        raise BundleError(f"{file} in {folder} is no plain file", fix=COPY_AGAIN)
    if facts.st_size != expected:
        what = "the file was cut short" if facts.st_size < expected else "the file has grown"
        raise BundleError(
            f"{file} has {facts.st_size:,} bytes, the manifest says {expected:,}", fix=f"{COPY_AGAIN}; {what}"
        )
    return [facts.st_size, facts.st_mtime_ns]


def _check_hash(path: Path, file: str, expected: str) -> None:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}", fix="check its permissions") from None
    if digest != expected:
        raise BundleError(f"{file} is not the file that the manifest describes: its bytes changed", fix=COPY_AGAIN)


def _check_tokenizer(folder: Path, file: str) -> None:
    from tintype.prompt.tokenizer_check import check_tokenizer

    try:
        check_tokenizer(read_json(folder, file, MAX_TOKENIZER_BYTES))
    except Misfit as misfit:
        raise BundleError(f"{file} is refused: {misfit}", fix=COPY_AGAIN) from None


def _check_sampling(folder: Path, manifest: Manifest) -> None:
    """The scheduler's config makes sense, and goes with what the manifest says of predictions and samplers."""
    from tintype.sampling import SAMPLERS, SPACINGS, SchedulerConfig

    file = manifest.scheduler
    config = SchedulerConfig.from_json(read_json(folder, file, MAX_SCHEDULER_BYTES))
    if config.prediction_type != manifest.prediction_type:
        raise BundleError(
            f"{file} says that the model predicts {config.prediction_type}, {MANIFEST_NAME} {manifest.prediction_type}",
            fix=COPY_AGAIN,
        )
    for place, said in (("default_request", manifest.default_request), ("fast", manifest.fast)):
        if said is None:
            continue
        for name, known in ((said.sampler, SAMPLERS), (said.sigmas, (None, *SPACINGS))):
            if name not in known:
                raise BundleError(
                    f"the {place} of {MANIFEST_NAME} has {name!r}, which this tintype doesn't know",
                    fix=f"upgrade tintype; {COPY_AGAIN}",
                )


def read_json(folder: Path, file: str, most_bytes: int) -> Any:
    """A JSON file of a bundle. Raises BundleError where it can't be read, or is none."""
    try:
        return strict_json.parse(read_plain(folder / file, most_bytes))
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}", fix=COPY_AGAIN) from None
    except Misfit as misfit:
        raise BundleError(f"{file} is refused: {misfit}", fix=COPY_AGAIN) from None


def _verdict_path(folder: Path, digest: str) -> Path:
    identity = f"{VERDICT_VERSION}\0{digest}\0{folder}"
    return cache_folder() / "checked" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"


def _read_verdict(path: Path) -> dict[str, list[int]]:
    try:
        found = strict_json.parse(read_cached(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_verdict(path: Path, stamps: dict[str, list[int]]) -> None:
    write_cached(path, json.dumps(stamps))
