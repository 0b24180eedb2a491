"""Responses that a later request may go on from: in memory only, the oldest forgotten first."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwen_edge.server.refusals import HttpRefusal

MAX_RESPONSES = 256
MAX_STORED_CHARS = 32_000_000

PlainMessage = Mapping[str, object]


@dataclass(frozen=True)
class StoredResponse:
    """A response, and the conversation up to its end, without instructions."""

    response: dict[str, object]
    messages: tuple[PlainMessage, ...]
    num_chars: int


class ResponseStore:
    """What `/v1/responses` remembers. Belongs to the event loop.

    State:
        At most `MAX_RESPONSES`, and at most `MAX_STORED_CHARS` of JSON in all.
    """

    def __init__(self) -> None:
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_chars = 0

    def __len__(self) -> int:
        return len(self._stored)

    def add(
        self, response_id: str, response: dict[str, object], messages: Sequence[PlainMessage]
    ) -> None:
        """Remember a response; forget the oldest where that is too much."""
        num_chars = len(json.dumps([response, list(messages)], ensure_ascii=False))
        self._stored[response_id] = StoredResponse(response, tuple(messages), num_chars)
        self._num_chars += num_chars
        while len(self._stored) > MAX_RESPONSES or self._num_chars > MAX_STORED_CHARS:
            _, forgotten = self._stored.popitem(last=False)
            self._num_chars -= forgotten.num_chars

    def find(self, response_id: str, param: str | None = None) -> StoredResponse:
        """Return a response.

        Raises:
            HttpRefusal: 404: there is none of this id, or not any more.
        """
        if response_id not in self._stored:
            raise HttpRefusal(
                404,
                f"There is no stored response {response_id!r:.80}. The last {MAX_RESPONSES} are "
                "kept, in memory only.",
                "send the whole conversation as input",
                code="response_not_found",
                param=param,
            )
        return self._stored[response_id]

    def remove(self, response_id: str) -> None:
        """Forget a response.

        Raises:
            HttpRefusal: As `find`.
        """
        self._num_chars -= self.find(response_id).num_chars
        del self._stored[response_id]
