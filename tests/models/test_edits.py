"""Pictures from pictures on postcard, by the judge: what is asked for is there, and what was to stay stayed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tintype
from tintype.models.postcard import edits
from tintype.models.postcard.gallery import NEW_SKY_STRENGTH
from tintype.models.postcard.judge import Judge
from tintype.models.postcard.recipe import HERE
from tintype.models.postcard.scene import ATTRIBUTES, is_held_out

RESULTS = Path(__file__).parents[2] / "bench" / "results"


@pytest.fixture(scope="module")
def pipeline() -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu") as pipeline:
        yield pipeline


@pytest.mark.parametrize(("make", "changed"), [(edits.recolourings, {"colour"}), (edits.new_skies, set(edits.SKY))])
def test_edits_are_fixed_and_change_what_they_say_alone(make, changed: set[str]) -> None:
    for edit, again in zip(make(20), make(20), strict=True):
        assert np.array_equal(edit.picture, again.picture)
        assert (edit.prompt, edit.original) == (again.prompt, again.original)
        assert is_held_out(edit.wanted)
        differing = {name for name in ATTRIBUTES if getattr(edit.wanted, name) != getattr(edit.original, name)}
        assert differing == changed


def test_the_box_covers_the_subject_and_the_two_masks_of_a_subject_share_no_pixel() -> None:
    for edit in edits.recolourings(20):
        assert (edits.MASKS["box"](edit.subject)[edit.subject > 127] == 255).all()
        assert (edits.MASKS["all but the subject"](edit.subject) == 255 - edit.subject).all()


@pytest.mark.slow
def test_the_judge_reads_the_originals_without_an_error() -> None:
    every = edits.recolourings(50) + edits.new_skies(50)
    read = Judge.load().read(np.stack([edit.picture for edit in every]))
    assert read == [edit.original for edit in every]


@pytest.mark.slow
@pytest.mark.long
def test_what_is_inpainted_has_the_colour_asked_for_and_the_rest_is_kept(pipeline: tintype.Pipeline) -> None:
    chosen = edits.recolourings(12)
    made = edits.make(pipeline, chosen, edits.INPAINT)
    figures = edits.score_inpaints(Judge.load(), chosen, made, edits.INPAINT)
    assert figures["new_colour"] >= 10 / 12, figures  # of 200 pictures: models/postcard/README.md
    assert figures["old_colour"] <= 1 / 12, figures
    assert figures["sky_kept"] >= 11 / 12, figures
    assert figures["outside_psnr_db"] >= 28, figures  # the autoencoder alone has 31.8 dB of whole renders


@pytest.mark.slow
@pytest.mark.long
def test_outside_exact_keeps_the_bytes_and_makes_the_colour_all_the_same(pipeline: tintype.Pipeline) -> None:
    way = dataclasses.replace(edits.INPAINT, fields={**edits.INPAINT.fields, "keep_outside": "exact"})
    chosen = edits.recolourings(4)
    figures = edits.score_inpaints(Judge.load(), chosen, edits.make(pipeline, chosen, way), way)
    assert figures["outside_psnr_db"] == np.inf, figures
    assert figures["new_colour"] >= 3 / 4, figures


@pytest.mark.slow
@pytest.mark.long
def test_a_subject_comes_under_another_sky(pipeline: tintype.Pipeline) -> None:
    chosen = edits.new_skies(8)
    way = edits.Way(name="", fields={"strength": NEW_SKY_STRENGTH})
    figures = edits.score_new_skies(Judge.load(), chosen, edits.make(pipeline, chosen, way))
    assert figures["new_sky"] >= 5 / 8, figures
    assert figures["subject_kept"] >= 7 / 8, figures


def test_the_results_pass_the_bar_and_the_model_card_has_their_figures() -> None:
    inpaint, image_to_image = (
        json.loads((RESULTS / f"postcard-{what}.json").read_text())["ways"] for what in ("inpaint", "image-to-image")
    )
    headline = inpaint[0]
    assert headline["way"] == edits.INPAINT.name
    assert headline["pictures"] >= 200
    assert headline["new_colour"] >= edits.BAR
    card = (HERE / "README.md").read_text()
    for row in (*inpaint, *image_to_image):
        share = row.get("new_colour", row.get("new_sky"))
        line = next(line for line in card.splitlines() if line.startswith(f"| {row['way']} |"))
        assert f"| {100 * share:.1f} % |" in line, row["way"]
