"""What a picture says to programs that know nothing of Tintype: made by a model, or altered by one, and from what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import tintype
from tintype.bench.pictures import photograph
from tintype.record.xmp import SOURCE_TYPE, XMP_KEY

EXT, XMP, MM = (
    "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}",
    "{http://ns.adobe.com/xap/1.0/}",
    "{http://ns.adobe.com/xap/1.0/mm/}",
)
FIELDS = {"seed": 3, "num_inference_steps": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def postcard() -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu") as pipeline:
        yield pipeline


def described(path: Path) -> ElementTree.Element:
    """What the XMP in a PNG says, as any reader of XML sees it."""
    data = path.read_bytes()
    assert b"iTXt" + XMP_KEY.encode() in data
    with Image.open(path) as picture:
        root = ElementTree.fromstring(picture.text[XMP_KEY])  # type: ignore[attr-defined]
    return root[0][0]


def test_a_picture_says_that_a_model_made_it(postcard: tintype.Pipeline, tmp_path: Path) -> None:
    result = postcard.generate('a boat & a "house" <b>', **FIELDS)
    about = described(result.save(tmp_path / "x.png")[0])
    assert about.attrib[f"{EXT}DigitalSourceType"] == f"{SOURCE_TYPE}trainedAlgorithmicMedia"
    assert about.attrib[f"{EXT}AISystemUsed"] == "postcard"
    assert about.attrib[f"{XMP}CreatorTool"] == f"tintype {tintype.__version__}"
    assert about.attrib[f"{MM}DocumentID"].startswith("tintype:")
    assert about.find(f"{MM}DerivedFrom") is None


def test_an_edit_says_that_it_was_altered_and_of_what(postcard: tintype.Pipeline, tmp_path: Path) -> None:
    result = postcard.generate("a boat", image=photograph(2, (64, 64)).astype(np.uint8), **FIELDS)
    about = described(result.save(tmp_path / "x.png")[0])
    assert about.attrib[f"{EXT}DigitalSourceType"] == f"{SOURCE_TYPE}compositeWithTrainedAlgorithmicMedia"
    derived = about.find(f"{MM}DerivedFrom")
    assert derived is not None
    assert result.record.request.image is not None
    assert f"sha256:{result.record.request.image.sha256}" in derived.attrib.values()


def test_two_pictures_have_two_ids(postcard: tintype.Pipeline, tmp_path: Path) -> None:
    paths = postcard.generate("a boat", count=2, **FIELDS).save(tmp_path / "x.png")
    assert len({described(path).attrib[f"{MM}DocumentID"] for path in paths}) == 2
