"""A checkpoint fetched from the Hugging Face hub; `tintype.sources.hub` says what its address is.

Only files that an export reads are fetched, into the hub's own cache, where other programs find them too. What broke
off goes on where it was. Each large file is held against the sha256 that the hub states for it. Names come from
strangers: only those that the exporter itself would open are asked for.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tintype.errors import ExportError
from tintype.export.progress import Progress
from tintype.export.sources.hub_download import fetch_blob, remember_revision
from tintype.export.tokenizer import COPIED
from tintype.files import sha256_of
from tintype.sources.families import family_of, tokenizer_of
from tintype.sources.folder import (
    CONFIG,
    INDEX,
    SCHEDULER,
    controls_models,
    read_config,
    shard_names,
    weights_name,
)
from tintype.sources.hub import (
    Address,
    Remote,
    address_of,
    cached,
    hub_errors,
    is_address,
    list_remote,
    no_folder,
    without_bars,
)

DEFAULT_REVISION = "main"
TOKENIZER_FILES = ("tokenizer.json", *COPIED)

__all__ = ["HubCheckpoint", "fetch", "is_address"]


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """Where a checkpoint lies now, its address on the hub, and the commit that it was fetched at."""

    place: Path
    address: str
    revision: str


def fetch(source: Path | str, progress: Progress) -> HubCheckpoint:
    """Bring a checkpoint here, or find it in the cache where the hub can't be reached.

    Raises ExportError for one that isn't there, that is gated, or that has no form which is read here; and offline, for
    one that was never fetched.
    """
    address = address_of(source)
    file = address.file
    with hub_errors(str(address)), without_bars():
        remote = list_remote(address.repository, address.revision)
        if remote is None:
            return _cached(address)
        names = [file] if file else _folder_names(remote)
        _demand_room(remote, names, str(address))
        with progress.stage("download", len(names)) as advance:
            for name in names:
                _get(remote, name)
                advance(1)
        place = _get(remote, names[0])
        remember_revision(address.repository, address.revision or DEFAULT_REVISION, remote.commit)
    return HubCheckpoint(place if file else place.parent, str(address), remote.commit)


def _get(remote: Remote, name: str) -> Path:
    """A file, fetched where it isn't cached. Raises ExportError when its bytes aren't those that the hub states."""
    import huggingface_hub

    remote.demand(name)
    size, stated = remote.files[name]
    if stated is not None and size is not None:
        fetch_blob(remote.repository, name, remote.commit, stated, size)
    path = Path(huggingface_hub.hf_hub_download(remote.repository, name, revision=remote.commit))
    if stated is not None and sha256_of(path) != stated:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ExportError(
            f"{name} of {remote.repository} isn't what the hub says: its sha256 differs",
            fix="export again to fetch it anew",
        )
    return path


def _folder_names(remote: Remote) -> list[str]:
    """Files of a diffusers folder that an export reads, its index first. Raises ExportError where some are missing."""
    if INDEX not in remote.files:
        return _model_names(remote)
    family = family_of(Path(remote.repository), read_config(_get(remote, INDEX)))
    names = [INDEX, SCHEDULER]
    for component in family.components:
        names += [f"{component}/config.json", *_weights(remote, component)]
    for folder in map(tokenizer_of, family.text_encoders):
        names += [name for file in TOKENIZER_FILES if (name := f"{folder}/{file}") in remote.files]
    return names + [name for name in ("README.md",) if name in remote.files]


def _model_names(remote: Remote) -> list[str]:
    """The same of what controls models, which stands alone."""
    if CONFIG not in remote.files or not controls_models(read_config(_get(remote, CONFIG))):
        raise no_folder(remote)
    return [CONFIG, *_weights(remote, ""), *(name for name in ("README.md",) if name in remote.files)]


def _weights(remote: Remote, component: str) -> list[str]:
    """Files of weights in a component's folder, or beside the README where it is empty."""
    folder = f"{component}/" if component else ""
    there = {name[len(folder) :] for name in remote.files if name.startswith(folder)}
    name = weights_name(component, there)
    if name is None:
        held = ", ".join(sorted(there)[:8]) or "nothing"
        raise ExportError(
            f"{remote.repository} has no {component or 'weights'} in .safetensors (it holds {held})",
            fix="export a checkpoint that is published in .safetensors; pickles aren't read here",
        )
    if not name.endswith(".json"):
        return [folder + name]
    return [folder + each for each in (name, *shard_names(_get(remote, folder + name)))]


def _demand_room(remote: Remote, names: list[str], address: str) -> None:
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


def _cached(address: Address) -> HubCheckpoint:
    place, file = cached(address), address.file
    commit = place.parents[file.count("/") if file else 0].name  # a snapshot's folder has the name of its commit
    return HubCheckpoint(place if file else place.parent, str(address), commit)
