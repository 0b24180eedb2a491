"""How far settings move what a model says: KL of its next-token distributions to the reference.

The reference is the same model with the most exact arithmetic of the device. Both read the same
texts in the same calls: a prompt in one go, then groups of tokens, then single ones, as prompts,
guesses and answers do, since each runs other kernels. Whatever prefill wrote into the cache with
the setting on is what the later tokens see.

KL measures a distance between two distributions, not quality, and of random weights it says
nothing about a trained model: `Reference.is_untrained` tells them by how badly they predict text
and how unsure they are of their own answers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime.backends.backend import Backend, LogitsRows

LogProbs = npt.NDArray[np.float32]
"""float32 [positions, vocab_size]."""

_GROUP_TOKENS = 16
_NUM_GROUPS = 8
_NUM_SINGLE = 16
_MOST_TOKENS = 512
# Of the surprise of blind guessing. Trained models come to a quarter of it on text, random weights
# to all; a model trained on one task may fail at other texts, but is sure of its own answers.
_UNTRAINED_SHARE, _UNSURE_SHARE = 0.9, 0.25


@dataclass(frozen=True)
class Passage:
    """A text, and how it is fed.

    Args:
        token_ids: All of it.
        num_prompt: Tokens fed in one go at the beginning, at least 1.
        num_single: Tokens fed one by one at the end.
        num_own: Tokens at the end that the model itself wrote; it expects those.
    """

    token_ids: tuple[int, ...]
    num_prompt: int
    num_single: int
    num_own: int = 0


@dataclass(frozen=True)
class Reference:
    """What the model says with the most exact arithmetic.

    Args:
        log_probs: For each passage, after each scored position.
        surprises: For each passage, the mean surprise at what follows there and is not the
            model's own, in nats.
        own_surprise: At what it wrote itself; infinite where there is none.
    """

    log_probs: tuple[LogProbs, ...]
    surprises: tuple[float, ...]
    own_surprise: float

    @property
    def is_untrained(self) -> bool:
        """Whether nothing is predicted clearly better than by chance, as of random weights."""
        blind = math.log(self.log_probs[0].shape[1])
        return (
            min(self.surprises) >= _UNTRAINED_SHARE * blind
            and self.own_surprise >= _UNSURE_SHARE * blind
        )


@dataclass(frozen=True)
class Divergence:
    """How far settings moved the distributions; all in nats but `same_top`.

    Args:
        mean: Mean KL over the scored positions.
        upper: The mean and two standard errors: what is held against a budget.
        largest: Largest KL of a position.
        same_top: Share of positions whose likeliest token is the same.
        num_positions: How many were scored.
    """

    mean: float
    upper: float
    largest: float
    same_top: float
    num_positions: int


def make_passages(
    texts: Sequence[Sequence[int]],
    golden_prompt_ids: Sequence[int],
    golden_token_ids: Sequence[int],
    *,
    max_context_tokens: int,
) -> tuple[Passage, ...]:
    """Cut texts so that most of each is a prompt and the rest is scored.

    Args:
        texts: Token ids, joined into one long passage; what is too much falls off its front.
        golden_prompt_ids: The package's own prompt, in the form of a conversation.
        golden_token_ids: Its own answer to it.
        max_context_tokens: Most tokens that fit.
    """
    joined = [token_id for text in texts for token_id in text]
    joined = joined[-min(_MOST_TOKENS, max_context_tokens) :]
    num_scored = min(_NUM_GROUPS * _GROUP_TOKENS + _NUM_SINGLE, len(joined) - 1)
    passages = []
    if num_scored > 0:
        num_single = min(_NUM_SINGLE, num_scored)
        passages.append(Passage(tuple(joined), len(joined) - num_scored, num_single))
    golden = (*golden_prompt_ids, *golden_token_ids)
    if golden_prompt_ids and len(golden) <= max_context_tokens:
        num_own = len(golden_token_ids)
        passages.append(Passage(golden, len(golden_prompt_ids), num_own, num_own))
    return tuple(passages)


def read_reference(backend: Backend, passages: Sequence[Passage]) -> Reference:
    """Return what a model says after each scored position of some texts.

    Args:
        backend: With the most exact arithmetic; its cache is emptied and filled.
        passages: At least one.
    """
    log_probs = tuple(_read(backend, passage) for passage in passages)
    surprises, own = [], [math.inf]
    for passage, rows in zip(passages, log_probs, strict=True):
        # The row after the last token has nothing to be compared with.
        following = passage.token_ids[len(passage.token_ids) - len(rows) + 1 :]
        found = -rows[np.arange(len(following)), list(following)]
        num_given = len(following) - passage.num_own
        surprises.append(float(found[:num_given].mean()))
        if passage.num_own:
            own.append(float(found[num_given:].mean()))
    return Reference(log_probs, tuple(surprises), min(own))


def measure_divergence(
    backend: Backend, passages: Sequence[Passage], reference: Reference
) -> Divergence:
    """Return how far a model with other settings is from the reference.

    Args:
        backend: The same model with other settings; its cache is emptied and filled.
        passages: Those of the reference.
        reference: What `read_reference` returned.
    """
    distances, is_same = [], []
    for passage, expected in zip(passages, reference.log_probs, strict=True):
        found = _read(backend, passage)
        distances.append(_find_kl(expected, found))
        is_same.append(expected.argmax(axis=1) == found.argmax(axis=1))
    return summarise(np.concatenate(distances), np.concatenate(is_same))


def summarise(distances: npt.NDArray[np.float64], is_same: npt.NDArray[np.bool_]) -> Divergence:
    """Return the figures of KL by position.

    Args:
        distances: [positions].
        is_same: [positions], whether the likeliest token is the same.
    """
    mean, count = float(distances.mean()), distances.size
    error = float(distances.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    return Divergence(
        mean=mean,
        upper=mean + 2 * error,
        largest=float(distances.max()),
        same_top=float(is_same.mean()),
        num_positions=count,
    )


def _find_kl(expected: LogProbs, found: LogProbs) -> npt.NDArray[np.float64]:
    """Return KL(expected, found) by row; rounding can make it no less than 0."""
    result = np.empty(len(expected))
    for index, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        terms = np.exp(wanted, dtype=np.float64) * (wanted.astype(np.float64) - got)
        result[index] = max(float(terms.sum()), 0.0)
    return result


def _read(backend: Backend, passage: Passage) -> LogProbs:
    """Feed one passage; return log probabilities after each scored position."""
    backend.reset()
    parts = [log_softmax(rows).astype(np.float32) for rows in _feed(backend, passage)]
    return np.concatenate(parts)


def _feed(backend: Backend, passage: Passage) -> Iterator[LogitsRows]:
    ids = passage.token_ids
    most = min(_GROUP_TOKENS, backend.max_scored_tokens)
    prompt = ids[: passage.num_prompt]
    yield backend.forward_scored(prompt, num_scored=min(most, len(prompt)))
    single_from = len(ids) - passage.num_single
    for start in range(passage.num_prompt, single_from, most):
        group = ids[start : min(start + most, single_from)]
        yield backend.forward_scored(group, num_scored=len(group))
    for token_id in ids[single_from:]:
        yield backend.forward_scored((token_id,), num_scored=1)


def log_softmax(logits: LogitsRows) -> npt.NDArray[np.float64]:
    """Return log probabilities, float64 [rows, vocab_size]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide
