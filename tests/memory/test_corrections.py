"""What measuring teaches about reckoning: kept by place and kind, and for kinds that nothing is known of."""

from __future__ import annotations

import pytest

from tintype.memory.corrections import Corrections
from tintype.memory.reckoning import Correction


def test_what_was_learned_is_read_again(tmp_path):
    known = Corrections.read(tmp_path / "costs" / "corrections.json")
    assert known.factor("denoiser exact 2", "packed") is None
    known.learn("denoiser exact 2", "packed", Correction(peak=1.2, seconds=0.8))
    known.learn("denoiser exact 2", "packed", Correction(peak=1.1, seconds=0.9))
    known.learn("denoiser exact 2 split", "packed", Correction(peak=1.3, seconds=1.4))
    again = Corrections.read(known.path)
    assert again.factor("denoiser exact 2", "packed") == Correction(peak=1.1, seconds=0.9)
    assert again.factor("denoiser exact 2 split", "packed") == Correction(peak=1.3, seconds=1.4)
    assert again.factor("vae_decoder exact 2", "packed") is None


def test_of_an_unknown_kind_it_is_taken_that_it_is_as_slow_as_the_others_there(tmp_path):
    known = Corrections(tmp_path / "corrections.json")
    for kind, seconds in (("packed", 1.0), ("segments", 1.6), ("mapped", 1.2)):
        known.learn("denoiser exact 2 split", kind, Correction(peak=2.0, seconds=seconds))
    assert known.factor("denoiser exact 2 split", "open segments") == Correction(peak=1.0, seconds=1.2)
    assert known.factor("denoiser exact 2", "open segments") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"factors": {"denoiser packed": {"peak": 1.0}}, "rate": 1}', '{"rate": 1}']
)
def test_a_file_that_is_none_of_these_is_no_obstacle(tmp_path, text):
    path = tmp_path / "corrections.json"
    path.write_text(text, encoding="utf-8")
    known = Corrections.read(path)
    assert known.factors == {}
    known.learn("denoiser exact 2", "packed", Correction(seconds=2.0))
    assert Corrections.read(path).factor("denoiser exact 2", "packed") == Correction(seconds=2.0)


def test_the_rate_is_measured_once(tmp_path):
    path = tmp_path / "corrections.json"
    rate = Corrections.read(path).machine_rate()
    assert rate > 0
    assert Corrections.read(path).machine_rate() == rate
