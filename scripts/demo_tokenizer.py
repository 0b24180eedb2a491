"""The `demo` model's tokenizer: how it is trained, and how samples become ids and labels.

Owns Qwen3's tokenizer form (byte-level BPE, single digits, added tokens last) with a small
vocabulary of its own. It needs no torch and does not know the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_conversations import Sample
from demo_package import MAX_CONTEXT_TOKENS, write_json
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

IGNORED_LABEL = -100  # torch.nn.functional.cross_entropy's own ignore_index
# Qwen3's tokenizer.json; digits stand alone because \p{N} has no repetition.
PRE_TOKEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def added_tokens(tokenizer_config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return Qwen3's added tokens in the order of their ids."""
    decoder = tokenizer_config["added_tokens_decoder"]
    return [decoder[token_id] for token_id in sorted(decoder, key=int)]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, added: list[dict[str, Any]]
) -> Tokenizer:
    """Return a byte-level BPE tokenizer in Qwen3's form.

    Args:
        texts: Rendered conversations.
        vocab_size: Size with the added tokens, which come last as in Qwen3.
        added: Entries of `added_tokens_decoder`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    marks = re.compile("|".join(re.escape(token["content"]) for token in added))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    parts = (part for text in texts for part in marks.split(text) if part)
    tokenizer.train_from_iterator(parts, trainer)
    for token in added:
        flags = {key: value for key, value in token.items() if key != "content"}
        entry = AddedToken(token["content"], **flags)
        (tokenizer.add_special_tokens if token["special"] else tokenizer.add_tokens)([entry])
    assert tokenizer.get_vocab_size() == vocab_size, "the conversations gave too few merges"
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, tokenizer_config: dict[str, Any]) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` with the new token ids."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = added_tokens(tokenizer_config)
    decoder = {str(tokenizer.token_to_id(token["content"])): token for token in tokens}
    config = tokenizer_config | {
        "added_tokens_decoder": decoder,
        "model_max_length": MAX_CONTEXT_TOKENS,
    }
    write_json(folder / "tokenizer_config.json", config)


@dataclass(frozen=True)
class Encoded:
    """Token ids of a sample and, for each, the label one position later or `IGNORED_LABEL`."""

    task: str
    token_ids: list[int]
    labels: list[int]


def encode(tokenizer: Tokenizer, sample: Sample) -> Encoded:
    """Tokenize a sample; only what the model writes gets labels.

    Args:
        tokenizer: The model's own.
        sample: Earlier answers are learned from their second token on: the first one follows
            no `<think>` block, which never happens when the model writes.
    """
    token_ids: list[int] = []
    wanted: list[bool] = []
    start = 0
    for begin, end in sample.history:
        asked = tokenizer.encode(sample.prompt[start:begin]).ids
        told = tokenizer.encode(sample.prompt[begin:end]).ids
        token_ids += asked + told
        wanted += [False] * (len(asked) + 1) + [True] * (len(told) - 1)
        start = end
    asked = tokenizer.encode(sample.prompt[start:]).ids
    told = tokenizer.encode(sample.expected).ids
    token_ids += asked + told
    wanted += [False] * len(asked) + [True] * len(told)
    labels = [
        token_id if is_wanted else IGNORED_LABEL
        for token_id, is_wanted in zip(token_ids, wanted, strict=True)
    ]
    return Encoded(sample.task, token_ids, [*labels[1:], IGNORED_LABEL])
