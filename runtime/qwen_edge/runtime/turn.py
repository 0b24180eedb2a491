"""One answer in the making: ids in, events out, until a stop string, a stop id or the limit.

Joins the reasoning splitter and the stop matcher. It knows nothing of backends or sessions;
read `session.py` for who drives it.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from qwen_edge.runtime.events import Answer, Event, EventKind, FinishReason, Timings
from qwen_edge.runtime.reasoning import ReasoningSplitter
from qwen_edge.runtime.stopping import StopMatcher

_MAX_LAYOUT_TOKENS = 4  # `<think>`, a line break, and room for a template that adds more


class TurnText:
    """Collects one answer and cuts it into events.

    Stop strings are looked for in the answer only: reasoning is not for them to cut.

    Args:
        splitter: A fresh one.
        stop_strings: Checked here.

    Raises:
        UsageError: A stop string is empty.

    State:
        Grows with every id; `token_ids` holds all of them, also those whose text is hidden.
    """

    def __init__(self, splitter: ReasoningSplitter, stop_strings: Sequence[str]) -> None:
        self._splitter = splitter
        self._matcher = StopMatcher(stop_strings)
        self._texts: dict[EventKind, list[str]] = {"reasoning": [], "answer": []}
        self._pending: list[int] = []
        self.token_ids: list[int] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self._matcher.matched is not None

    @property
    def answer(self) -> str:
        """Answer text given out so far."""
        return "".join(self._texts["answer"])

    @property
    def reasoning(self) -> str:
        """Reasoning text given out so far."""
        return "".join(self._texts["reasoning"])

    def push(self, token_id: int) -> Iterator[Event]:
        """Add an id and yield the events that it completes."""
        self.push_hidden(token_id)
        for kind, text in self._splitter.push(token_id):
            yield from self._emit(kind, self._matcher.push(text) if kind == "answer" else text)

    def push_hidden(self, token_id: int) -> None:
        """Add an id that has no text, such as the end of the answer."""
        self.token_ids.append(token_id)
        self._pending.append(token_id)

    def finish(self) -> Iterator[Event]:
        """Yield the text held back; call it once, when no stop string was completed."""
        for kind, text in self._splitter.finish():
            yield from self._emit(kind, self._matcher.push(text) if kind == "answer" else text)
        yield from self._emit("answer", self._matcher.finish())

    def done(self, finish_reason: FinishReason, timings: Timings) -> Event:
        """Return the last event, with the ids that no other event carried."""
        return Event("done", "", self._take_pending(), finish_reason, timings)

    def _emit(self, kind: EventKind, text: str) -> Iterator[Event]:
        """Yield an event when there is text to show."""
        if text:
            self._texts[kind].append(text)
            yield Event(kind, text, self._take_pending())

    def _take_pending(self) -> tuple[int, ...]:
        """Return the ids since the last event."""
        pending = tuple(self._pending)
        self._pending.clear()
        return pending


def collect_answer(events: Iterator[Event]) -> Answer:
    """Read a stream to its end and return it as one answer."""
    answer: list[str] = []
    reasoning: list[str] = []
    token_ids: list[int] = []
    for event in events:
        token_ids.extend(event.token_ids)
        if event.kind == "reasoning":
            reasoning.append(event.text)
        elif event.kind == "answer":
            answer.append(event.text)
        elif event.finish_reason is not None and event.timings is not None:
            return Answer(
                "".join(answer),
                "".join(reasoning),
                tuple(token_ids),
                event.finish_reason,
                event.timings,
            )
    raise AssertionError("a stream ends with a done event")


def make_splitter(
    token_bytes: Callable[[int], bytes],
    prompt_ids: Sequence[int],
    open_id: int | None,
    close_id: int | None,
) -> ReasoningSplitter:
    """Return a splitter for the answer to a prompt.

    Args:
        token_bytes: See `Detokenizer`.
        prompt_ids: Its end tells whether the template already opened a think block, as those
            of models that always think do.
        open_id: Id of `<think>`, or None.
        close_id: Id of `</think>`, or None.
    """
    starts_open = False
    for token_id in reversed(prompt_ids[-_MAX_LAYOUT_TOKENS:]):
        if token_id in (open_id, close_id):
            starts_open = token_id == open_id
            break
    return ReasoningSplitter(token_bytes, open_id, close_id, starts_open=starts_open)


class Stopwatch:
    """Durations and counts of one turn."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._start_s = time.perf_counter()
        self._first_s: float | None = None
        self._num_reused = 0
        self._num_decoded = 0

    def reused(self, num_tokens: int) -> None:
        """Note how much of the prompt was in the cache."""
        self._num_reused = num_tokens

    def decoded(self) -> None:
        """Note one new token."""
        self._num_decoded += 1
        if self._first_s is None:
            self._first_s = time.perf_counter()

    def read(self) -> Timings:
        """Return the timings up to now."""
        return Timings(
            prompt_tokens=self._num_prompt_tokens,
            reused_tokens=self._num_reused,
            prefill_tokens=self._num_prompt_tokens - self._num_reused,
            decode_tokens=self._num_decoded,
            ttft_s=None if self._first_s is None else self._first_s - self._start_s,
            total_s=time.perf_counter() - self._start_s,
        )
