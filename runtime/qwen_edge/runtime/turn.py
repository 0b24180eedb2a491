"""One answer in the making: ids in, events out, until a stop string, a stop id or the limit.

Joins the reasoning splitter, the stop matcher and the reader of tool calls. It knows nothing of
backends or sessions; read `session.py` for who drives it.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qwen_edge.runtime.decoding.picker import NewToken
from qwen_edge.runtime.decoding.reasoning import read_reasoning_start
from qwen_edge.runtime.decoding.sampling import TokenLogprobs
from qwen_edge.runtime.events import Answer, Event, EventKind, FinishReason, Timings
from qwen_edge.runtime.reasoning import Piece, ReasoningSplitter
from qwen_edge.runtime.stopping import StopMatcher
from qwen_edge.runtime.tools.messages import build_call_message
from qwen_edge.runtime.tools.tool_call import ToolCall, ToolCallDelta

if TYPE_CHECKING:
    from qwen_edge.runtime.chat import Message
    from qwen_edge.runtime.decoding.draft_account import SpeculationStats
    from qwen_edge.runtime.tools.call_parser import ToolCallParser
    from qwen_edge.runtime.tools.tool_call import CallPiece


class TurnText:
    """Collects one answer and cuts it into events.

    Stop strings are looked for in the answer only: reasoning and calls are not for them to cut.

    Args:
        splitter: A fresh one.
        stop_strings: Checked here.
        calls: Reads tool calls; None where no tools were offered.
        tag_ids: Ids of `<tool_call>` and `</tool_call>`, where calls are read.

    Raises:
        UsageError: A stop string is empty.

    State:
        Grows with every token; `token_ids` holds all of them, also those whose text is hidden.
    """

    def __init__(
        self,
        splitter: ReasoningSplitter,
        stop_strings: Sequence[str],
        calls: "ToolCallParser | None" = None,
        tag_ids: tuple[int, int] | None = None,
    ) -> None:
        self._splitter = splitter
        self._matcher = StopMatcher(stop_strings)
        self._calls = calls
        self._open_id = None if tag_ids is None else tag_ids[0]
        self._close_id = None if tag_ids is None else tag_ids[1]
        self._is_call_cut_off = False
        self._texts: dict[EventKind, list[str]] = {"reasoning": [], "answer": []}
        self._pending: list[NewToken] = []
        self._num_reasoning = 0
        self._num_forced = 0
        self.token_ids: list[int] = []
        self.tool_calls: list[ToolCall] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self._matcher.matched is not None

    @property
    def natural_end(self) -> FinishReason:
        """Why the answer ended, where the model itself ended it."""
        return "tool_calls" if self.tool_calls else "stop"

    @property
    def answer(self) -> str:
        """Answer text given out so far."""
        return "".join(self._texts["answer"])

    @property
    def reasoning(self) -> str:
        """Reasoning text given out so far."""
        return "".join(self._texts["reasoning"])

    @property
    def message(self) -> "Message":
        """The answer so far as a message of the conversation."""
        return build_call_message(self.answer, self.tool_calls, reasoning=self.reasoning)

    def push(self, token: NewToken) -> Iterator[Event]:
        """Add a token and yield the events that it completes."""
        self.push_hidden(token)
        was_reasoning = self._splitter.is_open
        is_tag = token.token_id in (self._open_id, self._close_id)
        if self._calls is not None and is_tag and not was_reasoning:
            yield from self._show(self._splitter.flush())
            is_open = token.token_id == self._open_id
            yield from self._show_calls(
                self._calls.push_open() if is_open else self._calls.push_close()
            )
            return
        yield from self._show(self._splitter.push(token.token_id))
        self._num_reasoning += was_reasoning or self._splitter.is_open

    def push_hidden(self, token: NewToken) -> None:
        """Add a token that has no text, such as the end of the answer."""
        self.token_ids.append(token.token_id)
        self._pending.append(token)
        self._num_forced += token.is_forced

    def finish(self) -> Iterator[Event]:
        """Yield the text held back; call it once, when no stop string was completed."""
        yield from self._show(self._splitter.finish())
        if self._calls is not None:
            self._is_call_cut_off = self._calls.is_in_call
            yield from self._show_calls(self._calls.finish())
        yield from self._emit("answer", self._matcher.finish())

    def done(
        self,
        finish_reason: FinishReason,
        timings: Timings,
        dropped_messages: "Sequence[Message]" = (),
        speculation: "SpeculationStats | None" = None,
        notices: Sequence[str] = (),
    ) -> Event:
        """Return the last event, with the ids that no other event carried."""
        ids, logprobs = self._take_pending()
        counted = replace(
            timings, forced_tokens=self._num_forced, reasoning_tokens=self._num_reasoning
        )
        return Event(
            "done",
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=finish_reason,
            timings=counted,
            dropped_messages=tuple(dropped_messages),
            speculation=speculation,
            message=self.message,
            is_call_cut_off=self._is_call_cut_off,
            notices=tuple(notices),
        )

    def _show(self, pieces: Iterator[Piece]) -> Iterator[Event]:
        """Yield events for text of the splitter."""
        for kind, text in pieces:
            if kind == "answer" and self._calls is not None:
                yield from self._show_calls(self._calls.push(text))
            else:
                yield from self._emit(kind, self._matcher.push(text) if kind == "answer" else text)

    def _show_calls(self, pieces: "Sequence[CallPiece]") -> Iterator[Event]:
        """Yield events for what the parser found: calls, or text after all."""
        for piece in pieces:
            if isinstance(piece, str):
                yield from self._emit("answer", self._matcher.push(piece))
                continue
            if isinstance(piece, ToolCallDelta) and piece.name is not None:
                # A stop string does not reach over a call, and text stays before it.
                yield from self._emit("answer", self._matcher.finish())
            ids, logprobs = self._take_pending()
            if isinstance(piece, ToolCall):
                self.tool_calls.append(piece)
                yield Event("tool_call", token_ids=ids, logprobs=logprobs, tool_call=piece)
            else:
                yield Event(
                    "tool_call_delta", token_ids=ids, logprobs=logprobs, tool_call_delta=piece
                )

    def _emit(self, kind: EventKind, text: str) -> Iterator[Event]:
        """Yield an event when there is text to show."""
        if text:
            self._texts[kind].append(text)
            ids, logprobs = self._take_pending()
            yield Event(kind, text, ids, logprobs=logprobs)

    def _take_pending(self) -> tuple[tuple[int, ...], tuple[TokenLogprobs | None, ...]]:
        """Return the ids since the last event, and how likely they were where that is known."""
        ids = tuple(token.token_id for token in self._pending)
        logprobs = tuple(token.logprobs for token in self._pending)
        self._pending.clear()
        return ids, logprobs if any(logprobs) else ()


def collect_answer(events: Iterator[Event]) -> Answer:
    """Read a stream to its end and return it as one answer."""
    texts: dict[EventKind, list[str]] = {"reasoning": [], "answer": []}
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs | None] = []
    calls: list[ToolCall] = []
    for event in events:  # read to its end, which closes it
        token_ids.extend(event.token_ids)
        logprobs.extend(event.logprobs or [None] * len(event.token_ids))
        if event.text:
            texts[event.kind].append(event.text)
        if event.tool_call is not None:
            calls.append(event.tool_call)
        if event.finish_reason is not None and event.timings is not None:
            return Answer(
                "".join(texts["answer"]),
                "".join(texts["reasoning"]),
                tuple(token_ids),
                event.finish_reason,
                event.timings,
                tuple(calls),
                tuple(logprobs) if any(logprobs) else (),
                event.dropped_messages,
                event.speculation,
                event.is_call_cut_off,
                event.message,
                event.notices,
            )
    raise AssertionError("a stream ends with a done event")


class AnswerReader:
    """Reads an answer token by token, up to a stop id or a stop string.

    Args:
        text: A fresh one.
        stop_token_ids: Ids that end the answer.

    State:
        Ends with the token that sets `finish_reason`, or with `finish`; then nothing more may
        be given to it.
    """

    def __init__(self, text: TurnText, stop_token_ids: Collection[int]) -> None:
        self.text = text
        self.finish_reason: FinishReason | None = None
        self._stop_token_ids = stop_token_ids

    def push(self, token: NewToken) -> Iterator[Event]:
        """Take a token and yield the events that it completes; read them to their end."""
        if token.token_id in self._stop_token_ids:
            self.text.push_hidden(token)
            yield from self.text.finish()
            self.finish_reason = self.text.natural_end
            return
        yield from self.text.push(token)
        if self.text.is_stopped:
            self.finish_reason = "stop"

    def finish(self) -> Iterator[Event]:
        """Yield what was held back, where the tokens just came to an end."""
        if self.finish_reason is None:
            yield from self.text.finish()
            self.finish_reason = "stop" if self.text.is_stopped else None


def show_tokens(
    text: TurnText, tokens: Iterable[NewToken], stop_token_ids: Collection[int]
) -> Generator[Event, None, FinishReason | None]:
    """Yield the events of an answer's tokens.

    Args:
        text: A fresh one.
        tokens: Read as far as needed.
        stop_token_ids: Ids that end the answer.

    Returns:
        Why the answer ended; None where the tokens just came to an end.
    """
    reader = AnswerReader(text, stop_token_ids)
    for token in tokens:
        yield from reader.push(token)
        if reader.finish_reason is not None:
            return reader.finish_reason
    yield from reader.finish()
    return reader.finish_reason


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
    starts_open = (
        open_id is not None
        and close_id is not None
        and read_reasoning_start(prompt_ids, open_id, close_id) == "open"
    )
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
        """Note a new token."""
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
