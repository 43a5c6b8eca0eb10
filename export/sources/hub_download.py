"""One large file of the hub, into the hub's cache, going on where an earlier try broke off.

huggingface_hub begins a file anew in each process. Here what has come stays beside the cache's blobs, under the sha256
that the hub states for the file, until it is whole; then it is a blob as huggingface_hub would have written it.
"""

from __future__ import annotations

from pathlib import Path

import filelock

from tintype.files import write_text

CHUNK_BYTES = 2**20


def fetch_blob(repository: str, name: str, commit: str, sha256: str, size: int) -> None:
    """Bring a file of so many bytes to its place among the blobs, where it isn't there yet.

    A connection that breaks is made again as long as each brings something. Raises OSError, and the client's errors.
    """
    from huggingface_hub import errors

    folder = _folder(repository) / "blobs"
    if (folder / sha256).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{sha256}.part"
    lock = folder.parents[1] / ".locks" / folder.parent.name / f"{sha256}.lock"  # the one that huggingface_hub takes
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        part.touch()
        while (before := _size(part)) != size:
            try:
                _go_on(repository, name, commit, part, size)
            except errors.HfHubHTTPError:
                raise
            except errors.HTTPError:
                if _size(part) <= before:
                    raise
            if _size(part) <= before < size:
                raise OSError(f"the hub sends nothing more of {name}, which should have {size:,} bytes")
        part.replace(folder / sha256)


def remember_revision(repository: str, revision: str, commit: str) -> None:
    """Which commit a branch or tag was, so that it is found in the cache without the hub."""
    if revision != commit:
        write_text(_folder(repository) / "refs" / revision, commit)


def _folder(repository: str) -> Path:
    """A repository's part of the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _size(part: Path) -> int:
    return part.stat().st_size


def _go_on(repository: str, name: str, commit: str, part: Path, size: int) -> None:
    """One request for what is missing, or for all of it where the server doesn't do parts."""
    import huggingface_hub
    from huggingface_hub import utils

    start = _size(part) if _size(part) < size else 0
    url = huggingface_hub.hf_hub_url(repository, name, revision=commit)
    headers = {**utils.build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    session = huggingface_hub.get_session()
    with session.stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
        utils.hf_raise_for_status(response)
        with part.open("ab" if response.status_code == 206 and start else "wb") as file:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                if file.tell() + len(chunk) > size:
                    raise OSError(f"the hub sends more than the {size:,} bytes of {name}")
                file.write(chunk)
