"""What says that a picture was drawn: the watermark and coded noise, what they cost, and what they outlast."""

from __future__ import annotations

import importlib.util
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import click
import numpy as np
from PIL import Image, ImageFilter

from tintype.arrays import psnr_db
from tintype.bench.figures import summary
from tintype.bench.measurement import BARS, Bar, Report, measurement
from tintype.bench.pictures import Picture, as_jpeg, clipped, photograph, rendered, repeated, unmarked
from tintype.models.postcard.evaluate import fixed_prompts, score_pictures
from tintype.pipeline import load
from tintype.sampling import noise_source
from tintype.stages.invert import inversion_request, starting_noise
from tintype.trust import detect as detection
from tintype.trust import search as searching
from tintype.trust.coded_noise import NoiseCoder, read
from tintype.trust.embed import Marked, embed
from tintype.trust.pattern import BITS, PUBLIC_KEY, TILE, pattern_of
from tintype.trust.payload import read_payload
from tintype.trust.residual import flatten, luma_of, middle
from tintype.trust.verify import read_watermark

Attack = Callable[[Picture, np.random.Generator], Picture]
BICUBIC = Image.Resampling.BICUBIC
MAKER = 0x5EED01
OPERATOR = bytes(range(32))  # a key that a forger hasn't
AVERAGED = 50  # pictures
VIEWS = 8  # of each picture without a mark that shifts are looked for in
FORGED_DB = 42.0
PEER_FALSE_ALARMS = 1e-6
TAILS = (3.0, 4.0, 5.0)  # standard deviations


def _image(change: Callable[[Image.Image], Image.Image]) -> Attack:
    return lambda picture, random: np.asarray(change(Image.fromarray(picture)))


def _scaled(image: Image.Image, share: float) -> Image.Image:
    return image.resize([round(side * share) for side in image.size], BICUBIC)


def _square(picture: Picture, random: np.random.Generator, share: float) -> tuple[slice, slice]:
    """A square of so much of the area, anywhere."""
    side = int(picture.shape[0] * math.sqrt(share))
    top, left = random.integers(0, picture.shape[0] - side, 2)
    return slice(top, top + side), slice(left, left + side)


def _hidden(share: float, *, inside: bool) -> Attack:
    """Black in a square, or but for it."""

    def change(picture: Picture, random: np.random.Generator) -> Picture:
        square = np.zeros(picture.shape[:2], bool)
        square[_square(picture, random, share)] = True
        return np.where((square != inside)[..., np.newaxis], picture, 0).astype(np.uint8)

    return change


def _salted(picture: Picture, random: np.random.Generator) -> Picture:
    """Black or white in one of 20 places."""
    drawn = random.random((*picture.shape[:2], 1))
    return np.where(drawn < 0.025, 0, np.where(drawn > 0.975, 255, picture)).astype(np.uint8)


def levels(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Attack:
    return lambda picture, random: clipped(np.rint(change(picture.astype(float), random)))


def _enlarged(picture: Picture, random: np.random.Generator) -> Picture:
    """A square of half the area, made as large as all of it was."""
    part = Image.fromarray(picture[_square(picture, random, 0.5)])
    return np.asarray(part.resize(picture.shape[1::-1], BICUBIC))


NINE: dict[str, Attack] = {
    "JPEG 25": lambda picture, random: as_jpeg(picture, 25),
    "60 % cut out": _hidden(0.6, inside=False),
    "80 % dropped": _hidden(0.8, inside=True),
    "resized to 25 %": _image(lambda image: _scaled(image, 0.25).resize(image.size, BICUBIC)),
    "blur, radius 4": _image(lambda image: image.filter(ImageFilter.GaussianBlur(4))),
    "median of 7": _image(lambda image: image.filter(ImageFilter.MedianFilter(7))),
    "noise of 5 %": levels(lambda picture, random: picture + random.normal(0, 0.05 * 255, picture.shape)),
    "salt and pepper of 5 %": _salted,
    "brightness to 6": levels(lambda picture, random: picture * random.uniform(0, 7)),
}
BESIDE: dict[str, Attack] = {
    "nothing": lambda picture, random: picture,
    "JPEG 10": lambda picture, random: as_jpeg(picture, 10),
    "a quarter cut out": lambda picture, random: picture[128:384, 100:356],
    # The strongest of WAVES (An et al. 2024), but for turning by 45 degrees.
    "WAVES, brightness": levels(lambda picture, random: picture * 2),
    "WAVES, contrast": levels(lambda picture, random: (picture - picture.mean()) * 2 + picture.mean()),
    "WAVES, blur": _image(lambda image: image.filter(ImageFilter.GaussianBlur(3.5))),
    "WAVES, noise": levels(lambda picture, random: picture + random.normal(0, 0.1 * 255, picture.shape)),
    "WAVES, erased": _hidden(0.25, inside=True),
}
SEARCHED: dict[str, Attack] = {
    "turned by 9 degrees": _image(lambda image: image.rotate(9, BICUBIC)),
    "turned by 45 degrees": _image(lambda image: image.rotate(45, BICUBIC)),
    "smaller, 73 %": _image(lambda image: _scaled(image, 0.73)),
    "mirrored": lambda picture, random: np.ascontiguousarray(picture[:, ::-1]),
    "WAVES, cut to half and enlarged": _enlarged,
}
EDITS: dict[str, Attack] = {  # of coded noise
    "nothing": BESIDE["nothing"],
    "JPEG 50": lambda picture, random: as_jpeg(picture, 50),
    "JPEG 25": NINE["JPEG 25"],
    "brightness": levels(lambda picture, random: picture * random.uniform(0.5, 2.0)),
    "noise of 5 %": NINE["noise of 5 %"],
}
USUAL = ("dpmpp_2m", "euler", "ddim", "unipc", "euler_cfg_pp", "heun")


@measurement("watermark", rounds=1, threads=1)
def watermark(
    report: Report,
    pictures: Annotated[int, "That are marked."] = 100,
    others: Annotated[int, "Without a mark, for false alarms over the shifts."] = 1000,
    searches: Annotated[int, "Without a mark, for false alarms of the whole search."] = 100,
    forgeries: Annotated[int, "Of each kind."] = 50,
    side: Annotated[int, click.IntRange(TILE), "Pixels."] = 512,
) -> None:
    """The watermark: what it costs, what it outlasts, and how often it is seen where there is none.

        tintype bench watermark [--pictures 100] [--others 1000] [--searches 100] [--forgeries 50]

    The nine attacks are those by which Gaussian Shading was measured (Yang et al. 2024, brightness as torchvision's
    ColorJitter draws it); beside them cuts and turns, by the whole search. False alarms are counted on ten kinds of
    pictures without a mark of ours, and by the tail of every correlation with the pattern. Forgeries have a mark that
    was taken off other pictures without the key. Where invisible-watermark is installed, it goes through the same.
    """
    plain = list(drawn(pictures, side, seed=0))
    seconds, marked = zip(*(timed(embed, picture, MAKER) for picture in plain), strict=True)
    psnr, pixels = [made.psnr_db for made in marked], [made.pixels for made in marked]
    table: dict[str, dict[str, Any]] = {
        "marking": {
            "seconds": summary(seconds), "psnr_db": round(mean(psnr), 2), "lowest_db": min(psnr),
            "read_from_a_copy": mean(made.is_read for made in marked),
        }
    }  # fmt: skip
    for whole, attacks in ((False, NINE | BESIDE), (True, SEARCHED)):

        def look(picture: Picture, number: int, whole: bool = whole) -> dict[str, Any]:
            took, (match, threshold) = timed(find, picture, whole)
            read = read_payload(detection.soft_bits(match, pattern_of()))
            return {"found": match.score >= threshold, "payload_read": read == marked[number].payload, "seconds": took}

        table |= outlasted(attacks, pixels, look)
    table["nine attacks, mean"] = {"found": mean(table[name]["found"] for name in NINE)}
    table["detecting"] = {"seconds": table["nothing"]["seconds"]}
    table["searching"] = {"seconds": table["turned by 9 degrees"]["seconds"]}
    table["others"] = false_alarms(others, whole=False)
    table["others, searched"] = false_alarms(searches, whole=True)
    for key, whose in ((PUBLIC_KEY, "public key"), (OPERATOR, "operator's key")):
        for taken in (1, AVERAGED):
            table[f"forged from {taken}, {whose}"] = forged(forgeries, taken, key, side)
    if all(map(importlib.util.find_spec, ("imwatermark", "cv2", "pywt"))):
        table |= {f"invisible-watermark, {name}": peer(name, plain) for name in ("dwtDct", "dwtDctSvd")}
    report.judge("watermark", table, BARS["watermark"])


def outlasted(
    attacks: Mapping[str, Attack], pictures: Sequence[Picture], look: Callable[[Picture, int], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """By attack what a look at each picture after it (and at its number) tells: means, of seconds a summary."""
    rows = {}
    for name, attack in attacks.items():
        random = np.random.default_rng(1)
        looks = [look(attack(picture, random), number) for number, picture in enumerate(pictures)]
        columns = {key: [each[key] for each in looks] for key in looks[0]}
        rows[name] = {key: summary(each) if key == "seconds" else mean(each) for key, each in columns.items()}
    return rows


def drawn(count: int, side: int, seed: int) -> Iterator[Picture]:
    """Renders and pictures like photographs in turn."""
    random = np.random.default_rng(seed)
    for number in range(count):
        yield rendered(random, side) if number % 2 else photograph(seed * 1_000_003 + number, (side, side))


def find(picture: Picture, whole: bool) -> tuple[detection.Match, float]:
    """The best match over shifts, or of the whole search, and what it has to reach."""
    if whole:
        return searching.search(picture)[0], searching.THRESHOLD
    return detection.detect(picture), detection.THRESHOLD


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Processor seconds of a call, and what it gave."""
    started = time.process_time()
    result = function(*arguments)
    return time.process_time() - started, result


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def false_alarms(count: int, *, whole: bool) -> dict[str, Any]:
    """How many of so many pictures without a mark look marked; the highest scores; tails beside a Gaussian's."""
    highest, found, beyond, samples = dict[str, float](), Counter[str](), np.zeros(len(TAILS)), 0
    for kind, picture in unmarked(count, seed=2 + whole, views=1 if whole else VIEWS):
        match, threshold = find(picture, whole)
        highest[kind] = max(highest.get(kind, 0.0), round(match.score, 3))
        found[kind] += match.score >= threshold
        if not whole:
            values = detection.correlations(match.bins)
            beyond += [(values > tail).sum() for tail in TAILS]
            samples += values.size
    told: dict[str, Any] = {"found": found.total() / count, "pictures": count, "found_of": +found}
    told |= {"highest_score": max(highest.values()), "highest_scores": highest, "threshold": threshold}
    if samples:
        chance = np.array([0.5 * math.erfc(tail / math.sqrt(2)) for tail in TAILS])
        told |= {"samples": samples, "tails_over_gaussian": (beyond / samples / chance).round(3).tolist()}
    return told


def forged(count: int, taken: int, key: bytes, side: int) -> dict[str, float]:
    """What `verify` says of so many pictures with a mark that was taken off others. taken: off how many, averaged.

    read_as_the_victims: its payload names the victim's installation; of_these_told: that the picture shows others.
    """
    victims = drawn(count * taken, side, seed=4)
    found, read, told = 0, 0, 0
    for picture in drawn(count, side, seed=5):
        tile = np.mean([_taken_off(embed(next(victims), MAKER, key=key)) for _ in range(taken)], axis=0)
        shift = np.random.default_rng(found + read).integers(0, TILE, 2).tolist()
        added = repeated(np.roll(tile, shift, (0, 1)), picture.shape)[..., np.newaxis]
        added *= 255 / 10 ** (FORGED_DB / 20) / added.std()
        reading = read_watermark(clipped(np.rint(picture + added)), [key])
        found += reading.found
        is_victims = reading.maker == f"{MAKER:06x}"
        read += is_victims
        told += is_victims and reading.shows_the_same is False
    return {"found": found / count, "read_as_the_victims": read / count, "of_these_told": told / max(1, read)}


def _taken_off(marked: Marked | None) -> np.ndarray:
    """(TILE, TILE), what tiles of a marked picture have in common, shifted to where the pattern's are."""
    assert marked is not None
    flat = flatten(luma_of(marked.pixels[middle(marked.pixels.shape[:2])])).values
    rows, columns = (length // TILE for length in flat.shape)
    folded = flat.reshape(rows, TILE, columns, TILE).mean(axis=(0, 2))
    return np.asarray(np.roll(folded, [-each for each in detection.detect(marked.pixels).shift], (0, 1)))


def peer(method: str, pictures: Sequence[Picture]) -> dict[str, Any]:
    """What of invisible-watermark's marks is found: so many of as many bits as we have that chance rarely gives it."""
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    bits = np.random.default_rng(6).integers(0, 2, BITS)
    tails = np.cumsum([math.comb(BITS, right) for right in range(BITS, -1, -1)]) / 2.0**BITS
    least = BITS - int(np.flatnonzero(tails <= PEER_FALSE_ALARMS)[-1])
    encoder, decoder = WatermarkEncoder(), WatermarkDecoder("bits", BITS)
    encoder.set_watermark("bits", bits.tolist())
    marked = [np.ascontiguousarray(encoder.encode(each[..., ::-1], method)[..., ::-1]) for each in pictures]

    def look(picture: Picture, number: int) -> dict[str, Any]:
        read = decoder.decode(np.ascontiguousarray(picture[..., ::-1]), method)
        return {"found": (np.array(read) == bits).sum() >= least}

    found = {name: row["found"] for name, row in outlasted(BESIDE | NINE, marked, look).items()}
    psnr = mean(psnr_db(*each, 255.0) for each in zip(pictures, marked, strict=True))
    return {"found": mean(found[name] for name in NINE), "least_bits": least, "psnr_db": round(psnr, 2), **found}


@measurement("coded-noise", rounds=1, threads=1)
def coded_noise(
    report: Report, threads: int, pictures: Annotated[int, "Of each sampler."] = 40,
    judged: Annotated[int, "Pictures with, and as many without."] = 300, samplers: str = ",".join(USUAL),
) -> None:  # fmt: skip
    """Coded noise: how often it is found in postcard's pictures, by sampler and edit, and whether it costs any quality.

        tintype bench coded-noise [--pictures 40] [--judged 300] [--samplers dpmpp_2m,euler]

    `signs` is the share of the starting noise's signs that come back, half of them being chance; found is at fewer than
    one false alarm in a million. Beside them pictures that were drawn without. The judge (torch) reads the attributes
    of pictures of the same prompts and seeds, drawn with and without.
    """
    prompts, scenes = zip(*fixed_prompts(max(pictures, judged)), strict=True)
    with load("postcard", provider="cpu", threads=threads) as pipeline:

        def draw(count: int, **fields: Any) -> list[np.ndarray]:
            asked = enumerate(prompts[:count])
            return [np.asarray(pipeline.generate(prompt, seed=seed, **fields).image) for seed, prompt in asked]

        def look(picture: Picture, seed: int) -> dict[str, Any]:
            """Whether it is found, and says who drew it; and the share of its signs that are right."""
            request, maker = (
                inversion_request(Image.fromarray(picture), pipeline.bundle.manifest),
                pipeline.marker.maker,
            )
            noise = starting_noise(pipeline.context(pipeline.resolve(request)))
            told = NoiseCoder(maker).coded(noise_source("philox", [seed]).draw(noise.shape), [seed])
            reading = read(noise, [PUBLIC_KEY])
            is_right = reading.payload in (None, f"{maker & 0xFF:02x}")
            return {"found": reading.found and is_right, "signs": np.mean(np.sign(told) == np.sign(noise))}

        table: dict[str, dict[str, Any]] = {}
        for sampler in samplers.split(","):
            rows = outlasted(EDITS, draw(pictures, code_noise=True, sampler=sampler), look)
            table |= {f"{sampler}, {name}": row for name, row in rows.items()}
        arms = {"without": draw(judged, code_noise=False), "with": draw(judged, code_noise=True)}
        table["drawn without"] = {"found": mean(look(picture, 0)["found"] for picture in arms["without"][:pictures])}
    scores: dict[str, Any] = {name: score_pictures(np.stack(each), scenes[:judged]) for name, each in arms.items()}
    means = {name: score["accuracy"]["mean"] for name, score in scores.items()}
    table["quality"] = {"lost": means["without"] - means["with"], **means}
    error = float(np.hypot(*(score["standard_error"] for score in scores.values())))
    bars = (Bar("drawn without", "found", at_most=0.0), Bar("quality", "lost", at_most=2 * error))
    report.judge("coded noise", table, bars, judged=scores)
