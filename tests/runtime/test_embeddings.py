"""Textual inversion in pictures: as diffusers draws with the same files; recorded, within a budget, refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from embeddings import XL_WIDTHS, vectors, write
from low_precision import fp16_bundle
from pictures import psnr_db

import tintype
from tintype.bundle.bundle import embedded_folder
from tintype.errors import MemoryBudgetError, RecordError, RequestError
from tintype.files import sha256_of
from tintype.sampling import noise_source
from tintype.sources.embedding import read_embedding

__all__ = ["fp16_bundle"]  # the fixture
SEED = 7
ASKED: dict[str, Any] = {
    "seed": SEED, "num_inference_steps": 6, "width": 64, "height": 64, "sampler": "euler", "exactness": "exact",
    "noise": "torch-cpu",
}  # fmt: skip
PROMPT = "a red wobble sailboat on a calm sea, <cat-toy>"
NEGATIVE = "snow, <cat-toy>"
DIFFUSERS_WARNS = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # with numpy 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A1111's form with several vectors, and diffusers' with one."""
    folder = tmp_path_factory.mktemp("embeddings")
    return [
        write(folder / "wobble.safetensors", emb_params=vectors(3, 64, 1)),
        write(folder / "learned_embeds.safetensors", **{"<cat-toy>": vectors(1, 64, 2)[0]}),
    ]


@pytest.fixture(scope="module")
def xl_files(tmp_path_factory):
    """A1111's form for both encoders at once, and diffusers' with a file for each."""
    folder = tmp_path_factory.mktemp("xl-embeddings")
    of_both = {name: vectors(3, width, 3) for name, width in XL_WIDTHS.items()}
    halves = [
        write(folder / f"learned_embeds_{width}.safetensors", **{"<cat-toy>": vectors(2, width, 4)})
        for width in XL_WIDTHS.values()
    ]
    return [write(folder / "wobble.safetensors", **of_both), *halves]


def drawn_by_diffusers(kind: str, checkpoint, load, *, guidance: float, **extra: Any) -> np.ndarray:
    import diffusers
    import torch

    pipe = getattr(diffusers, kind).from_pretrained(checkpoint, **extra)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    load(pipe)
    noise = torch.from_numpy(noise_source("torch-cpu", [SEED]).draw((1, 4, 16, 16)))
    made = pipe(
        PROMPT, negative_prompt=NEGATIVE, width=64, height=64, latents=noise, num_inference_steps=6,
        guidance_scale=guidance,
    )  # fmt: skip
    return np.asarray(made.images[0])


def assert_drawn_alike(pipeline, given, expected, guidance: float) -> None:
    asked = {**ASKED, "negative_prompt": NEGATIVE, "guidance_scale": guidance}
    made, without = pipeline.generate(PROMPT, **asked, embeddings=given), pipeline.generate(PROMPT, **asked)
    assert expected.std() > 5  # a grey picture would be near any other
    near = psnr_db(made.image, expected)
    print(f"{near:.1f} dB, without embeddings {psnr_db(without.image, expected):.1f}")
    assert near >= 50.0
    assert psnr_db(without.image, expected) < near - 8.0


@pytest.mark.reference
@DIFFUSERS_WARNS
def test_whole_pictures_are_those_of_diffusers(pipeline, tiny_checkpoint, files):
    def load(pipe):
        pipe.load_textual_inversion({"wobble": _torch(vectors(3, 64, 1))}, token="wobble")
        pipe.load_textual_inversion(str(files[1].parent), weight_name=files[1].name)

    expected = drawn_by_diffusers("StableDiffusionPipeline", tiny_checkpoint, load, guidance=7.5, safety_checker=None)
    assert_drawn_alike(pipeline, files, expected, 7.5)


@pytest.mark.reference
@DIFFUSERS_WARNS
def test_whole_pictures_of_xl_are_those_of_diffusers(xl, xl_checkpoint, xl_files):
    def load(pipe):
        for count, seed, token in ((3, 3, "wobble"), (2, 4, "<cat-toy>")):
            for width, number in zip(XL_WIDTHS.values(), ("", "_2"), strict=True):
                text_encoder, tokenizer = getattr(pipe, f"text_encoder{number}"), getattr(pipe, f"tokenizer{number}")
                pipe.load_textual_inversion(
                    {token: _torch(vectors(count, width, seed))}, token=token, text_encoder=text_encoder,
                    tokenizer=tokenizer,
                )  # fmt: skip

    expected = drawn_by_diffusers("StableDiffusionXLPipeline", xl_checkpoint, load, guidance=5.0, add_watermarker=False)
    assert_drawn_alike(xl, xl_files, expected, 5.0)


def _torch(array):
    import torch

    return torch.from_numpy(array)


@pytest.fixture(scope="module")
def stored(tiny_bundle, request):
    """By precision a bundle, and the rows of its text encoder's table, as it stores them."""
    import onnx_ir as ir

    def made(precision: str):
        folders = {
            "fp32": lambda: tiny_bundle,
            "fp16": lambda: request.getfixturevalue("fp16_bundle"),
            "int8": lambda: embedded_folder("postcard"),
        }
        folder = folders[precision]()
        initializers = ir.load(folder / "text_encoder/model.onnx").graph.initializers
        (table,) = (value for name, value in initializers.items() if "token_embedding" in str(name))
        return folder, table.const_value.numpy().astype(np.float32)

    return made


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_word_of_a_tables_own_rows_draws_what_those_words_do(stored, tmp_path, precision):
    folder, table = stored(precision)
    with tintype.load(folder, provider="cpu", threads=1) as pipeline:
        ids = [*pipeline.model.tokenizers()["text_encoder"].ids("red sailboat")]
        given = write(tmp_path / "wobble.safetensors", emb_params=table[ids])
        said, meant = "a (Wobble:1.3) on the sea", "a (red sailboat:1.3) on the sea"
        made = pipeline.generate(said, negative_prompt="snow, wobble", **ASKED, embeddings=[given])
        plain = pipeline.generate(meant, negative_prompt="snow, red sailboat", **ASKED)
        other = pipeline.generate(said, negative_prompt="snow, wobble", **ASKED)
    assert np.array_equal(made.latents, plain.latents)
    assert not np.array_equal(made.latents, other.latents)
    assert made.record.made_with.builds["denoiser"] == plain.record.made_with.builds["denoiser"]
    assert made.record.made_with.builds["text_encoder"] != plain.record.made_with.builds["text_encoder"]
    assert other.record.made_with == plain.record.made_with  # without embeddings: the very builds


def test_files_change_between_pictures_without_another_build(pipeline, files, tmp_path):
    """As long as they fit the rows that a text encoder was built for, and whatever they hold."""
    records = [
        pipeline.generate(PROMPT, **ASKED, embeddings=given).record
        for given in (files, [write(tmp_path / "wobble.safetensors", emb_params=vectors(8, 64, 5))], files[:1])
    ]
    assert len({record.made_with.builds["text_encoder"] for record in records}) == 1
    assert [len(record.request.embeddings) for record in records] == [2, 1, 1]


@pytest.mark.parametrize("model", ["pipeline", "xl"])
def test_a_record_has_each_files_hash_and_is_made_again_byte_for_byte(request, tmp_path, model):
    opened, given = (request.getfixturevalue(name) for name in (model, "files" if model == "pipeline" else "xl_files"))
    made = opened.generate(PROMPT, **ASKED, embeddings=given, count=2)
    made.save(tmp_path / "x.png")
    record = tintype.read_record(tmp_path / "x-2.png")
    assert [each.sha256 for each in record.request.embeddings] == [sha256_of(path) for path in given]
    assert record.request.embeddings[0].word == "wobble"
    again = opened.reproduce(record, embeddings=given[::-1])  # in any order
    assert again.image.tobytes() == made.images[1].tobytes()
    with pytest.raises(RecordError, match="'<cat-toy>'") as refusal:
        opened.reproduce(record, embeddings=given[:1])
    assert "--embedding FILE" in refusal.value.fix
    with pytest.raises(RecordError, match="'wobble'"):
        opened.reproduce(record)
    another = write(tmp_path / "other.safetensors", emb_params=vectors(1, 64, 9))
    with pytest.raises(RecordError, match=r"without the embedding .*other\.safetensors"):
        opened.reproduce(record, embeddings=[*given, another])
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(given[0].read_bytes())
    with pytest.raises(RecordError, match="'wobble', which is called 'renamed' here"):
        opened.reproduce(record, embeddings=[renamed, *given[1:]])


@pytest.mark.long
def test_within_the_smallest_budget_it_is_the_same_picture(tiny_bundle, pipeline, files):
    asked = {**ASKED, "embeddings": files}
    with tintype.load(tiny_bundle, provider="cpu", memory="1MiB", threads=1) as bounded:
        with pytest.raises(MemoryBudgetError) as refusal:
            bounded.plan(PROMPT, **asked)
        bounded.memory = refusal.value.least_bytes
        assert bounded.plan(PROMPT, **asked).measured
        made = bounded.generate(PROMPT, **asked)
    assert psnr_db(made.image, pipeline.generate(PROMPT, **asked).image) >= 60.0


def test_a_refiner_reads_the_words_too(xl, xl_bundle, xl_files):
    with tintype.load(xl_bundle, provider="cpu", threads=1, refiner=xl_bundle) as both:
        made = both.generate(PROMPT, **ASKED, embeddings=xl_files, refiner_start=0.5)
    alone = xl.generate(PROMPT, **ASKED, embeddings=xl_files)
    assert psnr_db(made.image, alone.image) >= 60.0
    assert psnr_db(made.image, xl.generate(PROMPT, **ASKED).image) < 50.0


def test_one_that_no_prompt_names_is_told_of(pipeline, files):
    notes = pipeline.generate("a wobble", **ASKED, embeddings=files).record.notes
    assert any("'<cat-toy>' stands in no prompt" in note for note in notes)
    assert not any("'wobble'" in note for note in notes)


NAN = np.full((1, 64), np.nan, np.float32)
HALVES = {"clip_l": vectors(2, 32), "clip_g": vectors(2, 48)}


@pytest.mark.parametrize(
    ("model", "tensors", "words"),
    [
        ("pipeline", {"emb_params": vectors(1, 48)}, "vectors of 48 numbers, and this model takes 64"),
        ("pipeline", HALVES, "for Stable Diffusion XL"),
        ("pipeline", {"emb_params": NAN}, "NaN or infinity"),
        ("pipeline", {"emb_params": vectors(76, 64)}, "76 vectors, and fits no prompt"),
        ("pipeline", {"emb_params": np.zeros((0, 64), np.float32)}, "0 vectors of 64"),
        ("pipeline", {"emb_params": np.zeros((1, 1, 64), np.float32)}, "no vectors of a word"),
        ("pipeline", {"emb_params": np.zeros((1, 64), np.int32)}, "no vectors of a word"),
        ("pipeline", {"a": vectors(1, 64), "b": vectors(1, 64)}, "2 tensors (a, b)"),
        ("pipeline", {" ": vectors(1, 64)}, "which no prompt can hold"),
        ("xl", {"emb_params": vectors(1, 32)}, "nothing for this model's text_encoder_2"),
        ("xl", {"clip_l": vectors(1, 32)}, "nothing for this model's text_encoder_2"),
        ("xl", {**HALVES, "clip_g": vectors(3, 48)}, "2 of clip_l and 3 of clip_g"),
        ("xl", {"clip_l": vectors(2, 48), "clip_g": vectors(2, 32)}, "vectors of 48 numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(request, tmp_path, model, tensors, words):
    opened = request.getfixturevalue(model)
    given = write(tmp_path / "odd.safetensors", **tensors)
    with pytest.raises(RequestError) as refusal:
        opened.generate(PROMPT, **ASKED, embeddings=[given])
    assert words in refusal.value.message
    assert refusal.value.fix


def test_damaged_files_and_pickles_are_refused(pipeline, files, tmp_path):
    whole = files[0].read_bytes()
    for name, content, words in (
        ("cut.safetensors", whole[:-8], "is refused"),
        ("short.safetensors", whole[:4], "too few for a header"),
        ("lies.safetensors", whole.replace(b'"shape":[3,64]', b'"shape":[9,64]'), "is refused"),
        ("zip.safetensors", b"PK\x03\x04" + bytes(64), "pickle"),
        ("old.pt", b"PK\x03\x04" + bytes(64), "is a pickle"),
        ("old.bin", whole, "is a pickle"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RequestError) as refusal:
            pipeline.generate(PROMPT, **ASKED, embeddings=[path])
        assert words in refusal.value.message
        assert ("python -c" in refusal.value.fix) == ("pickle" in words)
    for given, words in (
        ([tmp_path / "none.safetensors"], "none.safetensors cannot be read"),
        (tmp_path / "old.pt", "no list of files"),
        ([3], "int is no file"),
        ([files[0], files[0]], "two embeddings are called 'wobble'"),
        ([files[0]] * 65, "64 are the most"),
    ):
        with pytest.raises(RequestError, match=words):
            pipeline.generate(PROMPT, **ASKED, embeddings=given)


def test_the_command_that_a_pickle_is_refused_with_converts_it(pipeline, tmp_path):
    import subprocess
    import sys

    import torch

    torch.save({"string_to_param": {"*": torch.from_numpy(vectors(2, 64, 6))}, "name": "x"}, tmp_path / "IN")
    (tmp_path / "old.pt").write_bytes((tmp_path / "IN").read_bytes())
    with pytest.raises(RequestError) as refusal:
        pipeline.generate(PROMPT, **ASKED, embeddings=[tmp_path / "old.pt"])
    command = refusal.value.fix.partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    found = read_embedding(tmp_path / "OUT.safetensors")
    np.testing.assert_array_equal(found.vectors[""], vectors(2, 64, 6))


@pytest.mark.parametrize("kind", ["float16", "float64", "bfloat16"])
def test_any_float_is_read(tmp_path, kind):
    import torch
    from safetensors.torch import save_file

    known = torch.from_numpy(vectors(2, 64)).to(getattr(torch, kind))
    save_file({"emb_params": known}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read_embedding(tmp_path / "x.safetensors").vectors[""], known.float().numpy())
