"""One request on its way, and what comes of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents
from tintype.events import Picture, Step, Timings, picture_paths
from tintype.record import Record
from tintype.record.latents_file import save_latents
from tintype.request import ResolvedRequest
from tintype.stages.context import Context
from tintype.stages.finish import demand_unblocked, float_pixels, record_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.memory.plan import Plan
    from tintype.trust.credentials import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The pictures of one request, in the order of their seeds."""

    images: tuple[Image, ...]
    records: tuple[Record, ...]
    latents: Latents  # (pictures, channels, height, width), as the VAE's decoder takes them before scaling
    timings: Timings
    plan: Plan | None = None  # that it was made by, where there was a budget
    decode: Callable[[], NDArray[np.float32]] = field(compare=False, repr=False)
    signer: Signer | None = field(default=None, compare=False, repr=False)  # of the files that `save` writes

    @property
    def pixels(self) -> NDArray[np.float32]:
        """(pictures, height, width, 3), 0 to 1, not rounded to bytes. Each use decodes the latents again."""
        return self.decode()

    @property
    def image(self) -> Image:
        """The first picture. `save` writes it with its record; Pillow's own save leaves that out."""
        return self.images[0]

    @property
    def record(self) -> Record:
        return self.records[0]

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write one picture to `path`, or several to numbered names beside it (see `picture_paths`); returns the paths.

        A file is written whole or not at all. Raises OutputError; pictures before the one that failed stay written.
        """
        paths = picture_paths(path, len(self.images))
        for image, record, place in zip(self.images, self.records, paths, strict=True):
            Picture(record.picture, image, record, self.signer).save(place)
        return paths


class Run:
    """One request on its way: an iterator over its steps. `result` is there once the last step has been taken.

    `pictures` has those that are done, whatever comes of the others; `events` gives each when it is decoded.
    Stopping early, or Ctrl-C within a step, leaves the pipeline ready for the next request.
    """

    def __init__(self, ctx: Context, steps: Generator[Step | Picture]) -> None:
        """steps: what makes the pictures of a context."""
        self._ctx = ctx
        self._pictures: list[Picture] = []
        self._result: Result | None = None
        self._events = self._kept(steps)

    @property
    def request(self) -> ResolvedRequest:
        return self._ctx.request

    @property
    def plan(self) -> Plan | None:
        """That it goes by, where there is a budget."""
        return self._ctx.plan

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Step:
        return next(event for event in self._events if isinstance(event, Step))

    def events(self) -> Generator[Step | Picture, None, Result]:
        """Steps, and each picture when it is decoded, before the next one is begun; the generator returns the result.

        Closing it closes the run.
        """
        yield from self._events
        return self.result

    def close(self) -> None:
        """Stop here; the request has then no result."""
        self._events.close()

    def cancel(self) -> None:
        """End the run from another thread: within a graph's call, or before the next one. Who iterates over it gets a
        CancelledError; the pipeline is ready for the next request."""
        self._ctx.graphs.cancel()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those that are decoded so far, in the order of their seeds; they stay when the run fails or is closed."""
        return tuple(self._pictures)

    @property
    def latents(self) -> Latents | None:
        """Of the pictures that are denoised, also when decoding them failed; None before the first is."""
        return np.concatenate(self._ctx.latents) if self._ctx.latents else None

    @property
    def result(self) -> Result:
        """The pictures. Only there when every step has been taken."""
        if self._result is None:
            raise RuntimeError("the run has no result yet: iterate over it to its end first")
        return self._result

    def save_latents(self, path: str | os.PathLike[str]) -> Path:
        """Write `latents` with their records, for `Pipeline.resume` and `tintype generate --from-latents`."""
        latents = self.latents
        if latents is None:
            raise RuntimeError("the run has no latents yet: iterate over it until the first picture is denoised")
        parts = [(index, self._ctx.part(index)) for index in self._ctx.denoised]
        records = [record_of(part, index, part.warnings) for index, part in parts]
        return save_latents(path, latents, records)

    def _kept(self, steps: Generator[Step | Picture]) -> Generator[Step | Picture]:
        """The events, with what they leave kept."""
        self._result = yield from collect(self._ctx, steps, self._pictures)


Event = TypeVar("Event", bound=Step | Picture)


def collect(ctx: Context, steps: Generator[Event], pictures: list[Picture]) -> Generator[Event, None, Result]:
    """The events of a run; the generator returns its result. pictures: is filled with those that are done.

    Raises BlockedError at the end, where the safety checker blocked some.
    """
    timings = ctx.clock.timings()
    with contextlib.closing(steps):
        for event in steps:
            if isinstance(event, Picture):
                pictures.append(event)
                timings = ctx.clock.timings()  # without what the caller does with it
            yield event
    ctx.graphs.all.trim()  # what was needed for a moment goes back, so that the hundredth takes no more than the first
    demand_unblocked(ctx)
    latents = np.concatenate(ctx.latents)
    result_latents = latents[[ctx.denoised.index(picture.index) for picture in pictures]]
    result_latents.flags.writeable = False  # `pixels` are decoded from them again
    return Result(
        images=tuple(picture.image for picture in pictures),
        records=tuple(picture.record for picture in pictures),
        latents=result_latents,
        timings=timings,
        plan=ctx.plan,
        decode=lambda: float_pixels(ctx, result_latents),
        signer=ctx.signer,
    )


def take_all(events: Generator[Any, None, Result]) -> Result:
    """Run a generator of events to its end; what it returns."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
