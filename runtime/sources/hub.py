"""A checkpoint on the Hugging Face hub: ORG/NAME, ORG/NAME/FILE.safetensors, and @REVISION behind either.

What a repository holds, the hub's errors as ours, and what `tintype info` reads of it: small files, and of weights the
headers alone, by ranges. Names come from strangers: only those that an export itself would open are asked for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tintype.bounds import MAX_CONFIG_BYTES, MAX_WEIGHTS_HEADER_BYTES
from tintype.errors import ExportError
from tintype.sources.facts import SourceFacts, describe, weighted
from tintype.sources.folder import CONFIG, INDEX, SCHEDULER, read_config, shard_names, weights_name

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_ADDRESS = re.compile(rf"({_NAME}/{_NAME})((?:/[\w.-]+)*\.safetensors)?(?:@([\w.-]{{1,100}}))?", re.ASCII)
MAX_LISTED = 10_000  # files of a repository
FIRST_BYTES = 2**16  # of a file of weights: the headers of most parts are no longer


@dataclass(frozen=True, slots=True)
class Address:
    repository: str
    file: str  # empty: a folder of diffusers
    revision: str | None

    def __str__(self) -> str:
        return f"{self.repository}/{self.file}" if self.file else self.repository


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository at one commit: its files, with the bytes and sha256 that the hub states (None where it doesn't)."""

    repository: str
    commit: str
    files: Mapping[str, tuple[int | None, str | None]]

    def demand(self, name: str) -> None:
        """ExportError for a file that isn't there."""
        if name not in self.files:
            raise ExportError(
                f"{self.repository} has no {name} (it holds {', '.join(sorted(self.files)[:8]) or 'nothing'})",
                fix="name one of its files, or export another checkpoint",
            )


def is_address(source: Path | str) -> bool:
    """Whether a source that isn't here may be one on the hub."""
    known = _ADDRESS.fullmatch(str(source)) is not None and ".." not in str(source).split("/")
    return known and not Path(source).exists()


def address_of(source: Path | str) -> Address:
    """The parts of a source that `is_address`."""
    parts = _ADDRESS.fullmatch(str(source))
    assert parts is not None
    return Address(parts[1], (parts[2] or "").lstrip("/"), parts[3])


def describe_remote(source: str) -> SourceFacts:
    """What a checkpoint on the hub is, as `describe` says it of one that is here.

    Its configs come into the hub's cache, its weights stay where they are. Raises ExportError, as an export does.
    """
    address = address_of(source)
    with hub_errors(str(address)), without_bars():
        remote = list_remote(address.repository, address.revision)
        if remote is None:
            place = cached(address)
            return replace(describe(place if address.file else place.parent), location=PurePosixPath(source))
        with tempfile.TemporaryDirectory(prefix="tintype-info-") as scratch:
            folder = Path(scratch)

            def named(text: str) -> str:
                return text.replace(scratch, address.repository)

            try:
                _outline(remote, address.file, folder)
                facts = describe(folder / address.file if address.file else folder)
            except ExportError as error:
                raise ExportError(named(error.message), fix=named(error.fix)) from None
    need = None if facts.need is None else named(facts.need)
    return replace(facts, location=PurePosixPath(source), need=need)


def _outline(remote: Remote, file: str, folder: Path) -> None:
    """The files that tell what a repository is, in a folder: weights without their numbers, which take no room."""
    if file:
        _outline_weights(remote, file, folder)
        return
    if INDEX not in remote.files:
        raise no_folder(remote)
    _fetch_small(remote, INDEX, folder)
    for name in (SCHEDULER, "README.md"):
        if name in remote.files:
            _fetch_small(remote, name, folder)
    for component in weighted(read_config(folder / INDEX)):
        (folder / component).mkdir(exist_ok=True)
        there = {name.partition("/")[2] for name in remote.files if name.startswith(f"{component}/")}
        weights = weights_name(component, there)
        if "config.json" in there:
            _fetch_small(remote, f"{component}/config.json", folder)
        if weights is None:  # `describe` says what is there instead
            for name in there & {name for name in there if "/" not in name}:
                (folder / component / name).touch()
        elif weights.endswith(".json"):
            _fetch_small(remote, f"{component}/{weights}", folder)
            for shard in shard_names(folder / component / weights):
                _outline_weights(remote, f"{component}/{shard}", folder)
        else:
            _outline_weights(remote, f"{component}/{weights}", folder)


def no_folder(remote: Remote) -> ExportError:
    single = [name for name in remote.files if name.endswith(".safetensors") and "/" not in name]
    fix = f"name one of them: {remote.repository}/{single[0]}" if single else "export another checkpoint"
    held = ", ".join(single[:8]) or "no weights"
    return ExportError(f"{remote.repository} is no diffusers folder: it has no {INDEX} (it holds {held})", fix=fix)


def _fetch_small(remote: Remote, name: str, folder: Path) -> None:
    import huggingface_hub

    size = remote.files[name][0] or 0
    if size > MAX_CONFIG_BYTES:
        raise ExportError(f"{name} of {remote.repository} has {size:,} bytes", fix="choose another checkpoint")
    found = Path(huggingface_hub.hf_hub_download(remote.repository, name, revision=remote.commit))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(found.read_bytes())


def _outline_weights(remote: Remote, name: str, folder: Path) -> None:
    """The header of a file of weights, and behind it as many zeros as there are bytes, of which no disk keeps any."""
    remote.demand(name)
    size = remote.files[name][0]
    if size is None:
        raise ExportError(f"the hub doesn't say how large {name} is", fix="export it, or choose another checkpoint")
    start = _bytes_of(remote, name, 0, min(size, FIRST_BYTES))
    length = 8 + int.from_bytes(start[:8], "little")
    if len(start) < length <= min(size, MAX_WEIGHTS_HEADER_BYTES + 8):  # what else it is, `read_header` says
        start += _bytes_of(remote, name, len(start), length)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start[:length])
        file.truncate(size)


def _bytes_of(remote: Remote, name: str, start: int, end: int) -> bytes:
    """So many bytes of a file, and not one more, whatever the server would send."""
    import huggingface_hub
    from huggingface_hub import utils

    url = huggingface_hub.hf_hub_url(remote.repository, name, revision=remote.commit)
    headers = {**utils.build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
    found, skipped = bytearray(), 0
    with huggingface_hub.get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
        utils.hf_raise_for_status(response)
        before = 0 if response.status_code == 206 else start  # a server that doesn't do parts sends all
        for chunk in response.iter_bytes(FIRST_BYTES):
            left = max(0, before - skipped)
            skipped += min(left, len(chunk))
            found += chunk[left:]
            if len(found) >= end - start:
                break
    if len(found) < end - start:
        raise OSError(f"the hub sends nothing more of {name}")
    return bytes(found[: end - start])


def list_remote(repository: str, revision: str | None) -> Remote | None:
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
    return Remote(repository, str(told.sha), files)


def _digest(text: object) -> str:
    """A sha256 in hexadecimal digits, which becomes a file's name. Raises ExportError for anything else."""
    if isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text):
        return text
    raise ExportError(f"the hub states {str(text)[:80]!r} for a sha256", fix="export again, or from another checkpoint")


def cached(address: Address) -> Path:
    """The checkpoint's file, or its folder's index or config, in the hub's cache. ExportError where it isn't there."""
    import huggingface_hub

    for name in (address.file,) if address.file else (INDEX, CONFIG):
        found = huggingface_hub.try_to_load_from_cache(address.repository, name, revision=address.revision)
        if isinstance(found, str):
            return Path(found)
    raise ExportError(
        f"{address} isn't here, and the hub can't be reached",
        fix="connect (and unset HF_HUB_OFFLINE), or give the folder of "
        f"hf download {address.repository}, made elsewhere; if a folder here was meant, check its path",
    )


@contextmanager
def without_bars() -> Iterator[None]:
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
def hub_errors(address: str) -> Iterator[None]:
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
            fix="do it again: what was fetched stays, and the rest goes on where it was",
        ) from None
