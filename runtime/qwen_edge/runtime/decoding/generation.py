"""The token loop: prefill a prompt in chunks, then tokens until a stop id or the limit.

A step may settle more than one token: what a constraint forces needs no logits, and what a
drafter guessed right needs no step of its own. It knows ids, a backend and a picker, nothing of
text or chat. Read `picker.py` for the choice and `drafting.py` for the guesses.
"""

import time
from collections.abc import Callable, Generator, Sequence

from qwen_edge.runtime.backends.backend import Backend, LogitsRows
from qwen_edge.runtime.decoding.drafting import CallReport, Drafter, GuardedDrafter
from qwen_edge.runtime.decoding.picker import NewToken, TokenPicker

PREFILL_CHUNK_TOKENS = 512  # used where the package names none; bounds memory, not speed


def generate_tokens(
    backend: Backend,
    prompt_ids: Sequence[int],
    *,
    picker: TokenPicker,
    max_new_tokens: int,
    stop_token_ids: Sequence[int] = (),
    drafter: Drafter | None = None,
    prefill_chunk_tokens: int = PREFILL_CHUNK_TOKENS,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Generator[NewToken, None, None]:
    """Yield the tokens of an answer; close it before the cache is used for anything else.

    Args:
        backend: Owns the KV cache. Its state advances; it is not reset here.
        prompt_ids: Tokens not yet in the cache. At least one.
        picker: Chooses the tokens; belongs to this answer.
        max_new_tokens: Upper bound on the number of yields. Zero yields nothing.
        stop_token_ids: Ids that end the answer; the one that does is yielded.
        drafter: Begun on the whole sequence; None for one token at a time. The tokens are the
            same with and without. One that fails is logged and left out.
        prefill_chunk_tokens: Prompt tokens per forward call, to bound peak memory and the
            time until a cancellation is seen. At least one.
        is_cancelled: Asked before every forward call and after it; True ends the iteration.

    Yields:
        Tokens in order; those of one step come together.

    Raises:
        ValueError: `prompt_ids` is empty or `prefill_chunk_tokens` is below one.
        EdgeError: As the backend and the picker; what was settled before is yielded first.

    State:
        Whenever the caller has it, the cache holds the prompt and the tokens yielded but for
        the last ones, and may hold tokens that are about to be yielded. At the end, also when
        closed, it holds a beginning of what was yielded; after a failure of the engine, nothing.
        Cancelled during prefill, it holds whole chunks. Once begun, it closes the drafter.
    """
    steps = _Steps(backend, picker, frozenset(stop_token_ids), drafter)
    try:
        rows = _read_prompt(backend, prompt_ids, prefill_chunk_tokens, is_cancelled)
        if rows is None:
            return
        steps.begin()
        remaining = max_new_tokens
        while remaining > 0 and not is_cancelled():
            burst = steps.settle(rows, remaining)
            for token in burst:
                yield token
                # Counted when the caller comes back: only then it surely has the token.
                steps.num_given += 1
            remaining -= len(burst)
            if steps.failure is not None:
                raise steps.failure
            if remaining <= 0 or steps.is_stopped or is_cancelled():
                return
            rows = steps.advance(remaining)
    finally:
        steps.end()


def _read_prompt(
    backend: Backend,
    prompt_ids: Sequence[int],
    chunk_tokens: int,
    is_cancelled: Callable[[], bool],
) -> LogitsRows | None:
    """Return the logits after a prompt, float32 [1, vocab_size]; None when cancelled."""
    if not prompt_ids:
        raise ValueError("prompt_ids is empty; pass at least one token")
    if chunk_tokens < 1:
        raise ValueError(f"prefill_chunk_tokens is {chunk_tokens}; pass at least 1")
    for start in range(0, len(prompt_ids), chunk_tokens):
        if is_cancelled():
            return None
        logits = backend.forward(prompt_ids[start : start + chunk_tokens])
    return logits[None]


class _Steps:
    """The steps of one answer.

    State:
        `draft` are the guesses in the cache whose logits are being settled, `pending` the
        settled tokens that are not in the cache yet. `num_given` is how many tokens the caller
        was given. `failure` is why no more can be settled.
    """

    def __init__(
        self,
        backend: Backend,
        picker: TokenPicker,
        stop_token_ids: frozenset[int],
        drafter: Drafter | None,
    ) -> None:
        self._backend = backend
        self._picker = picker
        self._stop_token_ids = stop_token_ids
        self._drafter = GuardedDrafter(drafter)
        self._num_prompt: int | None = None
        self._draft: list[int] = []
        self._pending: list[int] = []
        self._num_accepted = 0
        self._call_seconds: float | None = None
        self.num_given = 0
        self.is_stopped = False
        self.failure: Exception | None = None

    def begin(self) -> None:
        """Take note of the cache after the prompt."""
        self._num_prompt = self._backend.cached_tokens

    def settle(self, rows: LogitsRows, remaining_tokens: int) -> list[NewToken]:
        """Return the tokens that the logits of one call decide, and drop wrong guesses.

        Args:
            rows: float32 [1 + guesses, vocab_size]: after the last settled token and after
                each guess.
            remaining_tokens: At least one; no more are returned.
        """
        num_fed = len(self._pending) + len(self._draft)
        self._pending = []
        self._num_accepted = 0
        burst: list[NewToken] = []
        try:
            self._choose(burst, rows, remaining_tokens)
        except Exception as error:
            # Alone each of these tokens would have been given before it came to this.
            self.failure = error
        self._backend.trim(len(self._draft) - self._num_accepted)
        if self._drafter.is_on:
            self._note(num_fed, burst)
        self._draft = []
        return burst

    def advance(self, remaining_tokens: int) -> LogitsRows:
        """Feed what is pending and a new draft; return the logits after each of its guesses."""
        if self._drafter.is_on:
            self._draft = self._guess(remaining_tokens)
        begun_s = time.perf_counter()
        if self._draft:
            rows = self._backend.forward_scored(
                [*self._pending, *self._draft], num_scored=len(self._draft) + 1
            )
        else:
            rows = self._backend.forward(self._pending)[None]
        self._call_seconds = time.perf_counter() - begun_s
        return rows

    def end(self) -> None:
        """Leave nothing in the cache that was not given, and close the drafter."""
        try:
            if self._num_prompt is not None:
                # Closed or interrupted within a burst, or before a draft was settled.
                excess = self._backend.cached_tokens - self._num_prompt - self.num_given
                self._backend.trim(max(excess, 0))
        finally:
            self._drafter.close()

    def _choose(self, burst: list[NewToken], rows: LogitsRows, remaining_tokens: int) -> None:
        """Add the tokens that can be settled without another call."""
        while len(burst) < remaining_tokens and not self.is_stopped:
            left = remaining_tokens - len(burst)
            forced = self._picker.take_forced(left)
            if not forced and self._pending:
                break  # the logits after it are not here
            for token in forced or [self._picker.pick(rows[self._num_accepted], left)]:
                self._settle_one(token, burst)
                if self.is_stopped:
                    break

    def _settle_one(self, token: NewToken, burst: list[NewToken]) -> None:
        """Add a token; it is cached already if it was guessed."""
        burst.append(token)
        was_guessed = (
            not self._pending
            and self._num_accepted < len(self._draft)
            and self._draft[self._num_accepted] == token.token_id
        )
        if was_guessed:
            self._num_accepted += 1
        else:
            self._pending.append(token.token_id)
        self.is_stopped = token.token_id in self._stop_token_ids

    def _guess(self, remaining_tokens: int) -> list[int]:
        """Return a draft that could be chosen as a whole, and for which there is room."""
        backend = self._backend
        room = backend.max_context_tokens - backend.cached_tokens - len(self._pending)
        # The last token that may come needs no guess: it is chosen from logits.
        most = min(backend.max_scored_tokens - 1, remaining_tokens - 1, room)
        guesses = self._drafter.propose(most, backend.vocab_size)
        for index, token_id in enumerate(guesses):
            if token_id in self._stop_token_ids:
                guesses = guesses[:index]  # nothing comes after it
                break
        return list(self._picker.cut_draft(guesses))

    def _note(self, num_fed: int, burst: list[NewToken]) -> None:
        """Tell the drafter how the call went and what the sequence is now."""
        call = None
        if self._call_seconds is not None:
            call = CallReport(
                num_fed,
                len(self._draft),
                self._num_accepted,
                self._call_seconds,
                self._drafter.draft_seconds,
            )
        self._drafter.note(call, [token.token_id for token in burst])
