"""Remembers which ids a backend's cache holds, so that a common beginning is not computed again.

Every answer of a model goes through here, whichever session asks for it: sessions take turns
on one cache and each finds what is left of its own conversation, or what was put aside of it (see
`parking.py`). It knows nothing of text.

Law: `cached_ids == sequence[:backend.cached_tokens]`, and the backend was fed exactly these.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence

from qwen_edge.errors import DeviceError, EdgeError, ResourceError
from qwen_edge.runtime.backends.backend import Backend, CacheSnapshot
from qwen_edge.runtime.parking import Parked, Parking, count_common, cut_snapshot

_LOGGER = logging.getLogger(__name__)
MIN_PARKED_TOKENS = 256
"""Fewer tokens than these are computed again rather than put aside."""
# A copy is put back in about a thirtieth of the time its tokens take to compute, so it must spare
# clearly more of them than that, and enough to be felt.
_MIN_REGAINED_TOKENS = 16
_MIN_REGAINED_SHARE = 1 / 8


class PrefixCache:
    """The ids behind one backend's cache.

    Args:
        backend: An empty cache. From now on only this object trims, resets or restores it.
        parking: Where conversations are put aside; None for a new one.
        place: Name of the device, where the backend may change it.

    State:
        `begin` and `restore` replace the sequence and with it the cache; `append` grows the
        sequence.
    """

    def __init__(
        self, backend: Backend, parking: Parking | None = None, *, place: str = ""
    ) -> None:
        self._backend = backend
        self._place = place
        self._parking = Parking() if parking is None else parking
        self._parkings = {place: self._parking}
        self._sequence: list[int] = []
        self._owner: object = None
        self._can_park = True

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """Ids whose keys and values are in the cache, in order."""
        return tuple(self._sequence[: self._backend.cached_tokens])

    def begin(self, prompt_ids: Sequence[int], *, owner: object = None) -> int:
        """Keep the longest beginning of a prompt that is cached or put aside.

        Args:
            prompt_ids: At least one. The last one is never counted as cached, because its
                logits are needed.
            owner: Who asks, such as a session. What the cache holds is put aside only for
                another one: what an owner drops of its own, reasoning for example, is not
                asked for again.

        Returns:
            How many ids are cached; `prompt_ids[n:]` is to be fed next.
        """
        wanted = tuple(prompt_ids[:-1])
        cached = self.cached_ids
        num_kept = count_common(cached, wanted)
        parked, num_parked = self._parking.find(wanted)
        num_regained = num_parked - num_kept
        is_better = num_regained >= max(_MIN_REGAINED_TOKENS, num_parked * _MIN_REGAINED_SHARE)
        if owner is not self._owner:
            self._park(cached, num_parked if is_better else num_kept, wanted)
        self._owner = owner
        if parked is not None and is_better and self._bring_back(parked, num_parked):
            num_kept = num_parked
        else:
            num_kept = count_common(self.cached_ids, wanted)
            self._keep(num_kept)
        self._sequence = list(prompt_ids)
        return num_kept

    def move(self, place: str, token_ids: Sequence[int], places: Collection[str]) -> None:
        """Take note of the device the backend uses now; to be called before `begin`.

        What was put aside on one device is of no use on another: each has its own.

        Args:
            place: Name of the device.
            token_ids: What its cache holds.
            places: Names of all that the backend may go back to without loading them anew.
        """
        if place == self._place:
            return
        if tuple(token_ids) != self.cached_ids:
            self._owner = None
        self._place, self._sequence = place, list(token_ids)
        kept = {name: parking for name, parking in self._parkings.items() if name in places}
        self._parking = kept.setdefault(place, Parking())
        self._parkings = kept
        self._can_park = True

    def append(self, token_id: int) -> None:
        """Add a new id, which may or may not be fed to the backend later."""
        self._sequence.append(token_id)

    def snapshot(self, token_ids: Sequence[int]) -> CacheSnapshot:
        """Return a copy of what is cached or put aside of a conversation's beginning.

        Raises:
            EdgeError: As the backend's `snapshot`.
        """
        num_cached = count_common(self.cached_ids, token_ids)
        parked, num_parked = self._parking.find(token_ids)
        if parked is not None and num_parked > num_cached:
            return cut_snapshot(self._parking.use(parked), num_parked)
        return cut_snapshot(self._backend.snapshot(), num_cached)

    def restore(self, snapshot: CacheSnapshot, *, owner: object = None) -> None:
        """Put a snapshot in the place of what is cached; that is put aside first.

        Args:
            snapshot: Of this backend, or of one like it.
            owner: As for `begin`.

        Raises:
            EdgeError: As the backend's `restore`.
        """
        cached = self.cached_ids
        self._park(cached, count_common(cached, snapshot.token_ids), snapshot.token_ids)
        self._put_back(snapshot)
        self._owner = owner

    def pin(self, token_ids: Sequence[int], read: Callable[[], CacheSnapshot]) -> None:
        """Have a beginning at hand for every conversation, read when one first has it."""
        self._parking.pin(token_ids, read)

    def clear_parking(self) -> None:
        """Let go of everything that was put aside."""
        for parking in self._parkings.values():
            parking.clear()

    def _keep(self, num_kept: int) -> None:
        """Forget all that is cached but so many ids."""
        num_cached = self._backend.cached_tokens  # ahead of the ids after an interruption
        if num_kept == 0:
            self._backend.reset()
        elif num_kept < num_cached:
            self._backend.trim(num_cached - num_kept)

    def _park(self, cached: tuple[int, ...], num_kept: int, wanted: tuple[int, ...]) -> None:
        """Put the cache aside if much of it is about to be lost, and it is not there already."""
        num_lost = len(cached) - count_common(cached, wanted[:num_kept])
        is_worth_it = num_lost >= MIN_PARKED_TOKENS and self._parking.has_room(len(cached))
        if not (is_worth_it and self._can_park) or self._parking.holds(cached):
            return
        started_s = time.monotonic()
        try:
            snapshot = self._backend.snapshot()
        except (DeviceError, ResourceError, MemoryError) as error:
            _LOGGER.info("Conversations cannot be put aside here: %s", error)
            self._can_park = False
            return
        self._can_park = bool(snapshot.arrays)  # without any, coming back is computing anew
        if self._can_park:
            self._parking.park(snapshot)
            _LOGGER.debug("Putting it aside took %.2f s", time.monotonic() - started_s)

    def _bring_back(self, parked: Parked, num_tokens: int) -> bool:
        """Put a copy's beginning in the place of the cache; return whether that went well."""
        try:
            self._put_back(cut_snapshot(self._parking.use(parked), num_tokens))
        except EdgeError as error:
            _LOGGER.warning("A conversation is computed again: %s", error.problem)
            self._parking.drop(parked)
            return False
        return True

    def _put_back(self, snapshot: CacheSnapshot) -> None:
        """Restore a snapshot; the record is never ahead of the cache, not even for Ctrl-C."""
        before, self._sequence = self._sequence, []
        try:
            self._backend.restore(snapshot)
        except EdgeError:
            self._sequence = before
            raise
        self._sequence = list(snapshot.token_ids)
