"""Makes sampling settings fit one model: its vocabulary and what its tokens say.

Settings may name tokens by their text; the sampler knows ids only. This is done once per
answer, before any prompt is computed, so a token that does not exist is refused in time.
"""

from dataclasses import replace

from qwen_edge.errors import UsageError
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.text_tokenizer import TextTokenizer


def fit_to_model(
    params: SamplingParams, tokenizer: TextTokenizer, *, vocab_size: int
) -> SamplingParams:
    """Return the settings with ids in the place of texts, checked against a model.

    Args:
        params: Settings; returned as they are where there is nothing to do.
        tokenizer: The model's.
        vocab_size: Length of the model's logits.

    Raises:
        UsageError: A token id is beyond the vocabulary, or a sequence breaker occurs in no
            token.
    """
    params.check_vocabulary(vocab_size)
    if params.dry_multiplier == 0.0:
        return params
    # Without the control tokens, the end of an answer would count as a repetition.
    breakers = set(tokenizer.added_tokens.values())
    for item in params.dry_sequence_breakers:
        breakers.update([item] if isinstance(item, int) else _find_ids(item, tokenizer))
    return replace(params, dry_sequence_breakers=sorted(breakers))


def _find_ids(text: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Return the ids of the tokens in which a text occurs."""
    token_ids = tokenizer.tokens_with(text)
    if not token_ids:
        raise UsageError(
            f"dry_sequence_breakers holds {text!r}, which is in no single token of this model.",
            "give a shorter text, such as one character",
            field="dry_sequence_breakers",
            value=text,
        )
    return token_ids
