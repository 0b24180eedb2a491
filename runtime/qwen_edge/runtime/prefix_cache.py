"""Remembers which ids a backend's cache holds, so that a common beginning is not computed again.

Every answer of a model goes through here, whichever session asks for it: sessions take turns
on one cache and each finds what is left of its own conversation. It knows nothing of text.

Law: `cached_ids == sequence[:backend.cached_tokens]`, and the backend was fed exactly these.
"""

from collections.abc import Sequence
from itertools import takewhile

from qwen_edge.runtime.backends.backend import Backend


class PrefixCache:
    """The ids behind one backend's cache.

    Args:
        backend: An empty cache. From now on only this object trims or resets it.

    State:
        `begin` replaces the sequence and trims the cache; `append` grows the sequence.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sequence: list[int] = []

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """Ids whose keys and values are in the cache, in order."""
        return tuple(self._sequence[: self._backend.cached_tokens])

    def begin(self, prompt_ids: Sequence[int]) -> int:
        """Keep the longest cached beginning of a prompt and forget the rest.

        Args:
            prompt_ids: At least one. The last one is never counted as cached, because its
                logits are needed.

        Returns:
            How many ids are cached; `prompt_ids[n:]` is to be fed next.
        """
        cached = self.cached_ids
        pairs = zip(cached, prompt_ids[:-1], strict=False)
        num_kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if num_kept == 0:
            self._backend.reset()
        elif num_kept < len(cached):
            self._backend.trim(len(cached) - num_kept)
        self._sequence = list(prompt_ids)
        return num_kept

    def append(self, token_id: int) -> None:
        """Add a new id, which may or may not be fed to the backend later."""
        self._sequence.append(token_id)
