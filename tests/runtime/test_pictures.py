"""Each picture is given out when it is decoded, whatever becomes of the next one."""

from __future__ import annotations

import numpy as np
import pytest

from tintype import Picture, Step, read_latents
from tintype.engine import Session
from tintype.errors import BuildError
from tintype.stages.denoise import Denoiser

ASKED = {"seed": 1, "num_inference_steps": 2, "sampler": "euler"}


@pytest.fixture
def fail_decode(monkeypatch: pytest.MonkeyPatch):
    """The decode with that number, from 0, fails, and those after it."""

    def fail(number: int) -> None:
        run, done = Session.run, 0

        def limited(self: Session, inputs):
            nonlocal done
            if "latent_sample" in inputs:
                done += 1
                if done > number:
                    raise BuildError("the decoder failed", fix="mend it")
            return run(self, inputs)

        monkeypatch.setattr(Session, "run", limited)

    return fail


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_picture_comes_before_the_next_batch_is_begun(pipeline, batch_size):
    run = pipeline.steps("a house", count=3, batch_size=batch_size, **ASKED)
    order = [event.pictures if isinstance(event, Step) else event.index for event in run.events()]
    batches = run.request.batches
    assert order == [each for batch in batches for each in (batch, batch, *batch)]


def test_events_are_the_steps_and_the_result_that_iterating_gives(pipeline):
    plain = pipeline.steps("a house", count=2, **ASKED)
    steps = list(plain)
    run = pipeline.steps("a house", count=2, **ASKED)
    events = list(run.events())
    assert [step.index for step in steps] == [event.index for event in events if isinstance(event, Step)]
    pictures = [event for event in events if isinstance(event, Picture)]
    assert [picture.image.tobytes() for picture in pictures] == [image.tobytes() for image in plain.result.images]
    assert tuple(picture.record for picture in pictures) == run.result.records == plain.result.records
    assert run.pictures == tuple(pictures)
    assert run.result is run.result


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pictures_that_are_done_stay_when_a_later_decode_fails(pipeline, fail_decode, batch_size, tmp_path):
    expected = pipeline.generate("a house", count=3, batch_size=batch_size, **ASKED)
    fail_decode(1)
    run = pipeline.steps("a house", count=3, batch_size=batch_size, **ASKED)
    with pytest.raises(BuildError):
        list(run)
    (picture,) = run.pictures
    assert (picture.index, picture.record) == (0, expected.records[0])
    assert picture.image.tobytes() == expected.images[0].tobytes()
    picture.save(tmp_path / "x.png")
    expected.save(tmp_path / "y.png")
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y-1.png").read_bytes()
    assert run.latents is not None
    assert len(run.latents) == (2 if batch_size == 1 else 3)


def test_pictures_that_are_done_stay_when_a_later_step_is_interrupted(pipeline, monkeypatch):
    run = pipeline.steps("a house", count=3, **ASKED)
    for _ in range(ASKED["num_inference_steps"]):
        next(run)
    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "__call__", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(run)
    assert [picture.index for picture in run.pictures] == [0]
    with pytest.raises(RuntimeError, match="no result"):
        _ = run.result


def test_a_run_that_is_closed_between_two_pictures_keeps_the_first(pipeline):
    run = pipeline.steps("a house", count=2, batch_size=2, **ASKED)
    events = run.events()
    for event in events:
        if isinstance(event, Picture):
            break
    events.close()
    assert [picture.index for picture in run.pictures] == [0]
    assert list(run) == []


def test_saved_latents_give_each_picture_when_it_is_decoded(pipeline, fail_decode, tmp_path):
    run = pipeline.steps("a house", count=3, **ASKED)
    expected = [image.tobytes() for image in (list(run), run.result.images)[1]]
    saved = read_latents(run.save_latents(tmp_path / "x.latents.safetensors"))
    assert [image.tobytes() for image in pipeline.resume(saved).images] == expected
    fail_decode(2)
    pictures = pipeline.resume_pictures(saved)
    assert [next(pictures).image.tobytes() for _ in range(2)] == expected[:2]
    with pytest.raises(BuildError):
        next(pictures)


def test_a_picture_again_is_one_event_and_its_neighbours_are_not_decoded(pipeline, fail_decode):
    result = pipeline.generate("a house", count=3, batch_size=3, **ASKED)
    fail_decode(1)
    run = pipeline.reproduce_steps(result.records[1])
    pictures = [event for event in run.events() if isinstance(event, Picture)]
    assert [picture.index for picture in pictures] == [1]
    assert pictures[0].image.tobytes() == result.images[1].tobytes()
    assert run.result.records == (result.records[1],)
    np.testing.assert_array_equal(run.result.latents, result.latents[1:2])


def test_a_note_is_of_the_picture_that_it_happened_to(pipeline, monkeypatch):
    """The third of three pictures overflows when it is decoded."""
    run, decodes = Session.run, 0

    def decoding(self, inputs):
        nonlocal decodes
        outputs = run(self, inputs)
        if "latent_sample" in inputs:
            decodes += 1
            if decodes == 3:
                return {name: value * np.float32(np.nan) for name, value in outputs.items()}
        return outputs

    monkeypatch.setattr(Session, "run", decoding)
    result = pipeline.generate("a house", count=3, batch_size=3, exactness="balanced", **ASKED)
    assert [len(record.notes) for record in result.records] == [0, 0, 1]
    assert "vae_decoder was run again in float32" in result.records[2].notes[0]


def _interrupt(self, latents, sigma, timestep):
    raise KeyboardInterrupt
