"""Writes directml-kernels.json: every kernel that a wheel of onnxruntime-directml registers for DirectML, by type.

    pip download --no-deps --only-binary=:all: --platform win_amd64 onnxruntime-directml==1.24.4
    python directml_kernels.py onnxruntime_directml-1.24.4-*.whl

Nothing is run, so that any system will do. The provider registers its kernels from one constant table in its library:
an entry has the operator's name, the version that it is for, and its domain, further on spans of the names of type
constraints and of the sets of types that each allows, a bit a type. The table is found by entries that look so.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import zipfile
from pathlib import Path

LIBRARY = "onnxruntime/capi/onnxruntime_pybind11_state.pyd"
ENTRY_BYTES = 160
NAMES_AT, TYPES_AT = 80, 96  # spans: how many, and where
DOMAINS = ("", "com.microsoft", "com.microsoft.dml")
# By bit, as ONNX Runtime's sources order them; the test of a few known kernels would fail if a version changed that.
TYPES = [
    "undefined",
    "float",
    "uint4",
    "int4",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "string",
    "bool",
    "float16",
    "double",
    "uint32",
    "uint64",
]


class Image:
    """A Windows library as it lies in memory: 64-bit little-endian words by virtual address."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        header = struct.unpack_from("<I", data, 0x3C)[0]
        count, optional = struct.unpack_from("<H", data, header + 6)[0], struct.unpack_from("<H", data, header + 20)[0]
        self.base = struct.unpack_from("<Q", data, header + 48)[0]
        self.sections = {}
        for index in range(count):
            at = header + 24 + optional + 40 * index
            name = data[at : at + 8].rstrip(b"\0").decode()
            _, address, size, place = struct.unpack_from("<IIII", data, at + 8)
            self.sections[name] = (self.base + address, size, place)

    def place(self, address: int) -> int | None:
        for start, size, place in self.sections.values():
            if start <= address < start + size:
                return place + address - start
        return None

    def words(self, address: int, count: int) -> tuple[int, ...]:
        place = self.place(address)
        if place is None or place + 8 * count > len(self._data):
            return ()
        return struct.unpack_from(f"<{count}Q", self._data, place)

    def text(self, address: int) -> str | None:
        """The C string there, if it is one of letters, digits and dots."""
        place = self.place(address)
        if place is None:
            return None
        found = re.compile(rb"[\w.]{0,80}\0").match(self._data, place)
        return found.group()[:-1].decode() if found else None


def kernels(image: Image) -> list[list[object]]:
    """[domain, operator, version, version, {constraint: types}], as cuda-kernels.json has them.

    A kernel is for one version: ONNX Runtime takes it for that one alone when it names no last version.
    """
    start, size, _ = image.sections[".rdata"]
    entries = [address for address in range(start, start + size - ENTRY_BYTES, 8) if _is_entry(image, address)]
    table = [at for at in entries if {at - ENTRY_BYTES, at + ENTRY_BYTES} & set(entries)]
    rows: list[list[object]] = []
    for address in table:
        name, version, domain = image.words(address, 3)
        letters = [image.text(word) for word in _span(image, address + NAMES_AT)]
        sets = _span(image, address + TYPES_AT)
        told = {letter: _types(bits) for letter, bits in zip(letters, sets, strict=True)}
        rows.append([image.text(domain), image.text(name), version, version, told])
    return rows


def _is_entry(image: Image, address: int) -> bool:
    words = image.words(address, 14)
    if len(words) < 14 or not 0 < words[1] < 64 or not (0 < words[10] < 8 and words[10] == words[12]):
        return False
    name = image.text(words[0])
    return bool(name) and name[0].isupper() and image.text(words[2]) in DOMAINS


def _span(image: Image, address: int) -> tuple[int, ...]:
    count, first = image.words(address, 2)
    return image.words(first, count)


def _types(bits: int) -> list[str]:
    return sorted(name for bit, name in enumerate(TYPES) if bit and bits >> bit & 1)


def main(wheel: str) -> None:
    """Read the wheel's library and write the table beside this script."""
    version = Path(wheel).name.split("-")[1]
    rows = kernels(Image(zipfile.ZipFile(wheel).read(LIBRARY)))
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in sorted(rows, key=str))
    output = Path(__file__).with_name("directml-kernels.json")
    output.write_text(f'{{"onnxruntime-directml":"{version}","kernels":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(sys.argv[1])
