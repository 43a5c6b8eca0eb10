"""The words of a picture that was just drawn need no graph again."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import PROMPT

import tintype
from tintype.graphs.resident import Graphs

ASKED = {"seed": 7, "num_inference_steps": 2, "width": 64, "height": 64, "sampler": "euler"}


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """The roles of the graphs that were called so far, in their order."""
    seen, session_of = list[str](), Graphs.session

    def noted(self, use, *more):
        seen.append(use.ref.role)
        return session_of(self, use, *more)

    monkeypatch.setattr(Graphs, "session", noted)
    return seen


def test_the_same_words_again_need_no_graph(tiny_bundle, called):
    with tintype.load(tiny_bundle, provider="cpu") as pipeline:
        first = pipeline.generate(PROMPT, **ASKED)
        assert set(called) == {"text_encoder", "denoiser", "vae_decoder"}
        called.clear()
        again = pipeline.generate(PROMPT, **ASKED)
        assert called == ["denoiser", "denoiser", "vae_decoder"]
        np.testing.assert_array_equal(np.asarray(again.image), np.asarray(first.image))
        assert again.records[0].made_with == first.records[0].made_with


def test_other_words_or_another_exactness_are_read_anew(tiny_bundle, called):
    requests = [{"prompt": PROMPT}, {"prompt": "a blue tent"}, {"prompt": PROMPT, "exactness": "exact"}]
    together = []
    with tintype.load(tiny_bundle, provider="cpu") as pipeline:
        for request in requests:
            called.clear()
            together.append(np.asarray(pipeline.generate(**request, **ASKED).image))
            assert called[0] == "text_encoder"
    for request, picture in zip(requests, together, strict=True):
        with tintype.load(tiny_bundle, provider="cpu") as fresh:
            np.testing.assert_array_equal(picture, np.asarray(fresh.generate(**request, **ASKED).image))
    assert together[0].tobytes() != together[1].tobytes()


def test_what_is_kept_has_an_end(tiny_bundle, called):
    with tintype.load(tiny_bundle, provider="cpu") as pipeline:
        for words in ("one", "two", "three", "four", "five", "one"):
            called.clear()
            pipeline.generate(words, **ASKED)
            assert called[0] == "text_encoder"
        called.clear()
        pipeline.generate("five", **ASKED)
        assert "text_encoder" not in called
        pipeline.close()
        pipeline.generate("five", **ASKED)
        assert "text_encoder" in called
