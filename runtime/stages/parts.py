"""Pictures of one run that have words of their own: each is drawn as its words alone draw it, one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import replace

from tintype.events import Picture, Step
from tintype.stages.context import Context

Events = Generator[Step | Picture]


def in_turn(ctx: Context, picture_steps: Callable[[Context], Events]) -> Events:
    """The events of a run's parts, their steps counted through; of a run without parts, its own."""
    before: Context | None = None
    for number, part in enumerate(ctx.parts.values() or (ctx,)):
        if before is not None:
            part.take_over(before)
        before = part
        with contextlib.closing(picture_steps(part)) as events:
            for event in events:
                yield _counted(event, number, len(ctx.parts)) if ctx.parts else event


def _counted(event: Step | Picture, number: int, parts: int) -> Step | Picture:
    """number: of the part; all of them take as many steps."""
    if isinstance(event, Picture):
        return event
    return replace(event, index=number * event.total + event.index, total=parts * event.total)
