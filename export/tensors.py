"""The tensors of a checkpoint as its entries say: read a few megabytes at a time, in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tintype.export.sources.entries import Entry, Product
from tintype.sources.header import broken

MAPPED_BYTES = 256 * 2**20  # of a file that are read from one mapping of it


def read_tensors(entries: Mapping[str, Entry]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor as fp32 with its name, file by file.

    A file is mapped anew after some megabytes, or all of its pages would stand in memory beside what is made of them.
    """
    for path in dict.fromkeys(entry.path for entry in entries.values()):
        for part in _parts({name: entry for name, entry in entries.items() if entry.path == path}):
            try:
                with safe_open(path, framework="pt") as file:
                    state = {name: _tensor(file, entry) for name, entry in part.items()}
            except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
                raise broken(path, _first_line(error)) from None
            for name, tensor in state.items():
                added = entries[name].added
                if added is not None:
                    state[name] = tensor + _product(added).reshape(tensor.shape)
                if not bool(torch.isfinite(state[name]).all()):
                    raise broken(path if added is None else added.path, f"{name} holds NaN or infinity")
            yield from state.items()


def _parts(entries: Mapping[str, Entry]) -> Iterator[dict[str, Entry]]:
    """Entries of one file, some megabytes at a time."""
    part: dict[str, Entry] = {}
    mapped = 0
    for name, entry in entries.items():
        part[name] = entry
        mapped += entry.stored_bytes
        if mapped >= MAPPED_BYTES:
            yield part
            part, mapped = {}, 0
    if part:
        yield part


def _tensor(file: Any, entry: Entry) -> torch.Tensor:
    """file: of safetensors', open."""
    stored: torch.Tensor = file.get_tensor(entry.name)
    scale = 1.0 if entry.scale is None else float(file.get_tensor(entry.scale).float())
    if entry.rows is not None:
        stored = stored[slice(*entry.rows)]
    if entry.transposed:
        stored = stored.T
    whole = stored.float().reshape(entry.shape).contiguous()
    return whole if scale == 1.0 else whole * scale


def _product(factors: Product) -> torch.Tensor:
    """(rows, columns), fp32."""
    try:
        with safe_open(factors.path, framework="pt") as file:
            up, down = (file.get_tensor(name).float().flatten(1) for name in (factors.up, factors.down))
            return up @ down
    except (SafetensorError, OSError, RuntimeError, IndexError) as error:
        raise broken(factors.path, _first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
