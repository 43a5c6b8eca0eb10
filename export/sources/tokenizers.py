"""The tokenizer of a checkpoint that comes without one: CLIP's, from a folder that the user names or the hub's cache.

Every family here reads words with CLIP's vocabulary; they differ in what fills a text up. Nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tintype.errors import ExportError
from tintype.export.sources.source import TokenizerPlace
from tintype.sources.one_file import SD2, Layout

# OpenCLIP fills a text up with its first token, id 0; CLIP with the mark of the end.
OPEN_CLIP_PAD = "!"
CLIP_PAD = "<|endoftext|>"
FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do

# Where the hub's cache may have CLIP's files: repository, and folder within it.
_CACHED = (
    ("openai/clip-vit-large-patch14", ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer"),
    ("CompVis/stable-diffusion-v1-4", "tokenizer"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer"),
)
_FIX = (
    "fetch vocab.json and merges.txt from https://huggingface.co/openai/clip-vit-large-patch14 into a folder and give "
    "it as --tokenizer FOLDER; a diffusers folder or a bundle of Stable Diffusion does as well"
)


def find_tokenizers(file: Path, layout: Layout, given: Path | None) -> Mapping[str, TokenizerPlace]:
    """A tokenizer for each text encoder of a one-file checkpoint. Raises ExportError that says what to fetch."""
    folder = _given(given) if given is not None else _cached()
    if folder is None:
        raise ExportError(f"{file} has no tokenizer in it, as no file of its kind has, and CLIP's isn't here", fix=_FIX)
    if "text_encoder_2" not in layout.text_encoders:
        return {"tokenizer": TokenizerPlace(folder, OPEN_CLIP_PAD if layout is SD2 else CLIP_PAD)}
    first = {"tokenizer": TokenizerPlace(folder, CLIP_PAD)} if "text_encoder" in layout.text_encoders else {}
    return {**first, "tokenizer_2": TokenizerPlace(folder, OPEN_CLIP_PAD)}


def _given(folder: Path) -> Path:
    for place in (folder, folder / "tokenizer", folder / "tokenizer_2"):  # one vocabulary
        if _is_tokenizer(place):
            return place
    raise ExportError(f"{folder} has neither tokenizer.json nor vocab.json and merges.txt", fix=_FIX)


def _is_tokenizer(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in FILES)


def _cached() -> Path | None:
    """The folder of CLIP's tokenizer in the hub's cache, where one was put there before; HF_HOME says where that is."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for repository, inner in _CACHED:
        for names in FILES:
            found = try_to_load_from_cache(repository, f"{inner}/{names[0]}".lstrip("/"))
            if isinstance(found, str) and _is_tokenizer(Path(found).parent):
                return Path(found).parent
    return None
