"""Coded noise is noise like any other, and says who drew it to whoever finds it again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tintype
from tintype.bench.pictures import photograph
from tintype.bundle import Manifest
from tintype.cli.verify import verify
from tintype.errors import RecordError, RequestError
from tintype.record import parse_record
from tintype.request import Request, demand_resolved, resolve
from tintype.request.code_noise import LEAST_CODED_CELLS
from tintype.sampling import RENOISING, SAMPLERS, Denoised, SchedulerConfig, make_schedule, noise_source
from tintype.trust.coded_noise import (
    MOST_FALSE_ALARMS,
    NONCE_BITS,
    NOT_FOUND,
    STREAMS,
    NoiseCoder,
    chance_of,
    nonce_of,
    read,
)
from tintype.trust.keys import key_name
from tintype.trust.pattern import PUBLIC_KEY

MAKER, KEY, CELLS = 0xBADCAB, b"an operator's key", 4096
PROMPT = "a red sailboat on a calm sea at sunset"
FIELDS = {"num_inference_steps": 6, "seed": 7}


def noise(seed: int, shape: tuple[int, ...] = (4, 32, 32)) -> np.ndarray:
    return noise_source("philox", [seed]).draw((1, *shape))


def mixed(values: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Noise of which a share is left, as inversion leaves it."""
    fresh = np.random.default_rng(seed).standard_normal(values.shape).astype(np.float32)
    return np.float32(math.sqrt(share)) * values + np.float32(math.sqrt(1 - share)) * fresh


@pytest.mark.parametrize("shape", [(4, 32, 32), (4, 16, 16), (3, 31, 29)], ids=str)
def test_what_is_coded_is_read(shape: tuple[int, ...]) -> None:
    coder = NoiseCoder(MAKER, KEY)
    coded = coder.coded(noise(5, shape), [5])
    assert np.array_equal(np.abs(coded), np.abs(noise(5, shape)))
    found = read(coded, [PUBLIC_KEY, KEY])
    assert (found.found, found.payload, found.key) == (True, "ab", key_name(KEY))
    assert found.payload == coder.facts(5, math.prod(shape)).payload
    assert found.confidence > 1 - MOST_FALSE_ALARMS
    assert read(coded, [PUBLIC_KEY]) == NOT_FOUND
    assert read(noise(5, shape), [PUBLIC_KEY, KEY]) == NOT_FOUND


def test_three_signs_in_five_are_enough_to_find_it() -> None:
    """Which a share of the variance of 0.1 leaves; of 0.002 it is one more than half in a hundred."""
    coded = NoiseCoder(MAKER).coded(noise(1), [1])
    for seed in range(2):
        assert read(mixed(coded, 0.1, seed), [PUBLIC_KEY]).payload == "ab"
        assert read(mixed(coded, 0.002, seed), [PUBLIC_KEY]) == NOT_FOUND


def test_it_is_distributed_as_it_was() -> None:
    """Over seeds: mean, spread, kurtosis, neighbours and channels are those of independent normals."""
    coder = NoiseCoder(MAKER)
    drawn = np.concatenate([coder.coded(noise(seed), [seed]) for seed in range(200)])
    assert drawn.mean() == pytest.approx(0.0, abs=5 / math.sqrt(drawn.size))
    assert drawn.std() == pytest.approx(1.0, abs=0.005)
    assert np.mean(drawn**4) == pytest.approx(3.0, abs=0.06)
    most = 5 / math.sqrt(drawn.size)
    for along in (1, 2, 3):
        assert abs(np.mean(drawn * np.roll(drawn, 1, axis=along))) < most
    each = np.abs(drawn.mean(axis=0)).max()  # no number has a sign of its own
    assert each < 5.5 / math.sqrt(200)
    signs = np.sign(drawn[:30]).reshape(30, -1)
    assert np.abs(signs @ signs.T / CELLS - np.eye(30)).max() < 6 / math.sqrt(CELLS)  # nor are two pictures' alike


def test_a_seed_keeps_its_nonce_and_seeds_differ() -> None:
    found = [nonce_of(KEY, seed, CELLS) for seed in range(500)]
    assert found == [nonce_of(KEY, seed, CELLS) for seed in range(500)]
    assert all(0 <= each < CELLS << NONCE_BITS for each in found)
    assert max(found) > CELLS << NONCE_BITS - 1
    assert len(set(found)) > 495
    assert nonce_of(PUBLIC_KEY, 3, CELLS) != nonce_of(KEY, 3, CELLS)


def test_a_picture_of_a_batch_is_coded_as_alone() -> None:
    drawn = noise_source("philox", [4, 5]).draw((2, 4, 32, 32))
    coded = NoiseCoder(MAKER).coded(drawn, [4, 5])
    assert np.array_equal(coded[1:], NoiseCoder(MAKER).coded(drawn[1:], [5]))


def test_chance_is_bounded_whatever_the_numbers_are() -> None:
    """Of random signs over numbers of any kind: how often a sum of squares gets so high, beside what is claimed."""
    random = np.random.default_rng(0)
    for values in (np.ones(256), random.standard_cauchy(256).clip(-2, 2), np.r_[np.ones(3), np.zeros(253)]):
        signs = random.integers(0, 2, (20_000, 256), np.int8) * np.float32(2) - np.float32(1)
        scores = signs @ values / np.linalg.norm(values)
        for score in (1.0, 1.7, 2.5, 3.5):
            assert np.mean(scores >= score) <= chance_of(score)
    assert chance_of(0.0) == 1.0
    least = MOST_FALSE_ALARMS / (STREAMS * CELLS)
    assert chance_of(7.6) < least < chance_of(7.5)  # what a picture of postcard's has to score


def test_pictures_without_it_score_as_chance_has_it() -> None:
    """Of estimates that are no noise at all, each by another key: the highest of 4 million scores is a Gaussian's."""
    from tintype.trust.coded_noise import _matches

    random, highest = np.random.default_rng(2), []
    for number in range(10):
        slow = np.cumsum(np.cumsum(random.standard_normal((4, 16, 16)), axis=1), axis=2).astype(np.float32)
        highest += [max(_matches(slow.reshape(-1), b"key %d" % number))[0]]
    assert min(highest) > 4.3
    assert max(highest) < 6.9


def test_a_damaged_estimate_says_nothing() -> None:
    for values in (np.zeros((1, 4, 32, 32), np.float32), np.ones((1, 4, 32, 32), np.float32), noise(1, (4, 8, 8))):
        assert not read(values, [PUBLIC_KEY]).found


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return tintype.open_bundle("postcard").manifest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": photograph(1, (128, 128))}, "image contradict"),
        ({"latents": noise(1)}, "latents contradict"),
        ({"hires": 2.0}, "hires contradict"),
        ({"refiner_start": 0.8}, "refiner_start contradict"),
        ({"width": 16, "height": 64}, "too small"),
        ({"sampler": "ddim", "eta": 0.5}, "eta 0.5 contradict"),
        ({"code_noise": 1}, "true or false"),
        *(({"sampler": name}, f"the sampler {name} contradict") for name in sorted(RENOISING)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_not_be_read_again_is_refused(manifest: Manifest, fields: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        resolve(Request(**{"prompt": PROMPT, "code_noise": True, **fields}), manifest)  # type: ignore[arg-type]
    assert caught.value.fix


def test_a_bundle_without_an_encoder_is_refused(manifest: Manifest) -> None:
    graphs = {role: each for role, each in manifest.graphs.items() if role != "vae_encoder"}
    bare = dataclasses.replace(manifest, graphs=graphs)
    assert resolve(Request(prompt=PROMPT), bare).code_noise is False
    with pytest.raises(RequestError, match="no VAE encoder"):
        resolve(Request(prompt=PROMPT, code_noise=True), bare)


def test_those_that_are_refused_are_those_that_draw_on_their_way() -> None:
    config = SchedulerConfig.from_json({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})

    class Counted:
        draws = 0

        def draw(self, shape: Sequence[int]) -> np.ndarray:
            self.draws += 1
            return np.zeros(shape, np.float32)

    drawing = set()
    for name, sampler in SAMPLERS.items():
        source, start = Counted(), np.ones((1, 1, 2, 2), np.float32)
        for _ in sampler(
            lambda latents, sigma, timestep: Denoised.unguided(latents * 0.5), start,
            make_schedule(config, name, 20), source,
        ):  # fmt: skip
            pass
        if source.draws:
            drawing.add(name)
    assert drawing | {"tcd"} == RENOISING  # that draws by its usual eta


def test_others_are_taken(manifest: Manifest) -> None:
    for name in sorted(set(SAMPLERS) - RENOISING):
        asked = Request(prompt=PROMPT, code_noise=True, sampler=name, sigmas="trailing" if name == "euler" else None)
        known = resolve(asked, manifest)
        assert known.code_noise
        demand_resolved(known, manifest)
    assert LEAST_CODED_CELLS == 4 * (64 // 4) * (64 // 4)


@pytest.fixture(scope="module")
def postcard() -> Iterator[tintype.Pipeline]:
    """Of one installation wherever tests run, as how well its noise is found differs from picture to picture."""
    with pytest.MonkeyPatch.context() as patch, tintype.load("postcard", provider="cpu") as pipeline:
        patch.setattr("tintype.trust.chosen.maker_of", lambda folder: MAKER)
        yield pipeline


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


@pytest.mark.slow
@pytest.mark.long
def test_pictures_that_begin_so_are_found_and_made_again(
    postcard: tintype.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = postcard.generate(PROMPT, code_noise=True, count=2, batch_size=2, watermark=False, **FIELDS)
    plain = postcard.generate(PROMPT, watermark=False, **FIELDS)
    facts = both.records[1].coded_noise
    assert facts is not None
    assert plain.record.coded_noise is None
    assert facts.nonce == nonce_of(PUBLIC_KEY, 8, CELLS)
    record = parse_record(both.records[1].texts()["tintype"])
    assert record == both.records[1]
    monkeypatch.setattr("tintype.trust.chosen.maker_of", lambda folder: 0x123456)  # another installation
    again = postcard.reproduce(record)
    monkeypatch.undo()
    assert again.image.tobytes() == both.images[1].tobytes()
    assert again.record.coded_noise == facts
    path, other = both.save(tmp_path / "coded.png")[0], plain.save(tmp_path / "plain.png")[0]
    found, nothing = (tintype.verify(each, pipeline=postcard).coded_noise for each in (path, other))
    assert found is not None
    assert (found.found, found.payload) == (True, f"{postcard.marker.maker & 0xFF:02x}")
    assert nothing == NOT_FOUND
    assert tintype.verify(path).coded_noise is None
    done = CliRunner().invoke(verify, [str(path), "--model", "postcard", "--json"])
    assert done.exit_code == 0
    told = json.loads(done.output)["coded_noise"]
    assert (told["found"], told["key"]) == (True, "public")


def test_an_operators_key_hides_the_word(postcard: tintype.Pipeline, key: Path) -> None:
    with tintype.load("postcard", provider="cpu", watermark_key=key) as pipeline:
        theirs = pipeline.generate(PROMPT, code_noise=True, watermark=False, **FIELDS)
    assert postcard.read_coded_noise(theirs.image) == NOT_FOUND
    found = postcard.read_coded_noise(theirs.image, [PUBLIC_KEY, KEY])
    assert (found.found, found.key) == (True, key_name(KEY))
    with pytest.raises(RecordError, match="coded by another key"):
        postcard.reproduce(theirs.record)


def test_a_record_that_does_not_say_whose_is_refused(postcard: tintype.Pipeline) -> None:
    text = postcard.generate(PROMPT, code_noise=True, num_inference_steps=1, seed=7).record.texts()["tintype"]
    value = json.loads(text)
    for wrong in (None, {**value["coded_noise"], "payload": "\x1b[2J"}, {**value["coded_noise"], "payload": "fff"}):
        with pytest.raises(RecordError, match="no payload"):
            postcard.reproduce(parse_record(json.dumps({**value, "coded_noise": wrong})))
    old = {**value, "request": {**value["request"], "code_noise": False}}
    del old["coded_noise"], old["request"]["code_noise"]
    assert postcard.reproduce(parse_record(json.dumps(old))).record.coded_noise is None


def test_a_picture_of_another_size_is_not_looked_into(postcard: tintype.Pipeline) -> None:
    from PIL import Image

    assert postcard.read_coded_noise(Image.new("RGB", (130, 128))) == NOT_FOUND
    assert postcard.read_coded_noise(Image.new("RGB", (48, 48))) == NOT_FOUND
