"""Progress: the exporter tells how far it is; who shows it, and whether, is the caller's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from tintype.errors import printable

Advance = Callable[[int], None]
SAY_SECONDS = 30.0  # between two lines on how far all is, where there are no bars
TRUSTED_SHARE = 0.2  # from which on what was taken so far says more than what was expected


def duration(seconds: float) -> str:
    """In words no finer than is known: 20 s, 6 min, 2.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds / 5) * 5)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress(Protocol):
    """Stages one after another, each of `total` units; the context's value is called with units done.

    remark: a sentence that the user should read before the work is done.
    """

    def stage(self, title: str, total: int) -> AbstractContextManager[Advance]: ...

    def remark(self, sentence: str) -> None: ...

    def overall(self, share: float, seconds_left: float) -> None:
        """How much of all stages together is done, 0 to 1, and what the rest will take."""


class Silent:
    """Shows no bars; remarks go to `say`, where that is given, and now and then how far all is."""

    def __init__(self, say: Callable[[str], object] | None = None) -> None:
        self._say = say
        self._said = time.monotonic()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        yield lambda _units: None

    def remark(self, sentence: str) -> None:
        if self._say is not None:
            self._say(sentence)

    def overall(self, share: float, seconds_left: float) -> None:
        if self._say is not None and time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            self._say(f"{share:.0%} done, about {duration(seconds_left)} left")


class Overall:
    """Stages of which it is known about how long each takes: hands them on, and says how far all of them are."""

    def __init__(self, progress: Progress, seconds: Mapping[str, float]) -> None:
        """seconds: expected, by title; a stage that isn't among them counts as none."""
        self._progress, self._expected = progress, dict(seconds)
        self._total = max(sum(seconds.values()), 1e-9)
        self._done = 0.0
        self._started = time.monotonic()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        expected, units = self._expected.pop(title, 0.0), 0

        def advance(more: int) -> None:
            nonlocal units
            units = min(total, units + more)
            inner(more)
            self._tell(self._done + expected * units / max(1, total))

        with self._progress.stage(title, total) as inner:
            yield advance
        self._done += expected
        self._tell(self._done)

    def remark(self, sentence: str) -> None:
        self._progress.remark(sentence)

    def overall(self, share: float, seconds_left: float) -> None:
        self._progress.overall(share, seconds_left)

    def _tell(self, done: float) -> None:
        """The rest takes as much longer than expected as what is done took; that counts as it grows."""
        share = min(1.0, done / self._total)
        slowness = (time.monotonic() - self._started) / done if done > 0 else 1.0
        trust = min(1.0, share / TRUSTED_SHARE)
        factor = trust * slowness + (1 - trust)
        self._progress.overall(share, (self._total - done) * factor)


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
        self._all: Any = None  # the bar of all stages together

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

    def overall(self, share: float, seconds_left: float) -> None:
        if self._all is None:
            self._all = self._bars.add_task("all", total=100)
        left = "" if share >= 1 else f", about {duration(seconds_left)} left"
        self._bars.update(self._all, completed=round(100 * share), description=f"all{left}")

    def remark(self, sentence: str) -> None:
        from rich.text import Text

        self._bars.console.print(Text(printable(sentence)))
