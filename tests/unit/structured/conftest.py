"""Fixtures: compilers for a small and for the real tokenizer, and a model that knows nothing."""

from collections.abc import Callable

import numpy as np
import pytest

from qwen_edge.runtime.decoding.constraint import unpack_mask
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.structured import Grammar, GrammarCompiler
from qwen_edge.runtime.text_tokenizer import TextTokenizer

QWEN3_VOCAB_SIZE = 151_936  # of the models; the tokenizer has 151,669 tokens


@pytest.fixture(scope="session")
def byte_tokenizer() -> TextTokenizer:
    """Return a tokenizer with a token for each byte and Qwen3's control tokens."""
    return make_fake_tokenizer()


@pytest.fixture(scope="session")
def compiler(byte_tokenizer: TextTokenizer) -> GrammarCompiler:
    """Return a compiler for the byte tokenizer; opens in milliseconds."""
    control = byte_tokenizer.added_tokens
    return GrammarCompiler(
        byte_tokenizer,
        vocab_size=byte_tokenizer.vocab_size + 5,
        eos_token_ids=(control["<|im_end|>"], control["<|endoftext|>"]),
    )


@pytest.fixture(scope="session")
def qwen3_compiler(qwen3_tokenizer: TextTokenizer) -> GrammarCompiler:
    """Return a compiler for Qwen3; opens in about two seconds, once."""
    control = qwen3_tokenizer.added_tokens
    return GrammarCompiler(
        qwen3_tokenizer,
        vocab_size=QWEN3_VOCAB_SIZE,
        eos_token_ids=(control["<|im_end|>"], control["<|endoftext|>"]),
    )


@pytest.fixture(scope="session")
def answer_blindly() -> Callable[..., list[int]]:
    """Return a function that answers by a grammar as a model of random weights would.

    Its arguments: a grammar, the vocabulary's size, the ids that end an answer, the most tokens
    and a seed. It returns all ids, the end included if it came.
    """

    def answer(
        grammar: Grammar, vocab_size: int, eos_ids: tuple[int, ...], max_tokens: int, seed: int
    ) -> list[int]:
        random = np.random.default_rng(seed)
        constraint = grammar.start()
        token_ids: list[int] = []
        while len(token_ids) < max_tokens and not (token_ids and token_ids[-1] in eos_ids):
            remaining = max_tokens - len(token_ids)
            new_ids = list(constraint.forced(remaining))[:remaining]
            if not new_ids:
                allowed = unpack_mask(constraint.mask(remaining), vocab_size)
                new_ids = [int(random.choice(np.flatnonzero(allowed)))]
            for token_id in new_ids:
                constraint.advance(token_id)
            token_ids += new_ids
        return token_ids

    return answer
