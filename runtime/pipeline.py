"""READ FIRST: a request becomes a picture, in four steps.

    1. encode    words -> embeddings        the text encoder
    2. noise     seed -> latents            the host, the same on every device
    3. denoise   noise -> latents           the denoiser, once a step; a sampler decides how
    4. decode    latents -> pixels          the VAE's decoder

`Run` is those four steps for one request. It yields after every denoising step, so that its caller owns progress,
preview and cancellation. A request is checked as a whole before anything is opened. Graphs are opened when their
stage begins and stay open for the next request; `Pipeline.close` gives everything back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from tintype import sampling, strict_json
from tintype._version import __version__
from tintype.bundle import Bundle, open_bundle
from tintype.clock import StageClock
from tintype.denoiser import Denoiser
from tintype.errors import BundleError, MemoryBudgetError, NumericError, RecordError, RequestError, TintypeError
from tintype.image.decode import Latents, Pixels, decode_latents, to_image
from tintype.prompt import EncodedPrompt, PromptTokenizer, encode_prompt, pad_chunks, weigh
from tintype.record import Circumstances, Record, differences
from tintype.request import Request, RequestFields, ResolvedRequest, make_request, resolve
from tintype.result import Result, Step

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.engine import BuildOptions, Session, Target

Embeddings = NDArray[np.float32]  # (prompts, tokens, dim): without guidance one prompt, else the negative one first

ROLES = ("text_encoder", "denoiser", "vae_decoder")


def load(
    name_or_path: str | os.PathLike[str] = "postcard",
    *,
    provider: str = "auto",
    memory: str | int | None = None,
    threads: int | None = None,
) -> Pipeline:
    """Open a bundle, by its embedded name or its folder, on a device.

    provider: auto, cpu, cuda, directml or webgpu; a named one is used or it is an error.
    threads: for the processor; None is one a physical core.

    Raises BundleError, InstallError or ProviderError. Graphs are opened by the first request.
    """
    from tintype.engine import resolve_provider

    if memory is not None:
        raise MemoryBudgetError("this version keeps no memory budget", fix="leave memory out")
    return Pipeline(open_bundle(name_or_path), resolve_provider(provider), threads=threads)


class Pipeline:
    """A bundle on a device. Use it as a context manager, or `close` it; not from two threads at once."""

    def __init__(self, bundle: Bundle, target: Target, *, threads: int | None = None) -> None:
        from tintype.engine import default_threads

        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise RequestError(f"threads is {threads!r}", fix="give 1 or more, or leave it out for one a physical core")
        for role in ROLES:
            bundle.graph(role)
        self.bundle = bundle
        self.target = target
        self.threads = default_threads() if threads is None else threads
        self.scheduler = _scheduler_config(bundle)
        self.load_seconds = 0.0  # spent opening graphs, over the pipeline's life
        self._tokenizer: PromptTokenizer | None = None
        self._sessions: dict[str, tuple[BuildOptions, Session]] = {}
        self._builds: dict[tuple[str, BuildOptions], str] = {}

    def generate(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> Result:
        """Make the pictures of a request: a prompt with the fields of `Request` by name, or a Request.

        Raises RequestError for what can't be done as asked, NumericError when the model breaks down.
        """
        run = self.steps(prompt, **fields)
        for _ in run:
            pass
        return run.result

    def steps(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> Run:
        """The same, step by step: iterate over what comes back, then take its `result`. Stop whenever you like."""
        return Run(self, resolve(make_request(prompt, fields), self.bundle.manifest))

    def reproduce(self, record: Record, *, anyway: bool = False) -> Result:
        """The picture of a record again, byte for byte.

        Raises RecordError, naming each reason, when this bundle, device or version can't promise the same bytes;
        `anyway` tries all the same.
        """
        run = self.reproduce_steps(record, anyway=anyway)
        for _ in run:
            pass
        return run.result

    def reproduce_steps(self, record: Record, *, anyway: bool = False) -> Run:
        """`reproduce`, step by step."""
        request = resolve(_asked(record), self.bundle.manifest)
        # Builds last: one that isn't there yet has to be made before it can be compared.
        reasons = differences(record, self._circumstances(record.made_with.builds))
        if not reasons:
            reasons = differences(record, self.circumstances(request, record.picture))
        if reasons and not anyway:
            raise RecordError(
                f"the same picture can't be promised: {'; '.join(reasons)}",
                fix="use what made it, or let it try anyway; the picture may then differ",
            )
        return Run(self, request, picture=record.picture)

    def encode(self, request: ResolvedRequest) -> Embeddings:
        """Words -> embeddings, (1 or 2, tokens, dim): the negative prompt first when the request is guided."""
        with self.stage("text_encoder", self._options("text_encoder", request)) as text_encoder:
            embeddings = []
            for padded in self._encoded(request):
                chunks = [_last_hidden_state(text_encoder, row[np.newaxis]) for row in padded.input_ids]
                weighed = weigh(np.concatenate(chunks), padded.weights)
                embeddings.append(weighed.reshape(1, -1, weighed.shape[-1]))
        return _finite(np.concatenate(embeddings), "the text encoder")

    def decode(self, latents: Latents, request: ResolvedRequest) -> Pixels:
        """Latents, as the sampler left them -> (pictures, height, width, 3) of 0..255."""
        manifest = self.bundle.manifest
        with self.stage("vae_decoder", self._options("vae_decoder", request)) as vae_decoder:
            return decode_latents(
                lambda latent_sample: vae_decoder.run({"latent_sample": latent_sample})["sample"],
                latents,
                scaling_factor=manifest.scaling_factor,
                shift_factor=manifest.shift_factor,
            )

    @contextlib.contextmanager
    def stage(self, role: str, options: BuildOptions) -> Iterator[Session]:
        """The session of one role, opened when it is first needed and kept while requests are of the same shape."""
        known = self._sessions.get(role)
        if known is None or known[0] != options:
            from tintype.engine import open_role

            started = time.perf_counter()
            if known is not None:  # close before the next one opens: both at once would cost twice the memory
                del self._sessions[role]
                known[1].close()
            known = (options, open_role(self.bundle, role, self.target, options=options))
            self._sessions[role] = known
            self.load_seconds += time.perf_counter() - started
        yield known[1]

    def build(self, request: ResolvedRequest) -> Iterator[tuple[str, Path]]:
        """Make the builds that a request needs, one after another; yields each role and its folder."""
        from tintype.engine import ensure_build

        for role in ROLES:
            yield role, ensure_build(self.bundle, role, self.target, options=self._options(role, request))

    def circumstances(self, request: ResolvedRequest, picture: int = 0) -> Circumstances:
        """What decides the bytes of a request's picture besides the request; builds are made where they are missing."""
        from tintype.engine import build_id, ensure_build

        batch = next(len(batch) for batch in request.batches if picture in batch)
        builds = {}
        for role in ROLES:
            options = self._options(role, request, batch)
            if (role, options) not in self._builds:
                folder = ensure_build(self.bundle, role, self.target, options=options)
                self._builds[role, options] = build_id(folder)
            builds[role] = self._builds[role, options]
        return self._circumstances(builds)

    def _options(self, role: str, request: ResolvedRequest, pictures: int | None = None) -> BuildOptions:
        """The build that a request needs of a role; pictures are those denoised together."""
        from tintype.engine import BuildOptions

        factor = self.bundle.manifest.vae_scale_factor
        dims = {"batch": 1}
        if role != "text_encoder":
            dims |= {"height": request.height // factor, "width": request.width // factor}
        if role == "denoiser":
            dims["batch"] = (pictures or len(request.batches[0])) * (2 if request.is_guided else 1)
            dims["sequence"] = self._tokens(request)
        return BuildOptions.for_shape(dims, exactness=request.exactness, threads=self.threads)

    def _tokens(self, request: ResolvedRequest) -> int:
        """How many tokens the embeddings of a request have: those of its longest prompt, in whole chunks."""
        return sum(len(row) for row in self._encoded(request)[0].input_ids)

    def _encoded(self, request: ResolvedRequest) -> list[EncodedPrompt]:
        """The prompts of a request as token ids, the negative one first when it is guided, all of one length."""
        tokenizer = self._open_tokenizer()
        prompts = [request.negative_prompt, request.prompt] if request.is_guided else [request.prompt]
        encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        longest = max(len(prompt.input_ids) for prompt in encoded)
        return [pad_chunks(tokenizer, prompt, longest) for prompt in encoded]

    def _circumstances(self, builds: Mapping[str, str]) -> Circumstances:
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
        )

    def close(self) -> None:
        """Close every graph. The pipeline may be used again; it then opens them again."""
        while self._sessions:
            self._sessions.popitem()[1][1].close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_tokenizer(self) -> PromptTokenizer:
        if self._tokenizer is None:
            facts = self.bundle.manifest.tokenizer
            self._tokenizer = PromptTokenizer.open(
                self.bundle.path(facts.file),
                max_length=facts.max_length,
                bos_token_id=facts.bos_token_id,
                eos_token_id=facts.eos_token_id,
                pad_token_id=facts.pad_token_id,
            )
        return self._tokenizer


class Run:
    """One request on its way: an iterator over its steps. `result` is there once the last step has been taken.

    Stopping early, or Ctrl-C within a step, leaves the pipeline ready for the next request.
    """

    def __init__(self, pipeline: Pipeline, request: ResolvedRequest, *, picture: int | None = None) -> None:
        """picture: make only this one of the request's pictures, in the batch where it belongs."""
        self.request = request
        self.latents: Latents | None = None  # of the pictures that are denoised, also when decoding them failed
        self._pipeline = pipeline
        self._picture = picture
        self._schedule = sampling.make_schedule(
            pipeline.scheduler, request.sampler, request.num_inference_steps, request.sigmas, eta=request.eta
        )
        self._result: Result | None = None
        self._events = self._make()

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Step:
        return next(self._events)

    def close(self) -> None:
        """Stop here; the request has then no result."""
        self._events.close()

    @property
    def result(self) -> Result:
        """The pictures. Only there when every step has been taken."""
        if self._result is None:
            raise RuntimeError("the run has no result yet: iterate over it to its end first")
        return self._result

    def _make(self) -> Generator[Step]:
        request = self.request
        self._clock = clock = StageClock(lambda: self._pipeline.load_seconds)
        batches = [batch for batch in request.batches if self._picture is None or self._picture in batch]
        finished: list[tuple[range, Pixels]] = []
        with clock.counting("encode"):
            embeddings = self._pipeline.encode(request)  # 1. words -> embeddings
        for number, batch in enumerate(batches):
            noise = sampling.noise_source(request.noise, request.seeds[batch.start : batch.stop])
            latents = self._initial_latents(noise, len(batch))  # 2. seeds -> noise
            for step in self._denoise(latents, embeddings, noise):  # 3. noise -> latents, one step at a time
                latents = step.latents
                yield self._event(step, number, batches)
            self._keep(latents)
            with clock.counting("decode"):
                finished.append((batch, self._decode(latents)))  # 4. latents -> pixels
        self._result = self._collect(finished)

    def _initial_latents(self, noise: sampling.NoiseSource, pictures: int) -> Latents:
        manifest = self._pipeline.bundle.manifest
        height, width = (side // manifest.vae_scale_factor for side in (self.request.height, self.request.width))
        drawn = noise.draw((pictures, manifest.latent_channels, height, width))
        return drawn * np.float32(self._schedule.initial_scale)

    def _denoise(
        self, latents: Latents, embeddings: Embeddings, noise: sampling.NoiseSource
    ) -> Iterator[sampling.Step]:
        request, manifest = self.request, self._pipeline.bundle.manifest
        pictures = len(latents)
        with self._pipeline.stage("denoiser", self._pipeline._options("denoiser", request, pictures)) as session:
            graph = self._pipeline.bundle.graph("denoiser")
            denoise = Denoiser(session, graph, embeddings, request, manifest.prediction_type, pictures)
            sampler = sampling.SAMPLERS[request.sampler]
            steps = sampler(denoise, latents, self._schedule, noise)
            while True:
                with self._clock.counting("denoise"):
                    step = next(steps, None)
                if step is None:
                    return
                self._clock.steps += 1
                _finite(step.latents, f"the denoiser, in step {step.index + 1} of {step.total},")
                yield step

    def _event(self, step: sampling.Step, number: int, batches: list[range]) -> Step:
        def decode(latents: Latents) -> list[Image]:
            return [to_image(pixels) for pixels in self._pipeline.decode(latents, self.request)]

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

    def _decode(self, latents: Latents) -> Pixels:
        return self._pipeline.decode(self._schedule.to_model_space(latents), self.request)

    def _collect(self, finished: list[tuple[range, Pixels]]) -> Result:
        assert self.latents is not None  # every batch left its own
        places = [index for batch, _ in finished for index in batch]
        pixels = np.concatenate([pixels for _, pixels in finished])
        wanted = [row for row, index in enumerate(places) if self._picture in (None, index)]
        return Result(
            images=tuple(to_image(pixels[row]) for row in wanted),
            records=tuple(self._record(places[row]) for row in wanted),
            latents=self.latents[wanted],
            timings=self._clock.timings(),
        )

    def _record(self, picture: int) -> Record:
        made_with = self._pipeline.circumstances(self.request, picture)
        return Record(request=self.request, picture=picture, made_with=made_with)


def _asked(record: Record) -> Request:
    """The request of a record, as somebody would ask for it again."""
    return Request(**{name: getattr(record.request, name) for name in Request.__dataclass_fields__})


def _last_hidden_state(text_encoder: Session, input_ids: NDArray[np.int64]) -> Embeddings:
    return text_encoder.run({"input_ids": input_ids})["last_hidden_state"].astype(np.float32, copy=False)


def _finite(array: NDArray[Any], whose: str) -> NDArray[Any]:
    if not np.isfinite(array).all():
        raise NumericError(
            f"{whose} gave NaN or infinity",
            fix="try guidance nearer to 7 or another sampler; if it stays so, export the checkpoint again in fp32",
        )
    return array


def _scheduler_config(bundle: Bundle) -> sampling.SchedulerConfig:
    file = bundle.manifest.scheduler
    try:
        return sampling.SchedulerConfig.from_json(strict_json.parse(bundle.path(file).read_bytes()))
    except TintypeError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{file} is not a scheduler's config: {error}", fix="export the checkpoint again") from None
