"""Progress: the exporter tells how far it is; who shows it, and whether, is the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from tintype.errors import printable

Advance = Callable[[int], None]


class Progress(Protocol):
    """Stages one after another, each of `total` units; the context's value is called with units done.

    remark: a sentence that the user should read before the work is done.
    """

    def stage(self, title: str, total: int) -> AbstractContextManager[Advance]: ...

    def remark(self, sentence: str) -> None: ...


class Silent:
    """Shows no bars; remarks go to `say`, where that is given."""

    def __init__(self, say: Callable[[str], object] | None = None) -> None:
        self._say = say

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        yield lambda _units: None

    def remark(self, sentence: str) -> None:
        if self._say is not None:
            self._say(sentence)


class Bars:
    """rich bars on a console, one a stage, with time taken and time left. Use as a context manager."""

    def __init__(self, console: Any) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            SpinnerColumn(finished_text="[green]done[/green]"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        task = self._bars.add_task(title, total=max(1, total))
        yield lambda units: self._bars.advance(task, units)
        self._bars.update(task, completed=max(1, total))

    def remark(self, sentence: str) -> None:
        from rich.text import Text

        self._bars.console.print(Text(printable(sentence)))
