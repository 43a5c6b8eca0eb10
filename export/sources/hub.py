"""A checkpoint on the Hugging Face hub: ORG/NAME, ORG/NAME/FILE.safetensors, and @REVISION behind either.

Only files that an export reads are fetched, into the hub's own cache, where other programs find them too. What broke
off goes on where it was. Each large file is held against the sha256 that the hub states for it. Names come from
strangers: only those that the exporter itself would open are asked for.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.export.progress import Progress
from tintype.export.sources.hub_download import fetch_blob, remember_revision
from tintype.export.tokenizer import COPIED
from tintype.files import sha256_of
from tintype.sources.families import family_of, tokenizer_of
from tintype.sources.folder import INDEX, SCHEDULER, read_config, shard_names, weights_name

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_ADDRESS = re.compile(rf"({_NAME}/{_NAME})((?:/[\w.-]+)*\.safetensors)?(?:@([\w.-]{{1,100}}))?", re.ASCII)
DEFAULT_REVISION = "main"
MAX_LISTED = 10_000  # files of a repository
TOKENIZER_FILES = ("tokenizer.json", *COPIED)


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """Where a checkpoint lies now, its address on the hub, and the commit that it was fetched at."""

    place: Path
    address: str
    revision: str


def is_address(source: Path | str) -> bool:
    """Whether a source that isn't here may be one on the hub."""
    known = _ADDRESS.fullmatch(str(source)) is not None and ".." not in str(source).split("/")
    return known and not Path(source).exists()


def fetch(source: Path | str, progress: Progress) -> HubCheckpoint:
    """Bring a checkpoint here, or find it in the cache where the hub can't be reached.

    Raises ExportError for one that isn't there, that is gated, or that has no form which is read here; and offline, for
    one that was never fetched.
    """
    parts = _ADDRESS.fullmatch(str(source))
    assert parts is not None  # `is_address`
    repository, file, revision = parts[1], (parts[2] or "").lstrip("/"), parts[3]
    address = f"{repository}/{file}" if file else repository
    with _told(address), _without_bars():
        remote = _list(repository, revision)
        if remote is None:
            return _cached(repository, file, revision, address)
        names = [file] if file else _folder_names(remote)
        _demand_room(remote, names, address)
        with progress.stage("download", len(names)) as advance:
            for name in names:
                remote.get(name)
                advance(1)
        place = remote.get(names[0])
        remember_revision(repository, revision or DEFAULT_REVISION, remote.commit)
    return HubCheckpoint(place if file else place.parent, address, remote.commit)


@dataclass(frozen=True, slots=True)
class _Remote:
    """A repository at one commit: its files, with the bytes and sha256 that the hub states (None where it doesn't)."""

    repository: str
    commit: str
    files: Mapping[str, tuple[int | None, str | None]]

    def get(self, name: str) -> Path:
        """A file, fetched where it isn't cached. Raises ExportError when its bytes aren't those that the hub states."""
        import huggingface_hub

        if name not in self.files:
            raise ExportError(
                f"{self.repository} has no {name} (it holds {', '.join(sorted(self.files)[:8]) or 'nothing'})",
                fix="name one of its files, or export another checkpoint",
            )
        size, stated = self.files[name]
        if stated is not None and size is not None:
            fetch_blob(self.repository, name, self.commit, stated, size)
        path = Path(huggingface_hub.hf_hub_download(self.repository, name, revision=self.commit))
        if stated is not None and sha256_of(path) != stated:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise ExportError(
                f"{name} of {self.repository} isn't what the hub says: its sha256 differs",
                fix="export again to fetch it anew",
            )
        return path


def _list(repository: str, revision: str | None) -> _Remote | None:
    """What a repository holds; None where the hub can't be reached."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        told = huggingface_hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
        return None
    except (errors.OfflineModeIsEnabled, errors.HTTPError, OSError):
        return None
    listed = (told.siblings or [])[:MAX_LISTED]
    files = {item.rfilename: (item.size, _digest(item.lfs.sha256) if item.lfs else None) for item in listed}
    return _Remote(repository, str(told.sha), files)


def _digest(text: object) -> str:
    """A sha256 in hexadecimal digits, which becomes a file's name. Raises ExportError for anything else."""
    if isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text):
        return text
    raise ExportError(f"the hub states {str(text)[:80]!r} for a sha256", fix="export again, or from another checkpoint")


def _folder_names(remote: _Remote) -> list[str]:
    """Files of a diffusers folder that an export reads, its index first. Raises ExportError where some are missing."""
    if INDEX not in remote.files:
        single = [name for name in remote.files if name.endswith(".safetensors") and "/" not in name]
        fix = f"name one of them: {remote.repository}/{single[0]}" if single else "export another checkpoint"
        held = ", ".join(single[:8]) or "no weights"
        raise ExportError(f"{remote.repository} is no diffusers folder: it has no {INDEX} (it holds {held})", fix=fix)
    index = remote.get(INDEX)
    family = family_of(Path(remote.repository), read_config(index))
    names = [INDEX, SCHEDULER]
    for component in family.components:
        names += [f"{component}/config.json", *_weights(remote, component)]
    for folder in map(tokenizer_of, family.text_encoders):
        names += [name for file in TOKENIZER_FILES if (name := f"{folder}/{file}") in remote.files]
    return names + [name for name in ("README.md",) if name in remote.files]


def _weights(remote: _Remote, component: str) -> list[str]:
    there = {name.partition("/")[2] for name in remote.files if name.startswith(f"{component}/")}
    name = weights_name(component, there)
    if name is None:
        held = ", ".join(sorted(there)[:8]) or "nothing"
        raise ExportError(
            f"{remote.repository} has no {component} in .safetensors (it holds {held})",
            fix="export a checkpoint that is published in .safetensors; pickles aren't read here",
        )
    if not name.endswith(".json"):
        return [f"{component}/{name}"]
    shards = shard_names(remote.get(f"{component}/{name}"))
    return [f"{component}/{name}", *(f"{component}/{shard}" for shard in shards)]


def _demand_room(remote: _Remote, names: list[str], address: str) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    missing = [
        remote.files[name][0] or 0
        for name in names
        if name in remote.files
        and not isinstance(huggingface_hub.try_to_load_from_cache(remote.repository, name, revision=remote.commit), str)
    ]
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(place for place in (cache, *cache.parents) if place.exists())).free
    if sum(missing) > free:
        raise ExportError(
            f"{address} has {sum(missing) / 2**30:.1f} GiB to fetch, and {cache} has {free / 2**30:.1f} GiB free",
            fix="free some space, or set HF_HOME to a folder on a larger disk",
        )


def _cached(repository: str, file: str, revision: str | None, address: str) -> HubCheckpoint:
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repository, file or INDEX, revision=revision)
    if not isinstance(found, str):
        raise ExportError(
            f"{address} isn't here, and the hub can't be reached",
            fix=f"connect (and unset HF_HUB_OFFLINE), or give the folder of hf download {repository}, made elsewhere; "
            "if a folder here was meant, check its path",
        )
    place = Path(found)
    commit = place.parents[file.count("/") if file else 0].name  # a snapshot's folder has the name of its commit
    return HubCheckpoint(place if file else place.parent, address, commit)


@contextmanager
def _without_bars() -> Iterator[None]:
    """The hub draws bars of its own, which would run into ours, or into a caller's."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextmanager
def _told(address: str) -> Iterator[None]:
    """The hub's errors as ours."""
    try:
        from huggingface_hub import errors
    except ImportError:
        raise ExportError(
            f"there is nothing at {address!r}, and fetching it from the hub needs huggingface_hub",
            fix="pip install 'tintype[hub]', or download the checkpoint and give its folder",
        ) from None
    problems: dict[type[BaseException], tuple[str, str]] = {
        errors.GatedRepoError: (
            "is gated: its makers ask for consent first",
            f"accept its terms at https://huggingface.co/{address} and log in by hf auth login",
        ),
        errors.RevisionNotFoundError: ("has no such revision", "leave @REVISION out, or name a branch, tag or commit"),
        errors.RepositoryNotFoundError: (
            "isn't here, nor on the hub for you to see",
            "check its name, or log in; if a folder here was meant, check its path",
        ),
    }
    try:
        yield
    except (errors.HTTPError, errors.EntryNotFoundError, OSError) as error:
        for kind, (problem, fix) in problems.items():
            if isinstance(error, kind):
                raise ExportError(f"{address} {problem}", fix=fix) from None
        told: Any = str(error).splitlines()
        raise ExportError(
            f"{address} couldn't be fetched: {told[0] if told else type(error).__name__}",
            fix="export again: what was fetched stays, and the rest goes on where it was",
        ) from None
