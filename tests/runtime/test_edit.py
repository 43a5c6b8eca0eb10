"""Pictures from pictures, masks, margins and given noise: what each keeps, what each makes new, and what is refused."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import PROMPT, middle, photo, psnr_db
from PIL import Image

import tintype
from tintype.errors import RequestError
from tintype.image.source import MAX_PIXELS
from tintype.sampling import SAMPLERS, noise_source
from tintype.stages.decode import decode

ASKED = {"seed": 7, "num_inference_steps": 3, "sampler": "euler"}
SMALL = {"width": 32, "height": 32}  # for what every sampler draws
OUTSIDE = np.asarray(middle()) == 0
CELLS_OUTSIDE = OUTSIDE[::4, ::4]


@pytest.fixture(scope="module")
def picture_latents(pipeline):
    """Those of `photo()`."""
    return pipeline.encode_picture(photo())


@pytest.fixture
def refused(pipeline):
    """The one RequestError of a request; nothing of it is drawn."""

    def call(*words: str, **fields) -> RequestError:
        with pytest.raises(RequestError) as caught:
            pipeline.generate(PROMPT, **{**ASKED, **fields})
        assert caught.value.fix
        for word in words:
            assert word in str(caught.value), str(caught.value)
        return caught.value

    return call


def test_a_picture_given_as_a_file_an_image_or_an_array_is_the_same(pipeline, tmp_path):
    photo().save(tmp_path / "x.png")
    sources = (photo(), np.asarray(photo()), tmp_path / "x.png", str(tmp_path / "x.png"))
    made = {pipeline.generate(PROMPT, image=source, **ASKED).image.tobytes() for source in sources}
    assert len(made) == 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_begins_with_a_picture(pipeline, sampler):
    """At every strength: finite, the same each time, and not what words alone make."""
    asked = {**ASKED, **SMALL, "sampler": sampler}
    of_words = pipeline.generate(PROMPT, **asked).latents.tobytes()
    for strength in (0.4, 0.75, 1.0):
        first, again = (pipeline.generate(PROMPT, image=photo(32, 32), strength=strength, **asked) for _ in range(2))
        assert np.isfinite(first.latents).all()
        assert first.image.tobytes() == again.image.tobytes()
        assert first.record == again.record
        assert first.latents.tobytes() != of_words


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_the_latents_outside_of_a_mask(pipeline, picture_latents, sampler, strength):
    asked = {**ASKED, "sampler": sampler, "image": photo(), "mask": middle(), "strength": strength}
    first, again = (pipeline.generate(PROMPT, **asked) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert np.isfinite(first.latents).all()
    np.testing.assert_allclose(
        first.latents[:, :, CELLS_OUTSIDE], picture_latents[:, :, CELLS_OUTSIDE], rtol=0, atol=1e-6
    )
    inside = np.abs(first.latents - picture_latents)[:, :, ~CELLS_OUTSIDE]
    assert inside.min(axis=(0, 1)).max() > 0.01


def test_a_mask_keeps_the_latents_outside_at_every_step(pipeline, picture_latents):
    """At each step's noise; the last one has none."""
    run = pipeline.steps(PROMPT, image=photo(), mask=middle(), **ASKED)
    noise = noise_source("philox", [7]).draw((1, 4, 16, 16))
    steps = list(run)
    sigmas = [step.sigma for step in steps[1:]] + [0.0]
    for step, sigma in zip(steps, sigmas, strict=True):
        expected = picture_latents + noise * np.float32(sigma)
        np.testing.assert_allclose(
            step.latents[:, :, CELLS_OUTSIDE], expected[:, :, CELLS_OUTSIDE], rtol=1e-5, atol=1e-5
        )


def test_outside_of_a_mask_a_picture_is_what_a_trained_vae_makes_of_it():
    values = np.zeros((64, 64), np.uint8)
    values[:16, :16] = 255
    with tintype.load(provider="cpu", threads=1) as postcard:
        made = postcard.generate(PROMPT, image=photo(), mask=values, **ASKED)
        context = postcard.context(made.record.request)
        round_trip = decode(context, postcard.encode_picture(photo()))[0]
    error_db = {
        where: psnr_db(np.asarray(made.image)[area], round_trip[area])
        for where, area in (("inside", np.s_[:16, :16]), ("outside", np.s_[32:, 32:]))
    }
    assert error_db["outside"] > 35
    assert error_db["inside"] < 25
    assert psnr_db(round_trip, photo()) > 20


def test_a_mask_that_is_all_white_begins_with_noise_alone(pipeline):
    """At strength 1 nothing of the picture is left."""
    white = np.full((64, 64), 255, np.uint8)
    made = pipeline.generate(PROMPT, image=photo(), mask=white, **ASKED)
    assert made.image.tobytes() == pipeline.generate(PROMPT, **ASKED).image.tobytes()


def test_the_lower_the_strength_the_nearer_the_picture_stays(pipeline, picture_latents):
    asked = {**ASKED, "num_inference_steps": 8}
    made = [pipeline.generate(PROMPT, image=photo(), strength=strength, **asked) for strength in (0.125, 0.5, 1.0)]
    errors = [float(np.abs(result.latents - picture_latents).mean()) for result in made]
    assert errors == sorted(errors)
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 3), (0.3, 3), (0, 20), (0.01, 50)])
def test_a_strength_that_leaves_no_step_is_refused_with_one_that_does(pipeline, refused, strength, steps):
    error = refused("leaves no step", image=photo(), strength=strength, num_inference_steps=steps)
    enough = float(error.fix.split("strength of ")[1].split()[0])
    run = pipeline.steps(PROMPT, image=photo(), **{**ASKED, "num_inference_steps": steps}, strength=enough)
    assert next(run).total >= 1
    run.close()


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "0.5", True])
def test_a_strength_is_a_share(refused, strength):
    refused("strength", "0 to 1", image=photo(), strength=strength)


@pytest.mark.parametrize("masked", [False, True])
def test_the_usual_strength_is_part_of_the_way_and_with_a_mask_all_of_it(pipeline, masked):
    more = {"mask": middle()} if masked else {}
    run = pipeline.steps(PROMPT, image=photo(), **{**ASKED, "num_inference_steps": 4}, **more)
    assert next(run).total == (4 if masked else 3)
    assert run.request.strength == (1.0 if masked else 0.75)
    run.close()


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_picture_does_not_depend_on_its_neighbours(pipeline, masked, sampler):
    more = {"mask": middle(), "keep_outside": "exact"} if masked else {}
    asked = {**ASKED, "sampler": sampler, "image": photo(), "num_inference_steps": 2, **more}
    singly = pipeline.generate(PROMPT, count=3, **asked)
    together = pipeline.generate(PROMPT, count=3, batch_size=2, **asked)
    for index in range(3):
        alone = pipeline.generate(PROMPT, **{**asked, "seed": 7 + index})
        assert alone.image.tobytes() == singly.images[index].tobytes()
        assert psnr_db(together.images[index], alone.image) >= 60.0


@pytest.mark.parametrize("edge", [{}, {"mask_grow": 4}, {"mask_grow": -4}, {"mask_blur": 3.0}], ids=str)
def test_an_exact_outside_keeps_every_byte(pipeline, edge):
    asked = {**ASKED, "image": photo(), "mask": middle(), **edge}
    run = pipeline.steps(PROMPT, **asked, keep_outside="exact")
    list(run)
    outside = run.request.inputs.mask == 0
    assert outside.sum() > 1000
    made, original = np.asarray(run.result.image), np.asarray(photo())
    np.testing.assert_array_equal(made[outside], original[outside])
    inside = run.request.inputs.mask == 1
    drawn = np.asarray(pipeline.generate(PROMPT, **asked).image)
    np.testing.assert_array_equal(made[inside], drawn[inside])
    assert (drawn[outside] != original[outside]).any()


def test_a_mask_reaches_the_picture_by_its_edge(pipeline):
    asked = {**ASKED, "image": photo(), "mask": middle()}
    made = [pipeline.generate(PROMPT, **asked, **edge) for edge in ({}, {"mask_grow": 8}, {"mask_blur": 4.0})]
    assert len({result.latents.tobytes() for result in made}) == 3


# Sizes: 64x64 is the model's own, 8 its multiple.
@pytest.mark.parametrize(
    ("given", "size", "made"),
    [
        ((64, 64), {}, (64, 64)),
        ((40, 64), {}, (40, 64)),  # the model makes it
        ((400, 400), {}, (64, 64)),
        ((640, 320), {}, (80, 40)),  # its aspect ratio, about as many pixels as the model's own size
        ((640, 320), {"width": 64}, (64, 64)),
        ((640, 320), {"width": 72, "height": 40}, (72, 40)),
    ],
)
def test_without_a_size_the_picture_decides_it(pipeline, given, size, made):
    run = pipeline.steps(PROMPT, image=photo(*given), **ASKED, **size)
    assert (run.request.width, run.request.height) == made
    assert run.request.inputs.pixels.shape == (1, made[1], made[0], 3)
    assert (run.request.image.width, run.request.image.height) == given


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_a_picture_comes_to_the_size_as_it_was_asked_to(pipeline, how):
    """Left third red, the middle green, the right third blue; crop leaves the middle alone. So it is with a mask."""
    bands = np.zeros((64, 192, 3), np.uint8)
    for band in range(3):
        bands[:, 64 * band : 64 * (band + 1), band] = 255
    mask = np.zeros((64, 192), np.uint8)
    mask[:, :96] = 255
    request = pipeline.steps(PROMPT, image=bands, mask=mask, fit=how, width=64, height=64, **ASKED).request
    pixels, new = request.inputs.pixels[0], request.inputs.mask
    seen = {tuple(pixels[32, column]) for column in (4, 32, 60)}
    assert seen == ({(0, 255, 0)} if how == "crop" else {(255, 0, 0), (0, 255, 0), (0, 0, 255)})
    assert request.image.fit == how
    assert (new[32, 4], new[32, 60]) == (1, 0)


def test_crop_that_leaves_nothing_white_of_a_mask_is_refused(refused):
    mask = np.zeros((64, 192), np.uint8)
    mask[:, :32] = 255
    refused("crop leaves nothing white", "pad", image=photo(192, 64), mask=mask, width=64, height=64)


def test_an_unknown_fit_gets_a_near_name(refused):
    refused("fit", "did you mean crop", image=photo(), fit="crup")
    refused("background", image=photo(), background="no colour")
    refused("keep_outside", "exact", image=photo(), mask=middle(), keep_outside="exakt")


def test_outpainting_extends_the_picture_and_makes_the_margins_new(pipeline):
    run = pipeline.steps(PROMPT, image=photo(32, 64), outpaint="0,0,32,0", keep_outside="exact", **ASKED)
    list(run)
    made, mask = np.asarray(run.result.image), run.request.inputs.mask
    assert run.result.image.size == (64, 64)
    np.testing.assert_array_equal(mask[:, :24], 0)
    np.testing.assert_array_equal(mask[:, 24:], 1)  # the overlap of 8 pixels too
    np.testing.assert_array_equal(made[:, :24], np.asarray(photo(32, 64))[:, :24])
    record = run.result.record.request
    assert (record.image.outpaint, record.mask.sha256, record.strength) == ("0,0,32,0", None, 1.0)


def test_outpainting_without_a_size_is_of_the_larger_canvas(pipeline):
    run = pipeline.steps(PROMPT, image=photo(32, 32), outpaint="8,8,8,0", **ASKED)
    assert (run.request.width, run.request.height) == (48, 40)


def test_a_mask_and_margins_are_made_new_together(pipeline):
    run = pipeline.steps(PROMPT, image=photo(), mask=middle(), outpaint="32,0,0,0", width=96, height=64, **ASKED)
    mask = run.request.inputs.mask
    assert mask[:, :40].all()
    np.testing.assert_array_equal(mask[:, 40:], np.asarray(middle())[:, 8:] / 255)


@pytest.mark.parametrize("margins", ["", "1", "0,0,0,0", "-8,0,0,0", "8,8,8,x", "9999999,0,0,0", "8,8,8,8,8"])
def test_margins_that_are_none_are_refused(refused, margins):
    refused(image=photo(), outpaint=margins)


# Whatever a picture is as a file, it is its upright sRGB pixels here.
def test_a_photo_that_lies_on_its_side_is_drawn_upright(pipeline, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(64, 40).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.png", exif=exif)
    expected = pipeline.steps(PROMPT, image=photo(64, 40), **ASKED).request
    request = pipeline.steps(PROMPT, image=tmp_path / "x.png", **ASKED).request
    assert (request.width, request.height) == (64, 40)
    assert request == expected
    np.testing.assert_array_equal(request.inputs.pixels, expected.inputs.pixels)


def test_what_is_transparent_shows_the_background(pipeline):
    layers = photo().convert("RGBA")
    layers.putalpha(middle())
    behind = Image.composite(photo(), Image.new("RGB", (64, 64), "navy"), middle())
    made = pipeline.generate(PROMPT, image=layers, background="navy", **ASKED)
    assert made.image.tobytes() == pipeline.generate(PROMPT, image=behind, **ASKED).image.tobytes()
    assert made.record.request.image.background == "navy"


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "LA", "F"])
def test_pictures_of_every_mode_are_drawn(pipeline, mode, tmp_path):
    if mode == "I;16":
        source = Image.fromarray(np.asarray(photo().convert("L"), np.uint16) * np.uint16(257))
    elif mode == "F":
        source = Image.fromarray(np.asarray(photo().convert("L"), np.float32) / 255)
    else:
        source = photo().convert(mode)
    expected = source if mode in ("L", "1", "P", "CMYK") else photo().convert("L")
    made = pipeline.generate(PROMPT, image=source, **ASKED)
    assert made.image.tobytes() == pipeline.generate(PROMPT, image=expected.convert("RGB"), **ASKED).image.tobytes()


def test_a_picture_of_one_pixel_is_one_colour(pipeline):
    run = pipeline.steps(PROMPT, image=Image.new("RGB", (1, 1), "teal"), **ASKED)
    assert np.unique(run.request.inputs.pixels.reshape(-1, 3), axis=0).tolist() == [[0, 128, 128]]
    assert next(run).latents.shape == (1, 4, 16, 16)
    run.close()


def bomb(path: Path) -> Path:
    """A PNG whose header says 100 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def damaged(what: str, folder: Path) -> Path:
    """A file that is no picture, or more than one."""
    path = folder / "x.png"
    if what == "bomb":
        return bomb(path)
    if what == "animated":
        photo().save(folder / "x.gif", save_all=True, append_images=[photo(32, 32).resize((64, 64))])
        return folder / "x.gif"
    if what == "folder":
        return folder
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    whole = buffer.getvalue()
    content = {"empty": b"", "text": b"no picture", "cut": whole[: len(whole) // 2], "header": whole[:20]}
    if what in content:
        path.write_bytes(content[what])
    return path


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("what", ["missing", "folder", "empty", "text", "cut", "header", "animated", "bomb"])
def test_a_file_that_is_no_picture_is_refused_by_its_name(refused, field, what, tmp_path):
    path = damaged(what, tmp_path)
    given = {"image": path} if field == "image" else {"image": photo(), "mask": path}
    refused(path.name, **given)


@pytest.mark.parametrize("value", [3, b"PNG", [[1]], np.zeros((4,)), np.zeros((0, 4, 3), np.uint8)], ids=repr)
def test_what_is_no_picture_is_refused(refused, value):
    refused(image=value)


def test_more_pixels_than_a_picture_may_have_are_refused(refused):
    side = int(MAX_PIXELS**0.5) + 1
    refused("pixels", image=np.broadcast_to(np.uint8(0), (side, side, 3)))


MASKLESS = {"mask_grow": 4, "mask_blur": 2.0, "keep_outside": "exact"}


def test_nothing_that_belongs_to_a_picture_is_ignored_without_one(refused):
    fields = {"mask": middle(), "strength": 0.5, "outpaint": "8,0,0,0", "fit": "pad", "background": "navy", **MASKLESS}
    for name, value in fields.items():
        refused(name, "is given without", **{name: value})
    for name, value in MASKLESS.items():
        refused(name, "without a mask", image=photo(), **{name: value})


@pytest.mark.parametrize(
    "mask",
    [middle(32, 32), np.zeros((64, 64), np.uint8), np.full((64, 64), np.nan), np.zeros((64, 64, 2), np.uint8)],
    ids=["size", "empty", "nan", "shape"],
)
def test_a_mask_that_is_none_of_its_picture_is_refused(refused, mask):
    refused("mask", image=photo(), mask=mask)


# Given noise.
def noise(seed: int = 7, count: int = 1, mode: str = "philox", rows: int = 16, columns: int = 16):
    return noise_source(mode, range(seed, seed + count)).draw((count, 4, rows, columns))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_noise_is_drawn_as_the_seed_it_comes_from(pipeline, sampler):
    """A sampler that draws more begins with the seed's first numbers then, as diffusers' generator does."""
    asked, given = {**ASKED, **SMALL, "sampler": sampler}, {"rows": 8, "columns": 8}
    expected = pipeline.generate(PROMPT, **asked).image.tobytes()
    draws_more = sampler.startswith(("ddpm", "lcm", "tcd", "seeds", "sa_solver"))
    draws_more = draws_more or sampler.endswith(("_a", "_sde", "_sde_heun", "_a_cfg_pp"))
    assert (pipeline.generate(PROMPT, latents=noise(**given), **asked).image.tobytes() == expected) != draws_more
    assert pipeline.generate(PROMPT, latents=noise(8, **given), **asked).image.tobytes() != expected


def test_given_noise_may_be_an_array_of_any_floats_or_a_file(pipeline, tmp_path):
    expected = pipeline.generate(PROMPT, **ASKED).image.tobytes()
    np.save(tmp_path / "x.npy", noise())
    np.save(tmp_path / "f.npy", np.asfortranarray(noise().astype(">f8")))
    for given in (noise().astype(np.float64), noise().copy(order="F"), tmp_path / "x.npy", str(tmp_path / "f.npy")):
        made = pipeline.generate(PROMPT, latents=given, **{**ASKED, "seed": 99})
        assert made.image.tobytes() == expected
        assert made.record.request.latents == pipeline.resolve(tintype.Request(prompt="", latents=noise())).latents


def test_given_noise_is_of_each_picture(pipeline):
    asked = {**ASKED, "count": 3, "batch_size": 2}
    given = pipeline.generate(PROMPT, latents=noise(count=3), **asked)
    assert [image.tobytes() for image in given.images] == [
        image.tobytes() for image in pipeline.generate(PROMPT, **asked).images
    ]


def test_given_noise_decides_the_size(pipeline):
    run = pipeline.steps(PROMPT, latents=noise(rows=8), **ASKED)
    assert (run.request.width, run.request.height) == (64, 32)


def test_given_noise_is_left_as_it_is_and_later_changes_are_not_seen(pipeline):
    given = noise()
    run = pipeline.steps(PROMPT, latents=given, **ASKED)
    given[:] = 0
    list(run)
    assert run.result.image.tobytes() == pipeline.generate(PROMPT, **ASKED).image.tobytes()
    assert not given.any()


NO_NOISE = {
    "batch": noise(count=2),
    "channels": noise()[:, :3],
    "dims": noise()[0],
    "nan": noise() * np.float32(np.nan),
    "too large": noise().astype(np.float64) * 1e60,
    "integers": np.ones((1, 4, 16, 16), np.int64),
    "complex": noise().astype(np.complex64),
    "objects": noise().astype(object),
    "nothing": np.zeros((0, 4, 16, 16), np.float32),
    "odd size": noise(rows=9),
    "list": [[[[0.0]]]],
    "number": 3,
}


@pytest.mark.parametrize("what", NO_NOISE)
def test_latents_that_are_no_noise_of_the_request_are_refused(refused, what):
    refused(latents=NO_NOISE[what])


def test_latents_of_another_size_than_was_asked_for_are_refused(refused):
    refused("1x4x16x16", "1x4x8x16", latents=noise(), height=32)


def latents_file(what: str, folder: Path) -> Path:
    path = folder / "x.npy"
    if what == "folder":
        return folder
    if what == "pickle":
        np.save(path, noise().astype(object), allow_pickle=True)
    elif what == "bare pickle":
        path.write_bytes(pickle.dumps(noise()))
    elif what == "archive":
        np.savez(folder / "x.npz", noise())
        return folder / "x.npz"
    elif what == "huge":  # of which the file has no byte
        np.save(path, noise())
        path.write_bytes(path.read_bytes().replace(b"(1, 4, 16, 16)", b"(1,4,9**9,9**9)"[:14]))
    elif what == "huge header":
        np.save(path, noise())
        path.write_bytes(path.read_bytes().replace(b"(1, 4, 16, 16)", b"(9999999,4444)"))
    elif what == "hostile header":
        np.save(path, noise())
        path.write_bytes(path.read_bytes().replace(b"(1, 4, 16, 16)", b"((((((((((((((("[:14]))
    elif what != "missing":
        np.save(path, noise())
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"no array", "cut": whole[:-40], "head": whole[:40]}[what])
    return path


LATENTS_FILES = ("missing", "folder", "pickle", "bare pickle", "archive", "huge", "huge header", "hostile header")


@pytest.mark.parametrize("what", [*LATENTS_FILES, "empty", "text", "cut", "head"])
def test_a_file_that_holds_no_noise_is_refused_by_its_name(refused, what, tmp_path):
    path = latents_file(what, tmp_path)
    refused(path.name, latents=path)


def test_a_picture_and_given_noise_contradict_each_other(refused):
    refused("image and latents", image=photo(), latents=noise())


def test_a_picture_of_one_step_is_drawn_at_full_strength(pipeline):
    made = pipeline.generate(PROMPT, image=photo(), **{**ASKED, "num_inference_steps": 1})
    assert made.record.request.image.strength == 1.0
    assert "Denoising strength: 1" in made.record.texts()["parameters"]
    two = pipeline.steps(PROMPT, image=photo(), **{**ASKED, "num_inference_steps": 2})
    assert two.request.image.strength == 0.75
