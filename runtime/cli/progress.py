"""Progress on stderr, and only when it is a terminal: a pipe or a log file gets nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tintype.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID
    from rich.text import Text

MAX_PROGRESS_CHARS = 200
PREPARING = "loading (the first time, building for this machine)"


def is_shown() -> bool:
    """Whether a person watches stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def spinner(what: str) -> Iterator[Callable[[str], None]]:
    """Show that something without steps is going on; call what it gives to say what it has come to."""
    if not is_shown():
        yield lambda told: None
        return
    from rich.text import Text

    with _console().status(what) as status:
        yield lambda told: status.update(Text(_line(f"{what}: {told}")))


class StepBar:
    """A bar for the denoising steps, with the step rate and the time left; a spinner until the first step."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> StepBar:
        if is_shown():
            self._progress = _step_progress(_console())
            self._progress.start()
            self._task = self._progress.add_task(PREPARING, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def tell(self, told: str) -> None:
        """What goes on before the first step."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=_line(told))

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """While something else is written to the terminal, which the bar would run into."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` steps are behind us."""
        if self._progress is None or self._task is None:
            return
        if done <= 1:  # time before the first step is loading and building, not denoising
            self._progress.reset(self._task, total=total, completed=0, description="denoising")
        self._progress.update(self._task, completed=done, total=total)


def _line(text: str) -> str:
    """What a bundle may have had a say in."""
    return printable(text, MAX_PROGRESS_CHARS)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _step_progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.2f} steps/s")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
