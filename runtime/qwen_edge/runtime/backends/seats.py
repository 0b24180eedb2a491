"""The devices that may run a model, and those on which it is loaded.

A candidate is a device with its limits, a seat the model on it. Loading goes through a source,
which knows packages and engines (`devices/routing.py`). `failover.py` decides which seat is used.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from qwen_edge.errors import EdgeError, ResourceError
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.devices.trying import Refusal

_LOGGER = logging.getLogger(__name__)
WhereT = TypeVar("WhereT")

# Room for an answer, below which a prompt goes to a device with a longer context, if there is one.
_ANSWER_TOKENS = 256
_NO_ROOM_FOR_TWO = "it was released: memory does not hold the model on two devices at a time"


@dataclass(frozen=True)
class Candidate:
    """A device that may run the model, loaded or not.

    Args:
        name: Tells it from the others; for messages too.
        max_context_tokens: Most tokens of prompt and answer together.
        max_prompt_tokens: Most tokens of a prompt, where the device has such a limit.
    """

    name: str
    max_context_tokens: int
    max_prompt_tokens: int | None = None

    @property
    def max_prompt_length(self) -> int:
        """Most tokens of a prompt that leaves room for one more."""
        limit = self.max_context_tokens - 1
        return limit if self.max_prompt_tokens is None else min(limit, self.max_prompt_tokens)

    def takes(self, num_tokens: int, num_new: int) -> bool:
        """Whether so many tokens fit as a prompt, with so many after them."""
        room = self.max_context_tokens - num_tokens
        reserve = min(_ANSWER_TOKENS, self.max_context_tokens // 4)
        return num_tokens <= self.max_prompt_length and room >= max(num_new, reserve)


@dataclass(frozen=True)
class Loaded(Generic[WhereT]):
    """A model on a device: an empty backend, and what is to be known of the place."""

    backend: Backend
    where: WhereT


class DeviceSource(Protocol[WhereT]):
    """Knows which devices there are and loads the model on one."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The devices in order of preference, without those that were refused."""
        ...

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The devices that were passed over or given up, and why."""
        ...

    def load(self, candidate: Candidate, reason: str) -> Loaded[WhereT]:
        """Load the model.

        Args:
            candidate: One of `candidates`, or one that was.
            reason: Why there, for a person.

        Raises:
            EdgeError: It cannot be loaded there.
        """
        ...

    def refuse(self, candidate: Candidate, problem: str) -> None:
        """Leave a device out from now on."""
        ...


@dataclass
class Seat(Generic[WhereT]):
    """The model on one device.

    Args:
        candidate: The device, with the limits it turned out to have.
        backend: The model there.
        where: What is to be known of the place.
        ids: The tokens it was fed; the first `backend.cached_tokens` of them are in its cache.
    """

    candidate: Candidate
    backend: Backend
    where: WhereT
    ids: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the device."""
        return self.candidate.name

    def read(self, ids: Sequence[int]) -> None:
        """Bring the cache to hold just these tokens.

        Raises:
            EdgeError: As the backend's `forward`.
        """
        del self.ids[self.backend.cached_tokens :]
        pairs = zip(self.ids, ids, strict=False)
        shorter = min(len(self.ids), len(ids))
        num_common = next((i for i, (own, new) in enumerate(pairs) if own != new), shorter)
        self.backend.trim(len(self.ids) - num_common)
        del self.ids[num_common:]
        if num_common < len(ids):
            self.backend.forward(ids[num_common:])
            self.ids = list(ids)


class Seats(Generic[WhereT]):
    """The seats of one model.

    Args:
        source: Loads the model.
        first: Where it is loaded already; owned and closed here, as are the others.

    State:
        Holds what was loaded and not released.
    """

    def __init__(self, source: DeviceSource[WhereT], first: Seat[WhereT]) -> None:
        self.source = source
        self._seats = {first.name: first}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the devices that hold the model."""
        return tuple(self._seats)

    def holds(self, seat: Seat[WhereT]) -> bool:
        """Whether the model is still loaded there."""
        return self._seats.get(seat.name) is seat

    def entries(self, current: Seat[WhereT]) -> list[Candidate]:
        """Return the devices in order, each with the limits it turned out to have.

        Args:
            current: Counts as one also where it was refused.
        """
        listed = list(self.source.candidates)
        if current.name not in [entry.name for entry in listed]:
            listed.append(current.candidate)
        return [self._seats[e.name].candidate if e.name in self._seats else e for e in listed]

    def find(
        self, current: Seat[WhereT], num_tokens: int, num_new: int, tried: Collection[str]
    ) -> Candidate | None:
        """Return the first device that takes a prompt; else the one with most room after it.

        Args:
            current: The seat in use.
            num_tokens: The whole prompt.
            num_new: How long the answer may get; 0 where that is not known.
            tried: Names to leave out.
        """
        left = [entry for entry in self.entries(current) if entry.name not in tried]
        for entry in left:
            if entry.takes(num_tokens, num_new):
                return entry
        holding = [entry for entry in left if num_tokens <= entry.max_prompt_length]
        return max(holding, key=lambda entry: entry.max_context_tokens, default=None)

    def sit(self, candidate: Candidate, reason: str) -> Seat[WhereT]:
        """Return the model on a device, loaded where it is not.

        Args:
            candidate: One of `entries`.
            reason: Why there, for a person.

        Raises:
            EdgeError: It cannot be loaded there.

        State:
            Where memory does not hold it on two devices, the others are released.
        """
        if candidate.name in self._seats:
            return self._seats[candidate.name]
        _LOGGER.warning("Loading the model on %s, %s", candidate.name, reason)
        released: list[Candidate] = []
        try:
            loaded = self.source.load(candidate, reason)
        except ResourceError as error:
            released = self.release()
            if not released:
                raise
            _LOGGER.warning("%s is released first: %s", released[0].name, error.problem)
            loaded = self.source.load(candidate, reason)
        for other in released:
            self.source.refuse(other, _NO_ROOM_FOR_TWO)
        exact = replace(candidate, max_context_tokens=loaded.backend.max_context_tokens)
        self._seats[candidate.name] = Seat(exact, loaded.backend, loaded.where)
        return self._seats[candidate.name]

    def release(self, seats: Iterable[Seat[WhereT]] | None = None) -> list[Candidate]:
        """Close the model on these devices; on all by default. Return which were open."""
        wanted = list(self._seats.values()) if seats is None else seats
        released = [seat for seat in wanted if self.holds(seat)]
        for seat in released:
            del self._seats[seat.name]
            seat.backend.close()
        return [seat.candidate for seat in released]

    def release_named(self, name: str) -> None:
        """Close the model on one device, where it is loaded there."""
        if name in self._seats:
            self.release([self._seats[name]])

    def refuse(self, failures: Mapping[str, EdgeError], *, but: str = "") -> None:
        """Leave devices out that could not be loaded.

        Args:
            failures: Name of a device to what went wrong.
            but: Name of one to keep all the same.
        """
        for entry in list(self.source.candidates):
            if entry.name in failures and entry.name != but:
                self.source.refuse(entry, failures[entry.name].problem)
