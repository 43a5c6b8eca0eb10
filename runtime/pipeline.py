"""READ FIRST: a request becomes a picture, in four steps: see `picture_steps`.

A request is checked as a whole before anything is opened. Graphs open when their stage begins and stay open for the
next request. What one run owns is its `Context`; what all share is `Graphs`; `Studio` makes a run of a request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Unpack

from tintype.arrays import Latents
from tintype.bundle import open_bundle
from tintype.events import Picture, Step
from tintype.memory.plan import Plan
from tintype.record import Record
from tintype.record.latents_file import SavedLatents
from tintype.request import InputFields, Request, RequestFields, make_request
from tintype.run import Result, Run, collect, take_all
from tintype.stages.again import finish_saved
from tintype.stages.context import Context
from tintype.stages.decode import event
from tintype.stages.denoise import denoise
from tintype.stages.encode import encode
from tintype.stages.finish import finish
from tintype.stages.hires import base_steps
from tintype.stages.parts import in_turn
from tintype.stages.start import start
from tintype.stages.studio import Studio
from tintype.trust.choices import Operator, OperatorFields

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_steps(ctx: Context) -> Generator[Step | Picture]:
    """The pictures of a run: each step when it is done, each picture when it is decoded."""
    if ctx.base is not None:
        yield from base_steps(ctx, ctx.base)  # 0. a smaller picture, or what a refiner goes on from
    ctx.prepare()
    conditioning = encode(ctx)  # 1. words -> embeddings
    about_words = tuple(ctx.warnings)
    for batch in ctx.batches:
        known = len(ctx.warnings)
        noise = ctx.noise(batch)
        begun = start(ctx, batch, noise)  # 2. seeds, and a picture -> latents
        for step in denoise(ctx, conditioning, batch, begun, noise):  # 3. noise -> latents, one step at a time
            yield event(ctx, step, batch)
        yield from finish(ctx, batch, ctx.latents[-1], (*about_words, *ctx.warnings[known:]))  # 4. latents -> pixels


def load(
    name_or_path: str | os.PathLike[str] = "postcard",
    *,
    provider: str = "auto",
    memory: str | int | None = None,
    threads: int | None = None,
    refiner: str | os.PathLike[str] | None = None,
    **operator: Unpack[OperatorFields],
) -> Pipeline:
    """Open a bundle, by its name or its folder, on a device.

    provider: auto, cpu, cuda, directml or webgpu; a named one is used or it is an error. threads: None is one a core.
    memory: the most that the process may have resident, a device's too, as in 2GiB; auto is what is free.
    refiner: a bundle of the same latents that draws the last steps. operator: the fields of `trust.choices.Operator`.
    Raises BundleError, LicenceError, InstallError or ProviderError, and RequestError for what can't be done.
    """
    from tintype.engine import resolve_provider

    bundle, refines = open_bundle(name_or_path), None if refiner is None else open_bundle(refiner)
    target, chosen = resolve_provider(provider), Operator(**operator)
    return Pipeline(bundle, target, memory=memory, threads=threads, refiner=refines, operator=chosen)


class Pipeline(Studio):
    """A bundle on a device. Use it as a context manager, or `close` it.

    Threads may share one: their runs take turns at each call of a graph. Runs of different shapes open each other's
    graphs anew at every turn; a pipeline for each shape is faster.
    """

    def generate(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> Result:
        """Make the pictures of a request: a prompt with the fields of `Request` by name, or a Request.

        Raises RequestError for what can't be done as asked, NumericError when the model breaks down, and BlockedError
        by the operator's policy or safety checker, without the other pictures, which `steps` keeps in `pictures`.
        """
        return take_all(self.steps(prompt, **fields).events())

    def steps(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> Run:
        """The same, step by step: iterate over what comes back, then take its `result`. Stop whenever you like."""
        ctx = self.context_for(self.resolve(make_request(prompt, fields)))
        return Run(ctx, in_turn(ctx, picture_steps))

    def reproduce(self, record: Record, *, anyway: bool = False, **inputs: Unpack[InputFields]) -> Result:
        """The picture of a record again, byte for byte.

        inputs: the picture, mask or noise that it began with, if any; a record has only their hashes.
        Raises RecordError, naming each reason, when the same bytes can't be promised; `anyway` tries all the same.
        """
        return take_all(self.reproduce_steps(record, anyway=anyway, **inputs).events())

    def reproduce_steps(self, record: Record, *, anyway: bool = False, **inputs: Unpack[InputFields]) -> Run:
        """`reproduce`, step by step."""
        ctx = self.context_again(record, inputs, anyway=anyway)
        return Run(ctx, picture_steps(ctx))

    def resume(self, saved: SavedLatents, *, anyway: bool = False, **inputs: Unpack[InputFields]) -> Result:
        """Decode latents that `Run.save_latents` wrote and `read_latents` read, where decoding failed before.

        inputs: what they began with; only needed where a picture keeps the exact outside of its mask. Raises
        RecordError when they were made elsewhere, and then `anyway` tries all the same.
        """
        return take_all(self.resume_pictures(saved, anyway=anyway, **inputs))

    def resume_pictures(
        self, saved: SavedLatents, *, anyway: bool = False, **inputs: Unpack[InputFields]
    ) -> Generator[Picture, None, Result]:
        """`resume`, picture by picture, each when it is decoded; the generator returns the result."""
        ctx, foreign = self.context_of_saved(saved, inputs, anyway=anyway)
        return (yield from collect(ctx, finish_saved(ctx, saved, foreign), []))

    def plan(self, prompt: str | Request = "words", *, build: bool = True, **fields: Unpack[RequestFields]) -> Plan:
        """What making a request's pictures takes, stage by stage, within the budget; `generate` goes by the same plan.

        build: make and measure the builds that it consists of; otherwise what isn't known is reckoned. Raises
        RequestError, and MemoryBudgetError, naming the smallest budget that would do, when nothing fits.
        """
        return self.plan_whole(self.resolve(make_request(prompt, fields)), build=build)

    def encode_picture(
        self, picture: Image, *, exactness: str | None = None, warn: Callable[[str], None] = lambda sentence: None
    ) -> Latents:
        """A picture -> its latents, (1, channels, height, width), as a result has them.

        exactness: None is the model's own. warn: is told what was computed again in float32.

        Raises RequestError for a size that the model can't make, MemoryBudgetError when nothing fits.
        """
        return self.encoded(picture, exactness, warn)

    def plan_encoding(
        self, width: int | None = None, height: int | None = None, *, exactness: str | None = None, build: bool = True
    ) -> Plan:
        """What turning a picture of that size into latents takes; `encode_picture` goes by the same plan.

        width, height: in pixels; None is the model's own, here and of exactness. build, and what it raises: see `plan`.
        """
        return self.planner.plan(self.encoding(width, height, exactness), self.memory, build=build)
