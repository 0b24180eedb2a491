"""From next-token logits to a token id: the settings, and the one who draws.

What changes the scores is in `logit_processors.py`, what narrows the choice in
`logit_filters.py`; ranges are checked in `sampling_ranges.py`. The order of the steps and the
defaults are stated at `SamplingParams`. This module knows nothing of text or of the cache.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import ParityError, UsageError
from qwen_edge.runtime.decoding.constraint import Bitmask, unpack_mask
from qwen_edge.runtime.decoding.logit_filters import draw, filter_logits, indices_of_largest
from qwen_edge.runtime.decoding.logit_processors import MAX_REPETITION, LogitChanges
from qwen_edge.runtime.decoding.sampling_ranges import (
    MAX_COUNT,
    MAX_SEED,
    check_breakers,
    check_integer,
    check_number,
    read_logit_bias,
    read_token_ids,
)

_LEAST_TEMPERATURE = 1e-5  # below it vLLM is greedy too: `_SAMPLING_EPS`, v1/sample/sampler.py


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    The steps, in this order; each one is off at its default unless the default says otherwise:

    1. `logit_bias` is added;
    2. `repetition_penalty` on the tokens of prompt and answer;
    3. `presence_penalty` and `frequency_penalty` on the tokens of the answer;
    4. the DRY penalty on tokens that would continue a repetition;
    5. `banned_token_ids`, and what a grammar does not allow, are excluded;
    6. at temperature 0 the likeliest token is taken, the first one of equals. Otherwise
    7. `temperature` (0.6) divides, then `top_k` (20), `top_p` (0.95), `min_p` and `typical_p`
       narrow the choice, each to what the one before left, and
    8. one token is drawn with one random number.

    Args:
        temperature: In [0, 100]. 0, or less than 0.00001, is greedy: no filter, no draw.
        top_k: Keep the k likeliest tokens (ties with the k-th are kept). 0 keeps all.
        top_p: In (0, 1]. Keep the likeliest tokens until their sum reaches this. 1 keeps all.
        min_p: In [0, 1]. Keep tokens at least this likely relative to the likeliest. 0 keeps all.
        typical_p: In (0, 1]. Keep the tokens whose information is nearest to the expected one
            until their sum reaches this. 1 keeps all.
        repetition_penalty: In [0.1, 10]. Positive scores of tokens seen in prompt or answer are
            divided by it, negative ones multiplied. 1 does nothing.
        presence_penalty: In [-2, 2]. Taken from the scores of tokens that the answer holds.
        frequency_penalty: In [-2, 2]. The same, times how often the answer holds them.
        dry_multiplier: In [0, 100]. A token that would make a repetition of n tokens longer
            loses `dry_multiplier * dry_base ** (n - dry_allowed_length)`. 0 is off; 0.8 is usual.
        dry_base: In [1, 10].
        dry_allowed_length: In [1, 50]. Shorter repetitions cost nothing; longer ones than 50
            cost what 50 do.
        dry_range: How many of the last tokens of prompt and answer are searched. 0 takes all.
        dry_sequence_breakers: Token ids, or texts that stand for every token they occur in. No
            repetition reaches across one, and none is ever penalised. Control tokens are
            always among them.
        logit_bias: Token id → number in [-100, 100]; kept as sorted pairs.
        banned_token_ids: Tokens that must not come; kept sorted.
        seed: In [0, 2^64). Same seed, same logits: same tokens. None draws a fresh one.
        num_logprobs: In [0, 1000]. Report the chosen token's log-probability and those of this
            many of the likeliest. None reports nothing.
        stop_token_ids: Tokens that end the answer, besides the model's own; kept sorted.

    Raises:
        UsageError: A field is out of range, which the message names, or two contradict.

    Source:
        Defaults: model card of Qwen/Qwen3-4B, "Best Practices", thinking mode. Steps 1, 2, 5
        and 7 and their order: `GenerationMixin._get_logits_processor` of transformers 5.5.4.
        Step 3 and its place: vLLM's `v1/sample/sampler.py`. Step 4: p-e-w,
        oobabooga/text-generation-webui#5677; its place is that of llama.cpp.
    """

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    min_p: float = 0.0
    _: KW_ONLY
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0
    dry_sequence_breakers: Collection[int | str] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] | Collection[tuple[int, float]] = ()
    banned_token_ids: Collection[int] = ()
    seed: int | None = None
    num_logprobs: int | None = None
    stop_token_ids: Collection[int] = ()

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, low=0.0, high=100.0)
        check_integer("top_k", self.top_k, low=0, high=MAX_COUNT)
        check_number("top_p", self.top_p, low=0.0, high=1.0, keeps_tokens=True)
        check_number("min_p", self.min_p, low=0.0, high=1.0)
        check_number("typical_p", self.typical_p, low=0.0, high=1.0, keeps_tokens=True)
        check_number("repetition_penalty", self.repetition_penalty, low=0.1, high=10.0)
        check_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        check_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        check_number("dry_multiplier", self.dry_multiplier, low=0.0, high=100.0)
        check_number("dry_base", self.dry_base, low=1.0, high=10.0)
        check_integer("dry_allowed_length", self.dry_allowed_length, low=1, high=MAX_REPETITION)
        check_integer("dry_range", self.dry_range, low=0, high=MAX_COUNT)
        if self.seed is not None:
            check_integer("seed", self.seed, low=0, high=MAX_SEED)
        if self.num_logprobs is not None:
            check_integer("num_logprobs", self.num_logprobs, low=0, high=1_000)
        # Kept in one form, so that equal settings are equal, can be hashed and never change.
        kept = {
            "dry_sequence_breakers": check_breakers(self.dry_sequence_breakers),
            "logit_bias": read_logit_bias(self.logit_bias),
            "banned_token_ids": read_token_ids("banned_token_ids", self.banned_token_ids),
            "stop_token_ids": read_token_ids("stop_token_ids", self.stop_token_ids),
        }
        for field, value in kept.items():
            object.__setattr__(self, field, value)
        self._check_together()

    @property
    def is_greedy(self) -> bool:
        """Whether the token with the highest score is always taken."""
        return self.temperature < _LEAST_TEMPERATURE

    def for_answer(self, index: int) -> "SamplingParams":
        """Return the settings for one of several answers to a prompt: a seed of its own.

        Args:
            index: Which answer; 0 has the seed as it was given.
        """
        if self.seed is None or index == 0:
            return self
        return replace(self, seed=(self.seed + index) % (MAX_SEED + 1))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise UsageError for a token id that a model of this size does not have.

        Args:
            vocab_size: Length of the logits.
        """
        breakers = [item for item in self.dry_sequence_breakers if isinstance(item, int)]
        for field, token_ids in (
            ("logit_bias", list(dict(self.logit_bias))),
            ("banned_token_ids", self.banned_token_ids),
            ("stop_token_ids", self.stop_token_ids),
            ("dry_sequence_breakers", breakers),
        ):
            largest = max(token_ids, default=0)
            if largest >= vocab_size:
                raise UsageError(
                    f"{field} holds the token id {largest:,}; expected 0 to {vocab_size - 1:,}.",
                    "take ids from this model's tokenizer",
                    field=field,
                    value=largest,
                )

    def _check_together(self) -> None:
        """Raise UsageError for tokens that are banned and wanted."""
        banned = set(self.banned_token_ids)
        for field, token_ids in (
            ("logit_bias", dict(self.logit_bias)),
            ("stop_token_ids", self.stop_token_ids),
        ):
            both = sorted(banned.intersection(token_ids))
            if both:
                raise UsageError(
                    f"The token id {both[0]:,} is in {field} and in banned_token_ids, so it "
                    "could never come.",
                    "leave it out of one of the two",
                    field=field,
                    token_ids=both,
                )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the model found a chosen token, and which ones it found likeliest.

    Args:
        logprob: Natural logarithm of the chosen token's probability by the model's own logits:
            at temperature 1, before any penalty, ban, grammar or filter.
        top: `(token_id, logprob)` of the likeliest tokens, likeliest first, by the same measure.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        params: Checked settings.
        prompt_ids: What the answer follows, for settings that look back.

    Raises:
        UsageError: DRY is on and its sequence breakers are still texts; `fit_to_model` of
            `fitting.py` turns them into ids.

    State:
        Advances its random stream by one draw per token it samples, unless greedy, and
        remembers the tokens of the answer. A refusal changes nothing.
    """

    def __init__(self, params: SamplingParams, *, prompt_ids: Sequence[int] = ()) -> None:
        self._params = params
        self._changes = LogitChanges(params, prompt_ids)
        # The raw stream of PCG64 is the same in all NumPy versions; a Generator's need not be.
        self._random = np.random.PCG64(params.seed)
        self._vocab_size = 0
        self._last: TokenLogprobs | None = None

    def sample(self, logits: npt.NDArray[np.float32], mask: Bitmask | None = None) -> int:
        """Return a token id.

        Args:
            logits: float32 [vocab_size]. Not changed.
            mask: The allowed tokens; None allows all.

        Raises:
            ParityError: The logits hold NaN or +Inf, or nothing but -Inf for what is allowed.
            UsageError: What is allowed and what is banned leave nothing, or the settings name
                a token that is not in the vocabulary.
        """
        peak = _check_logits(logits)
        if self._vocab_size != logits.shape[0]:
            self._params.check_vocabulary(logits.shape[0])
            self._vocab_size = logits.shape[0]
        scores = self._changes.apply(logits, mask)
        if scores is not logits:
            peak = self._check_scores(scores, mask)
        if self._params.is_greedy:
            token_id = int(np.argmax(scores))
        else:
            token_ids, weights = filter_logits(scores, self._params, peak)
            token_id = int(token_ids[draw(weights, self._next_double())])
        if self._params.num_logprobs is not None:
            self._last = describe_token(logits, token_id, self._params.num_logprobs)
        return token_id

    def record(self, token_id: int) -> None:
        """Take note of a token of the answer, chosen or forced."""
        self._changes.record(token_id)

    def describe_last(self) -> TokenLogprobs | None:
        """Return how likely the last sampled token was; None where that was not asked for."""
        return self._last

    def copy(self) -> "Sampler":
        """Return a sampler that will draw the same from the same logits, on its own from now on."""
        twin = Sampler(self._params)
        twin._changes = self._changes.copy()
        twin._random.state = self._random.state
        twin._last = self._last
        return twin

    def _next_double(self) -> float:
        """Return a number in [0, 1) with 53 random bits."""
        return float((self._random.random_raw() >> 11) * 2.0**-53)

    def _check_scores(self, scores: npt.NDArray[np.float32], mask: Bitmask | None) -> float:
        """Return the largest score; say why where there is none to choose."""
        if np.max(scores) > -math.inf:
            return _check_logits(scores)
        allowed = np.ones(scores.shape[0], np.bool_)
        if mask is not None:
            allowed = unpack_mask(mask, scores.shape[0])
        num_allowed = int(np.count_nonzero(allowed))
        allowed[list(self._params.banned_token_ids)] = False
        if not allowed.any():
            raise UsageError(
                f"No token is left to choose: {num_allowed:,} may come next and "
                "banned_token_ids holds all of them.",
                "ban fewer tokens, or loosen what the answer must look like",
                num_allowed=num_allowed,
            )
        return _check_logits(scores)


def describe_token(logits: npt.NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprobs:
    """Return the log-probabilities of a token and of the likeliest ones.

    Args:
        logits: float32 [vocab_size], with a finite maximum.
        token_id: The token.
        num_top: How many of the likeliest; fewer where others are impossible.
    """
    peak = np.max(logits)
    # The sum is what needs the digits: 150,000 terms of 1e-7 relative error each.
    log_total = float(peak) + math.log(np.exp(logits - peak).sum(dtype=np.float64))
    top: list[tuple[int, float]] = []
    if num_top:
        likeliest = indices_of_largest(logits, min(num_top, logits.shape[0]))
        likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")][:num_top]
        top = [(int(index), float(logits[index]) - log_total) for index in likeliest]
    return TokenLogprobs(float(logits[token_id]) - log_total, tuple(top))


def _check_logits(logits: npt.NDArray[np.float32]) -> float:
    """Return the largest logit; raise ParityError when it is not a finite number."""
    peak = float(np.max(logits))
    if not math.isfinite(peak):
        raise ParityError(
            f"The model returned no usable next-token scores: the largest of {logits.shape[0]:,} "
            f"is {peak}. Nothing can be chosen from them.",
            "check the package with `qwen-edge verify`; if it passes, try --device CPU",
            largest_logit=peak,
        )
    return peak
