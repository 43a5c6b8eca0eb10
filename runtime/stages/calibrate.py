"""What ordinary prompts score with a bundle, drawn one way: latents are made, and no picture is decoded.

Scores are kept as they come, so that a calibration that was broken off goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Unpack

from tintype.bounds import MAX_CALIBRATION_PROMPTS
from tintype.errors import RequestError
from tintype.files import output_error
from tintype.request import RequestFields, ResolvedRequest, make_request
from tintype.sampling import Unguided
from tintype.stages.denoise import denoise
from tintype.stages.encode import encode
from tintype.stages.start import start
from tintype.stages.studio import Studio
from tintype.trust.ordinary import ordinary_prompts
from tintype.trust.thresholds import (
    WAY,
    Calibration,
    digest_of,
    own_place,
    read_calibrations,
    why_unlike_ordinary,
    write_calibrations,
)

MIN_PROMPTS = 100  # of fewer the 99th percentile is no more than the highest


def calibrate(
    pipeline: Studio,
    prompts: Sequence[str] | None = None,
    *,
    anew: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **fields: Unpack[RequestFields],
) -> Calibration:
    """Draw ordinary prompts, and keep the score that one in a hundred is above: pictures that are drawn alike are from
    then on judged by it (`Record.memorisation`).

    pipeline: as `tintype.load` gives it. prompts: 100 or more; None are those that come with Tintype. fields: of
    `Request`, how the pictures to come are drawn; what isn't given is the bundle's default. anew: also where scores are
    there already, which are otherwise gone on from. on_progress: is told how many prompts are done, and of how many.

    Raises RequestError for what can't be judged, OutputError where the cache can't be written, and what drawing raises.
    """
    prompts = ordinary_prompts(pipeline.bundle) if prompts is None else list(prompts)
    if not MIN_PROMPTS <= len(prompts) <= MAX_CALIBRATION_PROMPTS:
        raise RequestError(
            f"{len(prompts):,} prompts are no measure", fix=f"give {MIN_PROMPTS} to {MAX_CALIBRATION_PROMPTS:,} of them"
        )
    requests = [_request(pipeline, prompt, seed, fields) for seed, prompt in enumerate(prompts)]
    digest, place = digest_of(prompts), own_place(pipeline.bundle)
    known = read_calibrations(place, pipeline.bundle).calibrations
    begun = None if anew else next((each for each in known if each.is_of(requests[0], digest)), None)
    way = {name: getattr(requests[0], name) for name in WAY}
    found = begun or Calibration(**way, prompts=len(prompts), prompts_sha256=digest, scores=())
    try:
        for request in requests[len(found.scores) :]:
            on_progress(len(found.scores), found.prompts)
            found = replace(found, scores=(*found.scores, _score(pipeline, request)))
            _keep(found, pipeline)
    except BaseException as error:
        if found.scores:
            error.add_note(f"{len(found.scores)} of {found.prompts} prompts are done and kept: the same call goes on")
        raise
    on_progress(found.prompts, found.prompts)
    return found


def _request(pipeline: Studio, prompt: str, seed: int, fields: RequestFields) -> ResolvedRequest:
    """Raises RequestError for one whose score would be another quantity, or that has none."""
    request = pipeline.resolve(replace(make_request(prompt, fields), seed=seed))
    reason = why_unlike_ordinary(request)
    if request.count != 1 or request.hires is not None or pipeline.bundle.manifest.needs_picture:
        reason = reason or "a calibration draws one picture a prompt, of words alone, in one size"
    if reason is None and isinstance(pipeline.model.read(request).guidance, Unguided):
        reason = "it is drawn without guidance, and then there is no unconditional prediction to compare with"
    if reason is not None:
        raise RequestError(
            f"the prompt {prompt[:40]!r} can't be calibrated with so: {reason}",
            fix="calibrate with plain prompts and guidance, in the size that the pictures to come have",
        )
    return request


def _score(pipeline: Studio, request: ResolvedRequest) -> float:
    ctx = pipeline.context(request)
    ctx.prepare()
    conditioning = encode(ctx)
    (batch,) = ctx.batches
    noise = ctx.noise(batch)
    for _ in denoise(ctx, conditioning, batch, start(ctx, batch, noise), noise):
        pass
    score = ctx.norms[batch].score(0)
    assert score is not None  # it is guided
    return score


def _keep(found: Calibration, pipeline: Studio) -> None:
    """Beside what else is kept by now. Raises OutputError."""
    place = own_place(pipeline.bundle)
    try:
        write_calibrations(place, read_calibrations(place, pipeline.bundle).with_one(found))
    except OSError as error:
        raise output_error(place, error) from None
