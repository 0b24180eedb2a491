"""A backend whose first, slow inference runs in the background while the program goes on.

The CPU plugin rearranges all weights at the first inference: 9 to 11 s for 4 billion parameters
on two cores. This wrapper pays that at load, in a thread, and makes the first question wait for
what is left of it. It knows nothing of engines.
"""

import logging
import threading
import time
from collections.abc import Sequence

from qwen_edge.errors import EdgeError
from qwen_edge.runtime.backends.backend import Backend, CacheSnapshot, Logits, LogitsRows
from qwen_edge.runtime.backends.checks import check_trim, closed_error

_LOGGER = logging.getLogger(__name__)
_PROMPT_TOKENS = 16  # a prompt and a single token use different kernels: one call for each


class WarmingBackend:
    """Another backend, warmed up by a thread that starts at once.

    Args:
        backend: Empty, and used by nobody else from now on.
        call_sizes: Numbers of tokens of which calls will be made, each of which is slow the
            first time: those of speculation, for example. They are left out from where
            somebody waits, since the first call of all is the one that takes long.

    State:
        Until the thread is done the cache counts as empty. `close` does not wait for it: the
        thread then releases the engine when it comes out of it. The thread is no daemon,
        since a process must not end while the engine is at work in it.
    """

    def __init__(self, backend: Backend, *, call_sizes: Sequence[int] = ()) -> None:
        self._call_sizes = call_sizes
        self._backend = backend
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_done = False
        self._is_awaited = False
        # Set to None once waited for, so that a later call costs one comparison.
        self._thread: threading.Thread | None = threading.Thread(
            target=self._warm_up, name="qwen-edge-warm-up", daemon=False
        )
        self._thread.start()

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache; 0 while warming up."""
        return 0 if self._thread is not None else self._backend.cached_tokens

    @property
    def max_context_tokens(self) -> int:
        """Most tokens that `cached_tokens` may reach."""
        return self._backend.max_context_tokens

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._backend.vocab_size

    @property
    def is_warm(self) -> bool:
        """True when the next `forward` does not have to wait."""
        return self._is_done

    def wait_until_warm(self) -> None:
        """Wait for the thread. A failure of it is logged; `forward` will meet it again."""
        thread = self._thread
        if thread is None:
            return
        if not self._is_done:
            _LOGGER.info("Waiting for the model to warm up; this happens once per load")
        self._is_awaited = True
        thread.join()
        self._thread = None

    def forward(self, token_ids: Sequence[int]) -> Logits:
        """Wait where needed, then do as the backend does.

        Raises:
            UsageError: The backend is closed.
            EdgeError: As the backend's `forward`.
        """
        self._wait_unless_closed()
        return self._backend.forward(token_ids)

    @property
    def max_scored_tokens(self) -> int:
        """Most tokens after which one call gives logits."""
        return self._backend.max_scored_tokens

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        """Wait where needed, then do as the backend does.

        Raises:
            UsageError: The backend is closed.
            EdgeError: As the backend's `forward_scored`.
        """
        self._wait_unless_closed()
        return self._backend.forward_scored(token_ids, num_scored=num_scored)

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens; does not wait."""
        if self._thread is not None:
            check_trim(num_tokens, 0)
        else:
            self._backend.trim(num_tokens)

    def reset(self) -> None:
        """Forget everything; does not wait."""
        if self._thread is None:
            self._backend.reset()

    def snapshot(self) -> CacheSnapshot:
        """Wait where needed, then do as the backend does.

        Raises:
            UsageError: The backend is closed.
            EdgeError: As the backend's `snapshot`.
        """
        self._wait_unless_closed()
        return self._backend.snapshot()

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Wait where needed, then do as the backend does.

        Raises:
            UsageError: The backend is closed.
            EdgeError: As the backend's `restore`.
        """
        self._wait_unless_closed()
        self._backend.restore(snapshot)

    def close(self) -> None:
        """Release the engine, now or when the thread comes out of it."""
        with self._lock:
            self._is_closed = True
            if self._is_done:
                self._backend.close()

    def _wait_unless_closed(self) -> None:
        if self._thread is not None:
            if self._is_closed:
                raise closed_error()
            self.wait_until_warm()

    @property
    def _is_needed(self) -> bool:
        """Whether somebody waits for the thread, or for it to let go."""
        return self._is_closed or self._is_awaited

    def _warm_up(self) -> None:
        started_s = time.monotonic()
        try:
            num_tokens = min(_PROMPT_TOKENS, self._backend.max_context_tokens - 1)
            self._backend.forward([0] * max(num_tokens, 1))
            if num_tokens > 0 and not self._is_needed:
                self._backend.forward([0])
            for size in self._call_sizes:
                room = self._backend.max_context_tokens - self._backend.cached_tokens
                if size > min(room, self._backend.max_scored_tokens) or self._is_needed:
                    break
                self._backend.forward_scored([0] * size, num_scored=size)
            self._backend.reset()
            _LOGGER.info("Warmed up in %.1f s", time.monotonic() - started_s)
        except EdgeError as error:
            _LOGGER.warning("The model could not be warmed up: %s", error.problem)
        finally:
            with self._lock:
                self._is_done = True
                if self._is_closed:
                    self._backend.close()
