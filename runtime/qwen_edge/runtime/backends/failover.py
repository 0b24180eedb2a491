"""Several devices behind one backend: where one stops, the next goes on with the same tokens.

It keeps the tokens of the sequence, so that another device can read them and the caller sees a
slow call instead of an error; and it takes the device that a prompt's length asks for. Devices
other than the first are loaded when they are needed: see `seats.py`. It knows no package and no
engine.
"""

import logging
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from qwen_edge.errors import (
    ContextFullError,
    DeviceError,
    EdgeError,
    ParityError,
    ResourceError,
    join_problems,
)
from qwen_edge.runtime.backends.backend import Backend, CacheSnapshot, Logits, LogitsRows
from qwen_edge.runtime.backends.checks import (
    check_num_scored,
    check_room,
    check_token_ids,
    check_trim,
    closed_error,
)
from qwen_edge.runtime.backends.seats import Candidate, DeviceSource, Loaded, Seat, Seats
from qwen_edge.runtime.devices.trying import Refusal

_LOGGER = logging.getLogger(__name__)
WhereT = TypeVar("WhereT")

# What may go better on another device; anything else would be the same there.
_FAILURES = (DeviceError, ParityError, ResourceError)


class FailoverBackend(Generic[WhereT]):
    """One sequence on the best of several devices.

    Args:
        source: Loads the model on the others.
        first: The device it was loaded on.
        loaded: The model there, empty; owned and closed here, as are the others.

    State:
        `cached_tokens` are those of the device in use; each keeps its own cache, so that one
        that is gone back to has not forgotten. A device that stopped is closed, and not used
        again where another goes on. Where none does it is loaded anew, once an answer.
    """

    def __init__(
        self, source: DeviceSource[WhereT], first: Candidate, loaded: Loaded[WhereT]
    ) -> None:
        self._seat = Seat(first, loaded.backend, loaded.where)
        self._seats = Seats(source, self._seat)
        self._vocab_size = loaded.backend.vocab_size
        self._notices: list[str] = []
        self._failure: EdgeError | None = None
        self._may_reload = True
        self._is_closed = False

    @property
    def where(self) -> WhereT:
        """The place of the device in use."""
        return self._seat.where

    @property
    def place(self) -> str:
        """Name of the device in use."""
        return self._seat.name

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the devices that hold the model."""
        return self._seats.names

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The devices that were passed over or given up, and why."""
        return self._seats.source.refusals

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """The tokens in the cache of the device in use."""
        return tuple(self._seat.ids[: self.cached_tokens])

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache of the device in use; none where it stopped."""
        return self._seat.backend.cached_tokens if self._is_live else 0

    @property
    def max_context_tokens(self) -> int:
        """Most tokens that any of the devices holds."""
        return max(entry.max_context_tokens for entry in self._seats.entries(self._seat))

    @property
    def max_prompt_tokens(self) -> int | None:
        """Most tokens of a prompt, where that is less than the context leaves room for."""
        longest = max(entry.max_prompt_length for entry in self._seats.entries(self._seat))
        return None if longest == self.max_context_tokens - 1 else longest

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._vocab_size

    @property
    def max_scored_tokens(self) -> int:
        """Most tokens after which one call gives logits, on the device in use."""
        return self._seat.backend.max_scored_tokens

    def take_notices(self) -> tuple[str, ...]:
        """Return what became of the devices since the last time, in sentences."""
        notices, self._notices = tuple(self._notices), []
        return notices

    def route(self, num_prompt_tokens: int, num_new_tokens: int | None = None) -> None:
        """Use the first device that takes a prompt of this length; to be called before it.

        Args:
            num_prompt_tokens: The whole prompt.
            num_new_tokens: How long the answer may get, where that was said.

        Raises:
            ContextFullError: None takes it. The device in use stays.
            EdgeError: The only one that does cannot be loaded.

        State:
            The cache is now that of the device in use, with what it held: see `cached_ids`.
        """
        self._check_open()
        self._may_reload = True
        preferred = self._seats.entries(self._seat)[0]
        failures: dict[str, EdgeError] = {}
        num_new = num_new_tokens or 0
        while found := self._seats.find(self._seat, num_prompt_tokens, num_new, failures):
            try:
                seat = self._seats.sit(found, f"for a prompt of {num_prompt_tokens:,} tokens")
            except EdgeError as error:
                failures[found.name] = error
                continue
            self._seat = seat
            self._seats.refuse(failures)
            if not preferred.takes(num_prompt_tokens, num_new) and found.name != preferred.name:
                self._tell_route(preferred, num_prompt_tokens)
            return
        self._seats.refuse(failures, but=self.place)
        raise self._no_route(num_prompt_tokens, failures)

    def forward(self, token_ids: Sequence[int]) -> Logits:
        """Append tokens; return the logits after the last, float32 [vocab_size].

        Raises:
            ContextFullError: No device holds as many.
            EdgeError: The device in use stopped and no other goes on; the cache is empty.
        """
        logits: Logits = self.forward_scored(token_ids, num_scored=1)[0]
        return logits

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        """Append tokens; return the logits after each of the last ones, on whatever device.

        Raises:
            ValueError: `num_scored` or an id is out of range. Nothing changed.
            EdgeError: As `forward`.
        """
        self._make_ready()
        check_token_ids(token_ids, self.vocab_size)
        check_num_scored(num_scored, len(token_ids), self.max_scored_tokens)
        num_new = len(token_ids)
        check_room(self.cached_tokens, num_new, self.max_context_tokens)
        if self.cached_tokens + num_new > self._seat.backend.max_context_tokens:
            self._outgrow(num_new)
        while True:
            seat = self._seat
            try:
                rows = _feed(seat.backend, token_ids, num_scored)
            except _FAILURES as error:
                self._recover(error, num_new)
                continue
            seat.ids.extend(token_ids)
            return rows

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens.

        Raises:
            ValueError: `num_tokens` is negative or more than `cached_tokens`.
        """
        check_trim(num_tokens, self.cached_tokens)
        if num_tokens:
            self._seat.backend.trim(num_tokens)

    def reset(self) -> None:
        """Forget everything that the device in use holds."""
        if self._is_live:
            self._seat.backend.reset()

    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the cache of the device in use.

        Raises:
            EdgeError: As its backend; or it stopped and cannot be loaded anew.
        """
        self._make_ready()
        return self._seat.backend.snapshot()

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Put a copy of a cache in the place of what the device in use holds.

        Raises:
            UsageError: It was taken on another kind of device. Nothing changed.
            EdgeError: As its backend; or it stopped and cannot be loaded anew.
        """
        self._make_ready()
        self._seat.backend.restore(snapshot)
        self._seat.ids = list(snapshot.token_ids)

    def close(self) -> None:
        """Release all devices. Calling it twice is harmless."""
        self._is_closed = True
        self._seats.release()

    @property
    def _is_live(self) -> bool:
        return self._seats.holds(self._seat)

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error()

    def _make_ready(self) -> None:
        """Forget what the engine forgot; load the device anew where it was given up.

        Raises:
            UsageError: The backend is closed.
            EdgeError: The device cannot be loaded, or was already loaded anew for this answer.
        """
        self._check_open()
        del self._seat.ids[self.cached_tokens :]
        if not self._is_live:
            if self._failure is not None and not self._may_reload:
                raise self._failure
            self._reload([], self._failure)

    def _recover(self, error: EdgeError, num_new: int) -> None:
        """Go on elsewhere after a failure of the device in use, or there once more.

        Args:
            error: The failure.
            num_new: Tokens that are still to be fed.

        Raises:
            EdgeError: It cannot be gone on: the failure itself.
        """
        seat, told = self._seat, error.problem.rstrip(".")
        ids = list(seat.ids)
        _LOGGER.warning("%s.", told)
        if self._go_on(ids, len(ids) + num_new, f"because {seat.name} stopped", must_close=True):
            self._seats.source.refuse(seat.candidate, f"it stopped in the middle: {told}")
            self._notices.append(
                f"{told}. {self.place} goes on from there, and answers from now on."
            )
        elif self._may_reload and isinstance(error, DeviceError):
            self._reload(ids, error)
        else:
            self._failure = error
            raise error

    def _outgrow(self, num_new: int) -> None:
        """Go on where there is more room.

        Raises:
            ContextFullError: Nowhere.
        """
        ids = list(self._seat.ids)
        name, limit = self.place, self._seat.backend.max_context_tokens
        needed = len(ids) + num_new
        if not self._go_on(ids, needed, f"because {name} holds {limit:,} tokens"):
            self._notices.append(
                f"The conversation fills the {limit:,} tokens of {name}, and no other device can "
                "go on."
            )
            check_room(len(ids), num_new, limit)
        self._notices.append(
            f"The conversation outgrew the {limit:,} tokens of {name}. {self.place} goes on from "
            "there."
        )

    def _go_on(
        self, ids: list[int], num_tokens: int, reason: str, *, must_close: bool = False
    ) -> bool:
        """Bring a sequence to another device; return whether one took it.

        Args:
            ids: The sequence.
            num_tokens: Its length with what is to be fed next.
            reason: For messages.
            must_close: Whether to close the device in use before another is loaded.
        """
        seat = self._seat
        tried = {seat.name}
        while found := self._seats.find(seat, num_tokens, 0, tried):
            tried.add(found.name)
            if must_close:
                self._seats.release([seat])
            try:
                other = self._seats.sit(found, reason)
                other.read(ids)
            except EdgeError as error:
                _LOGGER.warning("%s cannot go on: %s", found.name, error.problem)
                self._seats.refuse({found.name: error})
                self._seats.release_named(found.name)
                continue
            self._seat = other
            return True
        return False

    def _reload(self, ids: list[int], error: EdgeError | None) -> None:
        """Load the model on the same device anew; a driver that was reset asks for that.

        Raises:
            EdgeError: That failed: what happened first, if anything did.
        """
        name = self.place
        self._may_reload = False
        self._failure = error
        self._seats.release_named(name)
        try:
            again = self._seats.sit(self._seat.candidate, "once more, because it stopped")
            again.read(ids)
        except EdgeError as failure:
            self._seats.release_named(name)
            raise (error or failure) from failure
        self._seat = again
        if error is not None:
            told = error.problem.rstrip(".")
            self._notices.append(f"{told}. {name} was set up again and goes on from there.")

    def _tell_route(self, preferred: Candidate, num_tokens: int) -> None:
        """Note that a prompt is answered elsewhere than the others."""
        limit = preferred.max_prompt_length
        if num_tokens > limit:
            why = f"{preferred.name} takes prompts of up to {limit:,} tokens"
        else:
            why = f"{preferred.name} holds {preferred.max_context_tokens:,} tokens with the answer"
        self._notices.append(f"{why}, and this one has {num_tokens:,}: {self.place} answers it.")

    def _no_route(self, num_tokens: int, failures: dict[str, EdgeError]) -> EdgeError:
        """Return the error for a prompt that no device takes."""
        if self.place in failures:  # it would have fitted
            return failures[self.place]
        limit = self._seat.candidate.max_prompt_length
        others = [f"{name}: {error.problem.rstrip('.')}" for name, error in failures.items()]
        why = f", and no other device can take over ({join_problems(others)})" if others else ""
        return ContextFullError(
            f"The conversation needs {num_tokens:,} tokens, but {self.place} takes prompts of up "
            f"to {limit:,}{why}.",
            f"start a new conversation, or shorten this one by {num_tokens - limit:,} tokens",
            prompt_tokens=num_tokens,
            max_prompt_tokens=limit,
            max_context_tokens=self.max_context_tokens,
        )


def _feed(backend: Backend, token_ids: Sequence[int], num_scored: int) -> LogitsRows:
    """Return the logits after the last tokens, also where a call gives fewer."""
    if num_scored <= backend.max_scored_tokens:
        return backend.forward_scored(token_ids, num_scored=num_scored)
    split = len(token_ids) - num_scored + 1
    rows = [backend.forward(token_ids[:split])]
    rows += [backend.forward([token_id]) for token_id in token_ids[split:]]
    return np.stack(rows)
