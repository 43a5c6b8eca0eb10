"""A picture in a terminal: what is written is that picture, in the terminal's own protocol, and never elsewhere."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tintype.cli.commands import OWN_COMMANDS, _load
from tintype.cli.show import ITERM, KITTY, SIXEL, LivePreview, protocol_of, show, sixels
from tintype.errors import CancelledError, MemoryBudgetError


@pytest.fixture
def picture():
    values = np.zeros((20, 33, 3), np.uint8)
    values[:7, :, 0], values[7:, 10:, 1], values[13:, :20, 2] = 255, 255, 255
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, ITERM),
        ({"TERM": "foot"}, SIXEL),
        ({"TERM": "xterm-sixel"}, SIXEL),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({}, None),
    ],
)
def test_a_terminal_is_known_by_its_name(environment, protocol):
    assert protocol_of(environment) == protocol


def test_kitty_gets_the_picture_in_chunks(picture):
    stream = io.StringIO()
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    show(Image.fromarray(noise), KITTY, stream)
    chunks = re.findall(r"\x1b_G(a=T,f=100,)?m=([01]);([^\x1b]*)\x1b\\", stream.getvalue())
    assert len(chunks) > 1
    assert [more for _, more, _ in chunks] == ["1"] * (len(chunks) - 1) + ["0"]
    assert all(len(piece) <= 4096 for *_, piece in chunks)
    data = base64.b64decode("".join(piece for *_, piece in chunks))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), noise)


def test_iterm_gets_the_picture_and_its_size(picture):
    stream = io.StringIO()
    show(picture, ITERM, stream)
    size, text = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+):([^\x07]*)\x07\n", stream.getvalue()).groups()
    data = base64.b64decode(text)
    assert len(data) == int(size)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))


def test_sixels_are_the_picture(picture):
    np.testing.assert_array_equal(_drawn(sixels(picture)), np.asarray(picture))


def test_a_large_picture_is_made_smaller(picture):
    stream = io.StringIO()
    show(Image.new("RGB", (3000, 1000)), SIXEL, stream)
    assert '"1;1;512;171' in stream.getvalue()


def test_without_a_terminal_it_is_refused_before_anything_is_drawn(tmp_path):
    place = OWN_COMMANDS["generate"][0]
    ran = CliRunner().invoke(_load(place), ["a boat", "--show", "-o", str(tmp_path / "x.png")])
    assert ran.exception.message == "--show needs a terminal"
    assert not (tmp_path / "x.png").exists()


def _drawn(text: str) -> np.ndarray:
    """Sixels as a terminal draws them."""
    head, body = re.fullmatch(r'\x1bPq"1;1;(\d+;\d+)(.*)\x1b\\', text, re.DOTALL).groups()
    width, height = map(int, head.split(";"))
    canvas, palette = np.zeros((height + 6, width, 3), np.uint8), {}
    left = top = colour = 0
    for token in re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|(\$)|(-)", body):
        index, red, green, blue, count, repeated, single, back, down = token.groups()
        if red is not None:
            palette[int(index)] = [int(part) * 255 // 100 for part in (red, green, blue)]
        elif index is not None:
            colour = int(index)
        elif back:
            left = 0
        elif down:
            left, top = 0, top + 6
        else:
            bits, length = ord(repeated or single) - 63, int(count or 1)
            for row in range(6):
                if bits >> row & 1:
                    canvas[top + row, left : left + length] = palette[colour]
            left += length
    return canvas[:height]


class _Step:
    """A step whose preview is a picture, or fails."""

    def __init__(self, image, error=None):
        self._image, self._error = image, error

    def preview(self):
        if self._error is not None:
            raise self._error
        return [self._image.copy()]


@pytest.mark.parametrize("protocol", [KITTY, ITERM, SIXEL])
def test_previews_are_drawn_in_one_place_now_and_then_and_taken_away(picture, protocol):
    stream, now = io.StringIO(), [0.0]
    live = LivePreview(protocol, lambda: now[0])
    for now[0] in (0.0, 0.1, 1.0):
        live.show(_Step(picture), stream)
    text = stream.getvalue()
    assert text.startswith("\n" * 12 + "\x1b[12A\x1b7")  # room is made once
    assert text.count("\x1b7") == text.count("\x1b8") == 2  # the second came too soon
    assert text.count("\n" * 12) == 1
    live.close(stream)
    assert stream.getvalue().endswith("\x1b[J")
    live.show(_Step(picture), stream)
    assert stream.getvalue().endswith("\x1b[J")


def test_a_preview_that_fails_leaves_the_picture_alone(picture):
    stream = io.StringIO()
    live = LivePreview(SIXEL)
    live.show(_Step(picture, MemoryBudgetError("no memory", fix="none")), stream)
    live.show(_Step(picture), stream)
    live.close(stream)
    assert stream.getvalue() == ""
    with pytest.raises(CancelledError):
        LivePreview(SIXEL).show(_Step(picture, CancelledError("stopped", fix="none")), stream)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_a_terminal_that_shows_pictures_gets_previews_while_it_is_drawn(tmp_path, tintype_command):
    """Whole, though a bar of progress is drawn beside them; then the picture itself."""
    import pty

    ours, theirs = pty.openpty()
    arguments = ["a boat", "--show", "--size", "64x64", "--num-inference-steps", "3", "-o", tmp_path / "x.png"]
    process = subprocess.Popen(
        [*tintype_command, "generate", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"},
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while block := os.read(ours, 2**16):
            seen += block
    os.close(ours)
    assert process.wait(timeout=60) == 0
    previews = re.findall(rb"\x1b7\x1b_Ga=T,f=100,i=1,p=1,q=2,C=1,r=12,(.*?)\x1b8", seen, re.DOTALL)
    assert previews
    data = b"".join(re.findall(rb"m=[01];([^\x1b]*)", previews[0]))
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)
    assert seen.count(b"\x1b_Ga=d,d=I,i=1,q=2\x1b\\") == 1
    assert seen.rindex(b"\x1b_Ga=T,f=100,m=") > seen.rindex(b"\x1b_Ga=d")
