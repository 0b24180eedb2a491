"""Stop strings in streamed text: cut exactly, never show a part of one.

The matcher works on text, not on tokens, so it does not matter how a stop string is spread
over tokens. It knows nothing of end-of-sequence ids; `session.py` checks those.
"""

from collections.abc import Sequence

from qwen_edge.errors import UsageError


class StopMatcher:
    """Finds the first stop string that is completed in a growing text.

    The result does not depend on how the text is cut into pieces: of all occurrences the one
    that ends first wins, and of those that end together the longest.

    Args:
        stop_strings: None of them empty. No strings at all is allowed: all text passes.

    Raises:
        UsageError: A stop string is empty or not a text.

    State:
        Holds back the longest end of the text that may still become a stop string.
    """

    def __init__(self, stop_strings: Sequence[str] = ()) -> None:
        check_stop_strings(stop_strings)
        self._stops = tuple(dict.fromkeys(stop_strings))
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Add text and return what may be shown now.

        Args:
            text: The next piece, of any length.

        Returns:
            Text before the stop string. After a match, always empty.
        """
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        buffer = self._held + text
        found = self._find_first(buffer)
        if found is not None:
            start, self.matched = found
            self._held = ""
            return buffer[:start]
        num_held = self._count_held(buffer)
        shown = len(buffer) - num_held
        self._held = buffer[shown:]
        return buffer[:shown]

    def finish(self) -> str:
        """Return the text held back; the stream ended without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _find_first(self, buffer: str) -> tuple[int, str] | None:
        """Return (start, stop string) of the occurrence that ends first, else None."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = buffer.find(stop)
            if start >= 0:
                candidate = (start + len(stop), start, stop)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[1], best[2])

    def _count_held(self, buffer: str) -> int:
        """Return the length of the longest end of `buffer` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(buffer)), longest, -1):
                if buffer.endswith(stop[:length]):
                    longest = length
                    break
        return longest


def check_stop_strings(stop_strings: Sequence[str]) -> None:
    """Raise UsageError when a stop string is empty or not a text."""
    for index, stop in enumerate(stop_strings):
        if not isinstance(stop, str) or not stop:
            raise UsageError(
                f"Stop string {index + 1} is {stop!r}; expected a text of at least one character.",
                "leave the empty stop string out",
                field="stop",
                value=stop,
            )
