"""How many answers may be wanted at a time: counted here, before anything is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

from qwen_edge.errors import QueueFullError


class Admission:
    """Places for answers, in the making and waiting together. Belongs to the event loop.

    Args:
        num_running: Answers in the making at once.
        num_waiting: Answers that may wait for their turn.

    State:
        `num_taken` places are taken; `num_refused` requests got none.
    """

    def __init__(self, num_running: int, num_waiting: int) -> None:
        self.num_places = num_running + num_waiting
        self.num_taken = 0
        self.num_refused = 0
        self._num_waiting = num_waiting

    def check(self) -> None:
        """Refuse whoever comes while every place is taken; reading what they want is needless.

        Raises:
            QueueFullError: Every place is taken.
        """
        self._require(1)

    @contextmanager
    def enter(self, num_answers: int) -> Iterator[None]:
        """Take places for the answers to one request.

        Raises:
            QueueFullError: There are not so many.
        """
        self._require(num_answers)
        self.num_taken += num_answers
        try:
            yield
        finally:
            self.num_taken -= num_answers

    def _require(self, num_answers: int) -> None:
        if self.num_taken + num_answers > self.num_places:
            self.num_refused += 1
            raise QueueFullError(
                f"{self.num_taken:,} answers are wanted already, and at most {self.num_places:,} "
                f"may be, {self._num_waiting:,} of them waiting.",
                "ask again when some of them are given, or start the server with a longer --queue",
                num_taken=self.num_taken,
                num_places=self.num_places,
            )
