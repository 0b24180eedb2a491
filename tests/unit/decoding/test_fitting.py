"""Fitting: texts become the tokens they occur in, and what a model does not have is refused."""

from dataclasses import replace

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.decoding.fitting import fit_to_model
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.text_tokenizer import TextTokenizer

DRY = SamplingParams(dry_multiplier=0.8)


def test_breakers_are_all_tokens_with_the_text_and_the_control_tokens(
    qwen3_tokenizer: TextTokenizer,
) -> None:
    fitted = fit_to_model(DRY, qwen3_tokenizer, vocab_size=151_936)
    breakers = set(fitted.dry_sequence_breakers)
    for text in ("a\n", "a\n\n", 'say: "', "a**"):
        assert qwen3_tokenizer.encode(text)[-1] in breakers
    assert not breakers.intersection(qwen3_tokenizer.encode("It scatters more at sunset."))
    assert breakers.issuperset(qwen3_tokenizer.added_tokens.values())
    Sampler(fitted)
    assert fit_to_model(fitted, qwen3_tokenizer, vocab_size=151_936) == fitted


def test_ids_and_texts_beyond_ascii_may_be_mixed(qwen3_tokenizer: TextTokenizer) -> None:
    params = replace(DRY, dry_sequence_breakers=(17, "。", "ß"))
    breakers = set(fit_to_model(params, qwen3_tokenizer, vocab_size=151_936).dry_sequence_breakers)
    ends = {qwen3_tokenizer.encode(text)[-1] for text in ("你好。", "ß")}
    assert breakers.issuperset({17, *ends})


def test_without_dry_nothing_is_looked_up(qwen3_tokenizer: TextTokenizer) -> None:
    params = SamplingParams()
    assert fit_to_model(params, qwen3_tokenizer, vocab_size=151_936) is params


def test_what_the_model_does_not_have_is_refused(qwen3_tokenizer: TextTokenizer) -> None:
    with pytest.raises(UsageError, match="banned_token_ids holds the token id 151,936"):
        banned = SamplingParams(banned_token_ids=[151_936])
        fit_to_model(banned, qwen3_tokenizer, vocab_size=151_936)
    with pytest.raises(UsageError, match="in no single token"):
        long = replace(DRY, dry_sequence_breakers=["no token is as long as this"])
        fit_to_model(long, qwen3_tokenizer, vocab_size=151_936)
