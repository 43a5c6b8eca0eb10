"""`tintype generate --embedding`: a picture, the same again from its record, and what is wrong with the rest."""

from __future__ import annotations

from embeddings import vectors, write


def test_a_picture_is_made_again_with_the_files_that_it_was_made_with(command, tmp_path):
    given = [write(tmp_path / f"{name}.safetensors", emb_params=vectors(2, 128, 1)) for name in ("wobble", "odd-one")]
    options = [word for path in given for word in ("--embedding", path)]
    made, again = tmp_path / "made.png", tmp_path / "again.png"
    drawn = command(
        "generate", "a (wobble:1.2) sailboat", "--negative-prompt", "odd-one", "--seed", 7, "--num-inference-steps", 2,
        *options, "-o", made,
    )  # fmt: skip
    assert drawn.code == 0, drawn.stderr
    assert "stands in no prompt" not in drawn.stderr
    assert command("generate", "--from-record", made, *options, "-o", again).code == 0
    assert again.read_bytes() == made.read_bytes()
    missing = command("generate", "--from-record", made, *options[:2], "-o", again)
    missing.assert_one_clear_error(1, "'odd-one'", "--embedding FILE")


def test_a_pickle_is_refused_with_the_command_that_converts_it(command, tmp_path):
    (tmp_path / "old.pt").write_bytes(b"PK\x03\x04")
    refused = command("generate", "a boat", "--embedding", tmp_path / "old.pt", "-o", tmp_path / "x.png")
    refused.assert_one_clear_error(2, "old.pt is a pickle", "python -c", "emb_params")


def test_a_plan_counts_what_the_text_encoder_takes_beside(command, tmp_path):
    given = write(tmp_path / "wobble.safetensors", emb_params=vectors(2, 128, 1))
    assert command("plan", "--embedding", given, "--no-build").code == 0
    refused = command("plan", "--embedding", tmp_path / "none.safetensors", "--no-build")
    refused.assert_one_clear_error(2, "none.safetensors cannot be read")
