"""A CLIP tokenizer with a vocabulary of our own: byte-level BPE, so any script or emoji has ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], folder: Path, *, merges: int = 600, max_tokens: int = 77) -> None:
    """Learn `merges` merges from captions and save a `CLIPTokenizer` (vocab.json, merges.txt, …) into folder.

    The vocabulary has CLIP's form: 256 bytes, the same with an end-of-word mark, the merges, then BOS and EOS;
    EOS pads, as in Stable Diffusion 1.x.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:merges]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *dict.fromkeys("".join(pair) for pair in learned), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=learned, bos_token=BOS, eos_token=EOS, pad_token=EOS, unk_token=EOS,
        model_max_length=max_tokens,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    # The two files that older readers look for; tokenizer.json holds the same.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in learned))
