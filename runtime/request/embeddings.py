"""The embeddings that a request brings: read, checked against the model's text encoders, and what its record keeps."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype.bounds import MAX_EMBEDDING_BYTES, MAX_EMBEDDING_VECTORS, MAX_EMBEDDING_WORD_CHARS, MAX_EMBEDDINGS
from tintype.errors import RecordError, RequestError
from tintype.files import read_given
from tintype.request import checks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tintype.bundle.manifest import Manifest
    from tintype.prompt import AddedWords
    from tintype.sources.embedding import Embedding

GivenEmbeddings = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFacts:
    """A file of textual inversion. Two may be one word's: for each of a model's text encoders one."""

    word: str  # as prompts write it
    sha256: str
    vectors: int


def row_count(facts: Sequence[EmbeddingFacts]) -> int:
    """The rows of all words together."""
    return sum({each.word: each.vectors for each in facts}.values())


def open_embeddings(given: GivenEmbeddings, manifest: Manifest) -> tuple[tuple[EmbeddingFacts, ...], AddedWords]:
    """Read files of textual inversion. Raises RequestError for one that isn't, or isn't one for this model."""
    from tintype.prompt import AddedWords
    from tintype.sources.embedding import read_embedding

    fix = 'give a list of files: embeddings=["word.safetensors"], or --embedding FILE for each'
    if isinstance(given, str | os.PathLike) or not isinstance(given, Sequence):
        raise RequestError(f"embeddings is {type(given).__name__}, and no list of files", fix=fix)
    if len(given) > MAX_EMBEDDINGS:
        raise RequestError(f"{len(given):,} embeddings are given; {MAX_EMBEDDINGS} are the most", fix="leave some out")
    for each in given:
        if not isinstance(each, str | os.PathLike):
            raise RequestError(f"{type(each).__name__} is no file of an embedding", fix=fix)
    widths, facts = encoder_widths(manifest), []
    rows: dict[str, dict[str, NDArray[np.float32]]] = {role: {} for role in widths}
    words: dict[str, str] = {}  # by how they read in any case
    for path in given:
        found = read_embedding(Path(path))
        word = words.setdefault(found.word.casefold(), found.word)
        for role, vectors in _by_role(found, widths, manifest).items():
            if word in rows[role]:
                raise RequestError(
                    f"two embeddings are called {word!r}", fix="leave one of them out, or give its file another name"
                )
            rows[role][word] = vectors
        facts.append(EmbeddingFacts(word=word, sha256=found.sha256, vectors=found.count))
    _demand_complete(rows, manifest)
    in_order = {role: {word: known[word] for word in words.values()} for role, known in rows.items()}
    return tuple(facts), AddedWords(in_order)


def encoder_widths(manifest: Manifest) -> dict[str, int | None]:
    """By text encoder, how many numbers stand for a token; None where its graph leaves that open."""
    found: dict[str, int | None] = {}
    for role in manifest.text_encoders:
        ports = {port.name: port for port in manifest.graphs[role]["full"].outputs}
        states = next(ports[name] for name in ("last_hidden_state", "hidden_states") if name in ports)
        width = states.shape[-1]
        found[role] = width if isinstance(width, int) else None
    return found


def _by_role(found: Embedding, widths: dict[str, int | None], manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """An embedding's vectors by the text encoder that takes them. Raises RequestError where none does."""
    from tintype.sources.embedding import ANY, CLIP_G, CLIP_L

    roles = {CLIP_L: "text_encoder", CLIP_G: "text_encoder_2"}
    is_xl = "text_encoder_2" in widths
    if not is_xl and CLIP_G in found.vectors:
        raise RequestError(
            f"the embedding {found.word!r} is for Stable Diffusion XL, and this model is {manifest.family}",
            fix="give one that was trained on a model of this family",
        )
    matched: dict[str, NDArray[np.float32]] = {}
    for key, vectors in found.vectors.items():
        width = vectors.shape[1]
        fitting = [role for role, wanted in widths.items() if wanted in (width, None)]
        if key != ANY:
            fitting = [role for role in fitting if role == roles[key]]
        if not fitting and (key == ANY or roles[key] in widths):
            told = " and ".join(map(str, widths.values()))
            raise RequestError(
                f"the embedding {found.word!r} has vectors of {width:,} numbers, and this model takes {told}",
                fix="give one that was trained on a model of this family",
            )
        matched |= dict.fromkeys(fitting[:1], vectors)
    return matched


def _demand_complete(rows: dict[str, dict[str, NDArray[np.float32]]], manifest: Manifest) -> None:
    """RequestError for a word that not every text encoder has, or that fits no prompt."""
    for role, facts in manifest.text_encoders.items():
        for word in {word: None for known in rows.values() for word in known}:
            counts = {len(known[word]) for known in rows.values() if word in known}
            if word not in rows[role]:
                raise RequestError(
                    f"the embedding {word!r} has nothing for this model's {role}",
                    fix="give one that was trained on a model of this family, or the file of its other half too",
                )
            if len(counts) > 1 or max(counts) > facts.max_length - 2:
                raise RequestError(
                    f"the embedding {word!r} has {max(counts)} vectors, and "
                    + (f"{min(counts)} for the other text encoder" if len(counts) > 1 else "fits no prompt"),
                    fix="give one that was trained on a model of this family",
                )


def files_of(known: Sequence[EmbeddingFacts], given: GivenEmbeddings) -> list[str | os.PathLike[str]]:
    """Of the given files those of a record's facts, in their order. Raises RecordError where one is missing."""
    left = [(_hash_of(path), path) for path in given]
    found = []
    for each in known:
        same = [pair for pair in left if pair[0] == each.sha256]
        if not same:
            raise RecordError(
                f"the record's picture was drawn with the embedding {each.word!r} (sha256 {each.sha256[:12]})",
                fix="give its file: embeddings=, or --embedding FILE for each",
            )
        chosen = next((pair for pair in same if Path(pair[1]).stem == each.word), same[0])
        left.remove(chosen)
        found.append(chosen[1])
    if left:
        raise RecordError(f"the record's picture was drawn without the embedding {left[0][1]}", fix="leave it out")
    return found


def _hash_of(path: str | os.PathLike[str]) -> str:
    fix = "give the .safetensors files that the picture was drawn with"
    return hashlib.sha256(read_given(path, MAX_EMBEDDING_BYTES, what="embedding", fix=fix)).hexdigest()


def demand_embedding_facts(known: Any) -> None:
    """RequestError where facts that somebody else wrote down are not such as `open_embeddings` gives."""
    if len(known) > MAX_EMBEDDINGS:
        raise RequestError(f"{len(known):,} embeddings; {MAX_EMBEDDINGS} are the most", fix="leave some out")
    for each in known:
        if re.fullmatch("[0-9a-f]{64}", each.sha256) is None:
            raise RequestError("the sha256 of an embedding is none", fix="give 64 hexadecimal digits")
        checks.whole_number("the embedding's vectors", each.vectors, 1, MAX_EMBEDDING_VECTORS)
        if not 0 < len(each.word) <= MAX_EMBEDDING_WORD_CHARS or not each.word.isprintable():
            raise RequestError("an embedding's word is none", fix="give its name")
