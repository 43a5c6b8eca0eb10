"""The only way from the command to the terminal: a line of text, or one JSON object. A picture goes through `show`.

What is said may come from a bundle, a record or a checkpoint that a stranger made: it can neither steer the terminal,
nor begin a line of its own, nor fill the screen.
"""

from __future__ import annotations

import json

import click

from tintype.bounds import MAX_LINE_CHARS
from tintype.errors import printable


def say(text: str = "", *, err: bool = False) -> None:
    """One line on stdout, or on stderr."""
    click.echo(printable(text, MAX_LINE_CHARS), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """A text of ours that has several lines."""
    for line in text.splitlines():
        say(line, err=err)


def say_json(value: object) -> None:
    """One JSON object on stdout, in printable ASCII alone."""
    click.echo(json.dumps(value).replace("\x7f", "\\u007f"))
