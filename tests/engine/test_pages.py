"""Pages of mapped files come and go; the mapping stays and reads the same."""

from __future__ import annotations

import mmap

import psutil
import pytest

from tintype.engine.run.pages import Span, beyond, can_give_back, give_back, mapped_spans

pytestmark = pytest.mark.skipif(not can_give_back(), reason="only Linux can be asked for it")
MIB = 2**20


@pytest.fixture
def mapped(tmp_path):
    """A file of 32 MiB and its mapping, copy on write as ONNX Runtime makes it."""
    path = tmp_path / "weights"
    path.write_bytes(b"".join(bytes([number]) * MIB for number in range(32)))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        yield path, mapping


def resident():
    return psutil.Process().memory_info().rss


def test_a_file_is_found_where_it_is_mapped(mapped, tmp_path):
    path, _ = mapped
    assert [span.size for span in mapped_spans([path])] == [32 * MIB]
    other = tmp_path / "link"
    other.hardlink_to(path)
    assert mapped_spans([other]) == mapped_spans([path])
    (tmp_path / "unmapped").write_bytes(b"x")
    assert mapped_spans([tmp_path / "unmapped"]) == []


def test_pages_leave_and_come_again_and_say_the_same(mapped):
    path, mapping = mapped
    spans = mapped_spans([path])
    assert give_back(spans)
    before = resident()
    assert sum(mapping[place] for place in range(0, 32 * MIB, 4096)) == sum(range(32)) * 256
    assert resident() - before > 30 * MIB
    assert give_back(spans)
    assert resident() - before < 2 * MIB
    assert [mapping[number * MIB] for number in range(32)] == list(range(32))


def test_an_address_that_is_not_mapped_is_no_crash():
    assert not give_back([Span(4096, 8192)])


@pytest.mark.parametrize(
    ("now", "known", "left"),
    [
        ([Span(0, 4)], [], [Span(0, 4)]),
        ([Span(0, 4)], [Span(0, 4)], []),
        ([Span(0, 8)], [Span(2, 4)], [Span(0, 2), Span(4, 8)]),  # grown on both sides
        ([Span(0, 8)], [Span(0, 2), Span(6, 8)], [Span(2, 6)]),  # joined
        ([Span(0, 2), Span(4, 6)], [Span(4, 6)], [Span(0, 2)]),
        ([Span(4, 6)], [Span(0, 2), Span(8, 9)], [Span(4, 6)]),
    ],
)
def test_what_is_new_is_told_from_what_was_there(now, known, left):
    assert beyond(now, known) == left
