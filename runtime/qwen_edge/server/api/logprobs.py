"""Log-probabilities of tokens, in the forms of the chat and the completion interface."""

from collections.abc import Callable, Iterable, Sequence

from qwen_edge.runtime.decoding.sampling import TokenLogprobs
from qwen_edge.runtime.events import Event

TokenBytes = Callable[[int], bytes]
ScoredToken = tuple[int, TokenLogprobs | None]
"""An id, and how likely it was; None where it was the only one possible."""


def score_tokens(event: Event, token_bytes: TokenBytes) -> list[ScoredToken]:
    """Return the tokens of an event's text with how likely they were.

    Tags and the line breaks of the template that came before the text are left out.

    Args:
        event: With text.
        token_bytes: Id to bytes; empty for control tokens.
    """
    scores = event.logprobs or (None,) * len(event.token_ids)
    missing = len(event.text.encode("utf-8"))
    tokens: list[ScoredToken] = []
    for token_id, score in zip(reversed(event.token_ids), reversed(scores), strict=True):
        if missing <= 0:
            break
        missing -= len(token_bytes(token_id))
        tokens.append((token_id, score))
    return tokens[::-1]


def write_chat_logprobs(
    tokens: Iterable[ScoredToken], token_bytes: TokenBytes
) -> list[dict[str, object]]:
    """Return `logprobs.content`: one entry for each token.

    Args:
        tokens: Of the answer's text.
        token_bytes: Id to bytes; empty for control tokens.
    """
    return [
        {
            **_write_token(token_id, _logprob(scores), token_bytes),
            "top_logprobs": [
                _write_token(other, logprob, token_bytes)
                for other, logprob in (scores.top if scores else ())
            ],
        }
        for token_id, scores in tokens
    ]


def write_completion_logprobs(
    tokens: Sequence[ScoredToken], token_bytes: TokenBytes, start: int = 0
) -> dict[str, object]:
    """Return `logprobs` of a completion: lists side by side.

    Args:
        tokens: Of the answer's text.
        token_bytes: See `write_chat_logprobs`.
        start: Characters before the first of them.
    """
    texts = [_show(token_bytes(token_id)) for token_id, _ in tokens]
    offsets, position = [], start
    for text in texts:
        offsets.append(position)
        position += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_logprob(scores) for _, scores in tokens],
        "top_logprobs": [
            {_show(token_bytes(other)): logprob for other, logprob in scores.top} if scores else {}
            for _, scores in tokens
        ],
        "text_offset": offsets,
    }


def _write_token(token_id: int, logprob: float, token_bytes: TokenBytes) -> dict[str, object]:
    content = token_bytes(token_id)
    return {"token": _show(content), "logprob": logprob, "bytes": list(content)}


def _logprob(scores: TokenLogprobs | None) -> float:
    """Return the logarithm of a probability: 1 for a token that was the only one possible."""
    return scores.logprob if scores else 0.0


def _show(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")
