"""READ FIRST: a request becomes a picture, in four steps.

    1. encode    words -> embeddings        the text encoder
    2. noise     seed -> latents            the host, the same on every device
    3. denoise   noise -> latents           the denoiser, once a step; a sampler decides how
    4. decode    latents -> pixels          the VAE's decoder

`Run` is those four steps for one request. It yields after every denoising step, and each picture when it is decoded, so
that its caller owns progress, preview, saving and cancellation. A request is checked as a whole before anything is
opened. Graphs are opened when their stage begins and stay open for the next request; `Pipeline.close` gives everything
back.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from tintype import sampling, strict_json
from tintype._version import __version__
from tintype.arrays import Latents, Pixels
from tintype.bundle import Bundle, open_bundle
from tintype.clock import StageClock
from tintype.conditioning import Conditioning, Read, chunked, condition, is_guided, prompts_of, read
from tintype.decoding import AS_ARRANGED, Way, decode_somehow, resume_pictures, ways_to_decode
from tintype.denoiser import Denoiser
from tintype.engine import peak_rss_bytes
from tintype.errors import BundleError, ProviderError, RecordError, RequestError, TintypeError
from tintype.image.decode import decode_latents, to_image
from tintype.image.encode import encode_pixels, of_image
from tintype.image.tiles import Tiling
from tintype.latents import SavedLatents, save_latents
from tintype.manifest import ENCODER, TokenizerFacts
from tintype.memory.budget import parse_memory
from tintype.memory.plan import Arrangement, Plan
from tintype.overflow import Note, again_in_float, finite, finite_reading, float_options
from tintype.planning import Planner, encoding_needs, needs_of
from tintype.prompt import EncodedPrompt, PromptTokenizer
from tintype.recent import Recent
from tintype.record import (
    BY_PRIORS,
    TIMED,
    Circumstances,
    MemoryFacts,
    Record,
    arrangement_of,
    differences,
    unrepeatable,
)
from tintype.request import Request, RequestFields, ResolvedRequest, make_request, resolve
from tintype.result import Picture, Result, Step, Timings

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.engine import BuildOptions, Session, Target


BUILDS_KEPT = 512  # whose ids a pipeline remembers
TOGETHER = Arrangement()  # every graph packed and kept open: what is done without a budget


def load(
    name_or_path: str | os.PathLike[str] = "postcard",
    *,
    provider: str = "auto",
    memory: str | int | None = None,
    threads: int | None = None,
) -> Pipeline:
    """Open a bundle, by its embedded name or its folder, on a device.

    provider: auto, cpu, cuda, directml or webgpu; a named one is used or it is an error.
    memory: the most that the process may have resident, a device's memory included, in bytes or as in 2GiB; auto is
    what is free. Requests that do not fit are refused before anything loads; None is no budget.
    threads: for the processor; None is one a core.

    Raises BundleError, InstallError or ProviderError, and RequestError for a budget that is no size. Graphs are opened
    by the first request.
    """
    from tintype.engine import resolve_provider

    return Pipeline(open_bundle(name_or_path), resolve_provider(provider), memory=memory, threads=threads)


class Pipeline:
    """A bundle on a device. Use it as a context manager, or `close` it; not from two threads at once."""

    def __init__(
        self, bundle: Bundle, target: Target, *, memory: str | int | None = None, threads: int | None = None
    ) -> None:
        from tintype.engine import default_threads

        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise RequestError(f"threads is {threads!r}", fix="give 1 or more, or leave it out for one a physical core")
        for role in bundle.manifest.roles:
            bundle.graph(role)
        self.bundle = bundle
        self.target = target
        self.memory = None if memory is None else parse_memory(memory)
        self.threads = default_threads() if threads is None else threads
        self.scheduler = _scheduler_config(bundle)
        self.load_seconds = 0.0  # spent opening graphs, over the pipeline's life
        self.tell: Callable[[str], None] = lambda told: None  # is told what a plan takes its time for; set it
        self._tokenizers: dict[str, PromptTokenizer] = {}
        self._sessions: dict[str, tuple[BuildOptions, Session]] = {}
        self._builds: Recent[tuple[str, BuildOptions], tuple[str, bool]] = Recent(BUILDS_KEPT)
        self._settled: Recent[tuple[str, BuildOptions], BuildOptions] = Recent(BUILDS_KEPT)
        self._planner = Planner(self)

    def generate(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> Result:
        """Make the pictures of a request: a prompt with the fields of `Request` by name, or a Request.

        Raises RequestError for what can't be done as asked, NumericError when the model breaks down.
        """
        return take_all(self.steps(prompt, **fields).events())

    def steps(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> Run:
        """The same, step by step: iterate over what comes back, then take its `result`. Stop whenever you like."""
        return Run(self, resolve(make_request(prompt, fields), self.bundle.manifest))

    def reproduce(self, record: Record, *, anyway: bool = False) -> Result:
        """The picture of a record again, byte for byte.

        Raises RecordError, naming each reason, when this bundle, device or version can't promise the same bytes;
        `anyway` tries all the same.
        """
        return take_all(self.reproduce_steps(record, anyway=anyway).events())

    def reproduce_steps(self, record: Record, *, anyway: bool = False) -> Run:
        """`reproduce`, step by step."""
        request = resolve(_asked(record), self.bundle.manifest)
        alike = record.made_with.target == self.target.name
        arrangement = arrangement_of(record.made_with) if alike or self.target.is_host else TOGETHER
        # Builds last: one that isn't there yet has to be made before it can be compared.
        reasons = unrepeatable(record) + differences(record, self._circumstances(record.made_with.builds))
        if not reasons:
            reasons = differences(record, self.circumstances(request, record.picture, record.tiling, arrangement))
        if reasons and not anyway:
            raise RecordError(
                f"the same picture can't be promised: {'; '.join(reasons)}",
                fix="use what made it, or let it try anyway; the picture may then differ",
            )
        return Run(self, request, picture=record.picture, ways=(Way(record.tiling),), arrangement=arrangement)

    def resume(self, saved: SavedLatents, *, anyway: bool = False) -> Result:
        """Decode latents that `Run.save_latents` wrote and `read_latents` read, where decoding failed before.

        Raises RecordError when they were made elsewhere, and then `anyway` tries all the same.
        """
        return take_all(self.resume_pictures(saved, anyway=anyway))

    def resume_pictures(self, saved: SavedLatents, *, anyway: bool = False) -> Generator[Picture, None, Result]:
        """`resume`, picture by picture: each is yielded when it is decoded; the generator returns the result."""
        return resume_pictures(self, saved, anyway=anyway)

    def plan(self, prompt: str | Request = "", *, build: bool = True, **fields: Unpack[RequestFields]) -> Plan:
        """What making a request's pictures takes, stage by stage, within the budget; `generate` goes by the same plan.

        build: make and measure the builds that it consists of; otherwise what isn't known is reckoned.

        Raises RequestError, and MemoryBudgetError, naming the smallest budget that would do, when nothing fits.
        """
        request = resolve(make_request(prompt, fields), self.bundle.manifest)
        return self._planner.plan(request, self.memory, needs_of, build=build)

    def plan_encoding(
        self, width: int | None = None, height: int | None = None, *, exactness: str | None = None, build: bool = True
    ) -> Plan:
        """What turning a picture of that size into latents takes; `encode_picture` goes by the same plan.

        width, height: in pixels; None is the model's own, here and of exactness. build, and what it raises: see `plan`.
        """
        return self._planner.plan(self._of_picture(width, height, exactness), self.memory, encoding_needs, build=build)

    def planned(self, request: ResolvedRequest) -> Plan | None:
        """The plan that a request is made by; None without a budget.

        One kind of request keeps its plan while that fits what is free, and not much more has become free since.
        """
        return None if self.memory is None else self._planner.planned(request, self.memory, needs_of)

    def _of_picture(self, width: int | None, height: int | None, exactness: str | None) -> ResolvedRequest:
        """What stands for a picture that is there already where a request is asked for."""
        return resolve(Request(prompt="", width=width, height=height, exactness=exactness), self.bundle.manifest)

    def encode(
        self, request: ResolvedRequest, arrangement: Arrangement = TOGETHER, note: Note = lambda told: None
    ) -> Conditioning:
        """Words -> what the denoiser is told: a row a prompt, the negative one first when the request is guided.

        note: is told what was computed again in float32.
        """
        manifest, prompts = self.bundle.manifest, prompts_of(request, self.bundle.manifest)
        stage = functools.partial(self.stage, arrangement=arrangement)
        readings = []
        for role, encoded in self._chunked(request).items():

            def reading(text_encoder: Session, encoded: list[EncodedPrompt] = encoded) -> Read:
                return finite_reading(read(text_encoder.run, encoded))

            options = self.options(role, request, arrangement=arrangement)
            readings.append(again_in_float(stage, role, options, reading, note))
        return condition(readings, prompts, request, manifest)

    def decode(
        self,
        latents: Latents,
        way: Way = AS_ARRANGED,
        *,
        exactness: str | None = None,
        arrangement: Arrangement = TOGETHER,
        note: Note = lambda told: None,
    ) -> Pixels:
        """Latents, as the sampler left them -> (pictures, height, width, 3) of 0..255; in tiles or strips if given.

        exactness: None is the model's own. note: is told what was computed again in float32.
        """
        manifest, arrangement = self.bundle.manifest, way.arrange(arrangement)
        exactness = manifest.default_request.exactness if exactness is None else exactness

        def decoded(vae_decoder: Session) -> Pixels:
            return decode_latents(
                lambda latent_sample: vae_decoder.run({"latent_sample": latent_sample})["sample"],
                latents,
                scaling_factor=manifest.scaling_factor,
                shift_factor=manifest.shift_factor,
                tiling=way.tiling,
            )

        stage = functools.partial(self.stage, arrangement=arrangement)
        options = self._decoder_options(latents.shape[2:], way.tiling, exactness, arrangement)
        return again_in_float(stage, "vae_decoder", options, decoded, note)

    def encode_picture(
        self, picture: Image, *, exactness: str | None = None, note: Note = lambda told: None
    ) -> Latents:
        """A picture -> its latents, (1, channels, height, width), which `decode` turns into that picture again.

        They are the mean of what the VAE's encoder gives; its noise, which it would draw from, is left out. With a
        budget the encoder runs by the plan that `plan_encoding` tells.

        exactness: None is the model's own. note: is told what was computed again in float32.

        Raises RequestError for a size that the model can't make, MemoryBudgetError when nothing fits.
        """
        manifest = self.bundle.manifest
        request = self._of_picture(*picture.size, exactness)
        arrangement = TOGETHER
        if self.memory is not None:
            arrangement = self._planner.planned(request, self.memory, encoding_needs).arrangement
            self._close(role for role in tuple(self._sessions) if role != ENCODER)

        def encoded(vae_encoder: Session) -> Latents:
            return encode_pixels(
                lambda sample: finite(vae_encoder.run({"sample": sample})["latent_parameters"], "the VAE encoder"),
                of_image(picture),
                scaling_factor=manifest.scaling_factor,
                shift_factor=manifest.shift_factor,
            )

        stage = functools.partial(self.stage, arrangement=arrangement)
        return again_in_float(stage, ENCODER, self.options(ENCODER, request, arrangement=arrangement), encoded, note)

    @contextlib.contextmanager
    def stage(self, role: str, options: BuildOptions, arrangement: Arrangement = TOGETHER) -> Iterator[Session]:
        """`session`, for one use of it."""
        try:
            yield self.session(role, options, arrangement)
        except ProviderError:
            self.close()  # a device that was lost is opened anew once nothing holds it
            raise

    def session(self, role: str, options: BuildOptions, arrangement: Arrangement = TOGETHER) -> Session:
        """The session of one role, opened when it is first needed and kept while requests are of the same shape.

        It stays open until another one takes its place, or its room where the arrangement keeps one graph at a time.
        """
        known = self._sessions.get(role)
        if known is not None and known[0] == options:
            return known[1]
        started = time.perf_counter()
        # Close before the next one opens: both at once would cost the memory of both.
        self._close(name for name in tuple(self._sessions) if name == role or not arrangement.keep)
        session = self.open(role, options, arrangement.device_limits.get(role))
        self._sessions[role] = (options, session)
        self.load_seconds += time.perf_counter() - started
        return session

    @property
    def device_bytes(self) -> int:
        """What open graphs hold in a device's memory: weights, held inputs and outputs; 0 on the processor."""
        return sum(session.device_bytes for _, session in self._sessions.values())

    def device_bytes_taken(self) -> int:
        """What this process has of a device's memory beside its own, as the driver tells; else `device_bytes`."""
        from tintype.engine.device.device_memory import device_bytes

        told = device_bytes(self.target)
        return self.device_bytes if told is None else told

    def open(self, role: str, options: BuildOptions, device_bytes: int | None = None) -> Session:
        """A new session of one role; `session` keeps it and closes it. device_bytes: its limit on a device, if any."""
        from tintype.engine import open_role
        from tintype.engine.run.cuda import SMALLEST_LIMIT

        device_bytes = None if device_bytes is None else max(device_bytes, SMALLEST_LIMIT)
        return open_role(self.bundle, role, self.target, options=options, device_bytes=device_bytes)

    def build(self, request: ResolvedRequest) -> Iterator[tuple[str, Path]]:
        """Make the builds that a request needs, one after another, on the processor with each layer's kernels timed;
        yields each role and its folder. Requests from then on are drawn by them."""
        from tintype.engine import ensure_build

        for role in self.bundle.manifest.roles:
            options = replace(self.options(role, request), timed=self.target.is_host)
            yield role, ensure_build(self.bundle, role, self.target, options=options)
            self._settled.clear()

    def begin_builds(self, request: ResolvedRequest) -> None:
        """Begin the builds that a request lacks, beside one another; `session` waits for its own.

        A graph that is open for it has one.
        """
        import psutil

        from tintype.engine import begin_builds

        wanted = [(role, self.options(role, request)) for role in self.bundle.manifest.roles]
        wanted = [each for each in wanted if self._sessions.get(each[0], (None,))[0] != each[1]]
        begin_builds(self.bundle, wanted, self.target, free_bytes=psutil.virtual_memory().available)

    def circumstances(
        self,
        request: ResolvedRequest,
        picture: int = 0,
        tiling: Tiling | None = None,
        arrangement: Arrangement = TOGETHER,
    ) -> Circumstances:
        """What decides the bytes of a request's picture besides the request; builds are made where they are missing."""
        from tintype.engine import build_id, ensure_build, is_timed

        batch = next(len(batch) for batch in request.batches if picture in batch)
        builds, kernels = {}, {}
        for role in self.bundle.manifest.roles:
            options = self.options(role, request, batch, tiling, arrangement)
            known = self._builds.get((role, options))
            if known is None:
                folder = ensure_build(self.bundle, role, self.target, options=options)
                known = self._builds.put((role, options), (build_id(folder), is_timed(folder)))
            builds[role] = known[0]
            if self.target.is_host:
                kernels[role] = TIMED if known[1] else BY_PRIORS
        return self._circumstances(builds, arrangement, kernels)

    def options(
        self,
        role: str,
        request: ResolvedRequest,
        pictures: int | None = None,
        tiling: Tiling | None = None,
        arrangement: Arrangement = TOGETHER,
    ) -> BuildOptions:
        """The build that a request needs of a role; pictures are those denoised together, tiling is the decoder's."""

        manifest = self.bundle.manifest
        height, width = (side // manifest.vae_scale_factor for side in (request.height, request.width))
        if role == "vae_decoder":
            return self._decoder_options((height, width), tiling, request.exactness, arrangement)
        dims = {"batch": 1}
        if role == ENCODER:
            dims |= {"height": request.height, "width": request.width}
        if role == "denoiser":
            prompts = 2 if is_guided(request, manifest) and not arrangement.split_guidance else 1
            dims = {"batch": (pictures or len(request.batches[0])) * prompts, "height": height, "width": width}
            dims["sequence"] = self._tokens(request)
        return self._options(role, dims, request.exactness, arrangement)

    def _decoder_options(
        self, cells: tuple[int, ...], tiling: Tiling | None, exactness: str, arrangement: Arrangement
    ) -> BuildOptions:
        """The decoder's build for latents of (height, width) cells, or for their tiles, which are all of one shape."""

        height, width = cells if tiling is None else (min(side, tiling.tile) for side in cells)
        dims = {"batch": 1, "height": height, "width": width}
        return self._options("vae_decoder", dims, exactness, arrangement)

    def _options(self, role: str, dims: dict[str, int], exactness: str, arrangement: Arrangement) -> BuildOptions:
        """A build for numbers of a graph's dims. A pipeline keeps to the builds that it began with, so that a timed one
        made meanwhile changes no picture of a series."""
        from tintype.engine import BuildOptions, with_kernels_settled

        held, timed = arrangement.holding(role).options(), arrangement.timed.get(role)
        options = BuildOptions.for_shape(dims, exactness=exactness, threads=self.threads, timed=timed, **held)
        return self._settled.get((role, options)) or self._settled.put(
            (role, options), with_kernels_settled(self.bundle, role, self.target, options=options)
        )

    def schedule(self, request: ResolvedRequest) -> sampling.Schedule:
        """The noise levels that a request's pictures go through. Raises RequestError where its sampler can't do so."""
        return sampling.make_schedule(
            self.scheduler, request.sampler, request.num_inference_steps, request.sigmas, eta=request.eta
        )

    def chunks(self, request: ResolvedRequest) -> int:
        """How many chunks of tokens the longest prompt of a request has."""
        return len(next(iter(self._chunked(request).values()))[0].input_ids)

    def open_tokenizers(self) -> None:
        """Open what reads prompts, so that the first request doesn't."""
        for facts in self.bundle.manifest.text_encoders.values():
            self._open_tokenizer(facts)

    def _tokens(self, request: ResolvedRequest) -> int:
        """How many tokens the embeddings of a request have: those of its longest prompt, in whole chunks."""
        return int(next(iter(self._chunked(request).values()))[0].input_ids.size)

    def _chunked(self, request: ResolvedRequest) -> dict[str, list[EncodedPrompt]]:
        """By text encoder the token ids of a request's prompts."""
        manifest = self.bundle.manifest
        tokenizers = {role: self._open_tokenizer(facts) for role, facts in manifest.text_encoders.items()}
        return chunked(tokenizers, prompts_of(request, manifest))

    def _circumstances(
        self, builds: Mapping[str, str], arrangement: Arrangement = TOGETHER, kernels: Mapping[str, str] | None = None
    ) -> Circumstances:
        from tintype.engine import ort_version

        return Circumstances(
            tintype=__version__,
            onnxruntime=ort_version(),
            bundle=self.bundle.name,
            bundle_hash=self.bundle.hash,
            precision=self.bundle.graph("denoiser").precision,
            target=self.target.name,
            builds=dict(builds),
            threads=self.threads,
            holdings={role: holding.words for role, holding in arrangement.holdings.items()},
            split_guidance=arrangement.split_guidance,
            kernels=kernels or {},
        )

    def close(self) -> None:
        """Close every graph. The pipeline may be used again; it then opens them again."""
        self._close(tuple(self._sessions))

    def make_room(self, request: ResolvedRequest, arrangement: Arrangement) -> None:
        """Close what is open and has no place in an arrangement."""
        wanted = {
            (role, self.options(role, request, len(batch), arrangement=arrangement))
            for role in self.bundle.manifest.roles
            for batch in request.batches
        }
        self._close(role for role, (options, _) in tuple(self._sessions.items()) if (role, options) not in wanted)

    def _close(self, roles: Iterable[str]) -> None:
        closed = [self._sessions.pop(role)[1] for role in roles]
        for session in closed:
            session.close()
        if closed:
            from tintype.engine.run import arena
            from tintype.engine.run.heap import return_large_blocks, trim

            del session, closed
            return_large_blocks()  # graphs come and go in this process: what one leaves must not add to the next
            arena.shrink()
            trim()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_tokenizer(self, facts: TokenizerFacts) -> PromptTokenizer:
        if facts.file not in self._tokenizers:
            self._tokenizers[facts.file] = PromptTokenizer.open(
                self.bundle.path(facts.file),
                max_length=facts.max_length,
                bos_token_id=facts.bos_token_id,
                eos_token_id=facts.eos_token_id,
                pad_token_id=facts.pad_token_id,
            )
        return self._tokenizers[facts.file]


class Run:
    """One request on its way: an iterator over its steps. `result` is there once the last step has been taken.

    `pictures` has those that are done, whatever comes of the others; `events` gives each when it is decoded.
    Stopping early, or Ctrl-C within a step, leaves the pipeline ready for the next request.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        request: ResolvedRequest,
        *,
        picture: int | None = None,
        ways: Sequence[Way] | None = None,
        arrangement: Arrangement | None = None,
    ) -> None:
        """picture: make only this one of the request's pictures, in the batch where it belongs.

        ways: to decode, tried in turn while memory runs out; None is all that the device has. arrangement: None is
        that of the plan.
        """
        self.request = request
        self.plan = pipeline.planned(request) if arrangement is None else None
        self._arrangement = arrangement or (self.plan.arrangement if self.plan is not None else TOGETHER)
        self.latents: Latents | None = None  # of the pictures that are denoised, also when decoding them failed
        self._pipeline = pipeline
        self._picture = picture
        self._ways = tuple(ways or ways_to_decode(self._arrangement))
        self._schedule = pipeline.schedule(request)
        self._pictures: list[Picture] = []
        self._result: Result | None = None
        self._notes: list[str] = []
        self._events = self._make()

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

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those that are decoded so far, in the order of their seeds; they stay when the run fails or is closed."""
        return tuple(self._pictures)

    @property
    def result(self) -> Result:
        """The pictures. Only there when every step has been taken."""
        if self._result is None:
            raise RuntimeError("the run has no result yet: iterate over it to its end first")
        return self._result

    def save_latents(self, path: str | os.PathLike[str]) -> Path:
        """Write `latents` with their records, for `Pipeline.resume` and `tintype generate --from-latents`."""
        if self.latents is None:
            raise RuntimeError("the run has no latents yet: iterate over it until the first picture is denoised")
        kept = [index for batch in self._batches() for index in batch][: len(self.latents)]
        records = [self._record(picture, AS_ARRANGED, self._notes) for picture in kept]
        return save_latents(path, self.latents, records)

    def _batches(self) -> list[range]:
        return [batch for batch in self.request.batches if self._picture is None or self._picture in batch]

    def _make(self) -> Generator[Step | Picture]:
        request = self.request
        self._clock = clock = StageClock(lambda: self._pipeline.load_seconds)
        batches = self._batches()
        if self._pipeline.memory is not None:
            self._pipeline.make_room(request, self._arrangement)
        elif self._arrangement is TOGETHER:
            self._pipeline.begin_builds(request)
        with clock.counting("encode"):
            conditioning = self._pipeline.encode(request, self._arrangement, self._note)  # 1. words -> embeddings
        of_words = tuple(self._notes)
        for number, batch in enumerate(batches):
            begun = len(self._notes)
            noise = sampling.noise_source(request.noise, request.seeds[batch.start : batch.stop])
            latents = self._initial_latents(noise, len(batch))  # 2. seeds -> noise
            for step in self._denoise(latents, conditioning, noise):  # 3. noise -> latents, one step at a time
                latents = step.latents
                yield self._event(step, number, batches)
            self._keep(latents)
            notes = (*of_words, *self._notes[begun:])
            for row, picture in enumerate(batch):
                if self._picture in (None, picture):
                    self._pictures.append(self._finish(picture, latents[row : row + 1], notes))  # 4. latents -> pixels
                    timings = clock.timings()  # without what the caller does with it
                    yield self._pictures[-1]
        from tintype.engine.run.heap import trim

        self._result = self._collect(timings)
        trim()  # what a picture needed for a moment goes back, so that the hundredth takes no more than the first

    def _initial_latents(self, noise: sampling.NoiseSource, pictures: int) -> Latents:
        manifest = self._pipeline.bundle.manifest
        height, width = (side // manifest.vae_scale_factor for side in (self.request.height, self.request.width))
        drawn = noise.draw((pictures, manifest.latent_channels, height, width))
        return drawn * np.float32(self._schedule.initial_scale)

    def _denoise(
        self, latents: Latents, conditioning: Conditioning, noise: sampling.NoiseSource
    ) -> Iterator[sampling.Step]:
        request, pipeline, pictures = self.request, self._pipeline, len(latents)
        options = pipeline.options("denoiser", request, pictures, arrangement=self._arrangement)
        done = 0

        def opened(options: BuildOptions) -> Callable[[], Session]:
            return lambda: pipeline.session("denoiser", options, self._arrangement)

        def in_float() -> Callable[[], Session] | None:
            exact = float_options(options)
            if exact is None:
                return None
            self._note(f"denoiser was run again in float32 from step {done + 1} on: it had given NaN or infinity")
            return opened(exact)

        denoise = Denoiser(
            opened(options),
            pipeline.bundle.graph("denoiser"),
            conditioning,
            request,
            pipeline.bundle.manifest.prediction_type,
            pictures,
            split_guidance=self._arrangement.split_guidance,
            in_float=in_float,
        )
        steps = sampling.SAMPLERS[request.sampler](denoise, latents, self._schedule, noise)
        while True:
            in_graph = denoise.graph_seconds
            with self._clock.counting("denoise"):
                try:
                    step = next(steps, None)
                except ProviderError:
                    pipeline.close()  # a device that was lost is opened anew once nothing holds it
                    raise
            self._clock.graph_seconds += denoise.graph_seconds - in_graph
            if step is None:
                self._look_at_device()
                return
            self._clock.steps += 1
            done = step.index + 1
            finite(step.latents, f"the denoiser, in step {step.index + 1} of {step.total},")
            yield step

    def _event(self, step: sampling.Step, number: int, batches: list[range]) -> Step:
        def decode(latents: Latents) -> list[Image]:
            return [to_image(picture) for picture in self._decoded(latents, self._ways[0])]

        return Step(
            index=number * step.total + step.index,
            total=len(batches) * step.total,
            sigma=step.sigma,
            latents=step.latents,
            denoised=step.denoised,
            pictures=batches[number],
            decode=decode,
        )

    def _keep(self, latents: Latents) -> None:
        finished = self._schedule.to_model_space(latents)
        self.latents = finished if self.latents is None else np.concatenate([self.latents, finished])

    def _finish(self, picture: int, latents: Latents, notes: tuple[str, ...]) -> Picture:
        """Decode one picture. notes: what its record says of how its latents were made."""
        begun = len(self._notes)
        with self._clock.counting("decode"):
            pixels, way = self._decode(latents)
        return Picture(picture, to_image(pixels[0]), self._record(picture, way, (*notes, *self._notes[begun:])))

    def _decode(self, latents: Latents) -> tuple[Pixels, Way]:
        finished = self._schedule.to_model_space(latents)
        try:
            pixels, way = decode_somehow(self._decoded, finished, self._ways, self._pipeline.close)
        except TintypeError:
            self._pipeline.close()  # so that there is room to keep the latents
            raise
        self._ways = self._ways[self._ways.index(way) :]  # what failed once isn't tried again
        self._look_at_device()
        return pixels, way

    def _look_at_device(self) -> None:
        """Note what a device's memory holds. Arenas there give nothing back between runs, so that it is the most."""
        self._clock.device_bytes = max(self._clock.device_bytes, self._pipeline.device_bytes_taken())

    def _decoded(self, latents: Latents, way: Way) -> Pixels:
        return self._pipeline.decode(
            latents, way, exactness=self.request.exactness, arrangement=self._arrangement, note=self._note
        )

    def _record(self, picture: int, way: Way, notes: Iterable[str]) -> Record:
        arrangement = way.arrange(self._arrangement)
        made_with = self._pipeline.circumstances(self.request, picture, way.tiling, arrangement)
        memory = None
        if self.plan is not None and self.plan.budget_bytes is not None:
            memory = MemoryFacts(
                budget_bytes=self.plan.budget_bytes,
                planned_peak_bytes=self.plan.most_bytes,
                peak_rss_bytes=peak_rss_bytes(),
                device_bytes=self._clock.device_bytes,
            )
        return Record(
            request=self.request,
            picture=picture,
            made_with=made_with,
            tiling=way.tiling,
            memory=memory,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _note(self, told: str) -> None:
        self._notes.append(told)

    def _collect(self, timings: Timings) -> Result:
        assert self.latents is not None  # every batch left its own
        denoised = [index for batch in self._batches() for index in batch]
        return Result(
            images=tuple(picture.image for picture in self._pictures),
            records=tuple(picture.record for picture in self._pictures),
            latents=self.latents[[denoised.index(picture.index) for picture in self._pictures]],
            timings=timings,
            plan=self.plan,
        )


def take_all(events: Generator[Any, None, Result]) -> Result:
    """Run a generator of events to its end; what it returns."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _asked(record: Record) -> Request:
    """The request of a record, as somebody would ask for it again."""
    return Request(**{name: getattr(record.request, name) for name in Request.__dataclass_fields__})


def _scheduler_config(bundle: Bundle) -> sampling.SchedulerConfig:
    file = bundle.manifest.scheduler
    try:
        return sampling.SchedulerConfig.from_json(strict_json.parse(bundle.path(file).read_bytes()))
    except TintypeError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{file} is not a scheduler's config: {error}", fix="export the checkpoint again") from None
