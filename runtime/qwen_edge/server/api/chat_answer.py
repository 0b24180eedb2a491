"""Writes answers of `/v1/chat/completions`: whole ones, and streams of chunks."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from qwen_edge.runtime.events import Event, Timings
from qwen_edge.runtime.tools.tool_call import ToolCall, ToolCallDelta
from qwen_edge.server.api.counts import make_timings, make_usage
from qwen_edge.server.api.event_stream import DONE_FRAME, Json, data_frame
from qwen_edge.server.api.logprobs import ScoredToken, TokenBytes, score_tokens, write_chat_logprobs


@dataclass
class _Choice:
    """One answer as far as it has come.

    State:
        Grows with every event.
    """

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)
    last: Event | None = None


class ChatAnswer:
    """The answers to one request, as events come in and JSON goes out.

    Args:
        model: Name of the model.
        num_choices: How many answers.
        token_bytes: Id to bytes, where log-probabilities are wanted; else None.
        includes_usage: Whether a stream ends with the counts.

    State:
        Remembers all there was, for whole answers and for the counts at the end.
    """

    def __init__(
        self,
        model: str,
        num_choices: int,
        token_bytes: TokenBytes | None = None,
        *,
        includes_usage: bool = False,
    ) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex[:24]}"
        self._includes_usage = includes_usage
        self._created = int(time.time())
        self._model = model
        self._token_bytes = token_bytes
        self._choices = [_Choice() for _ in range(num_choices)]

    def add(self, index: int, events: Sequence[Event]) -> None:
        """Take in new events of one answer."""
        choice = self._choices[index]
        for event in events:
            if event.kind == "reasoning":
                choice.reasoning.append(event.text)
            elif event.kind == "answer":
                choice.content.append(event.text)
                if self._token_bytes is not None:
                    choice.tokens += score_tokens(event, self._token_bytes)
            elif event.tool_call is not None:
                choice.calls.append(event.tool_call)
            elif event.kind == "done":
                choice.last = event

    def whole(self) -> Json:
        """Return the finished answers."""
        choices = [self._write_choice(i, choice) for i, choice in enumerate(self._choices)]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": self.usage(),
            "timings": make_timings(self._timings()[0]),
        }

    def first_frames(self) -> Iterator[bytes]:
        """Yield what a stream begins with: the role of each answer."""
        for index in range(len(self._choices)):
            yield data_frame(self._chunk(index, {"role": "assistant", "content": ""}))

    def frames(self, index: int, events: Sequence[Event]) -> Iterator[bytes]:
        """Yield the frames for new events of one answer, which are added already."""
        yield from map(data_frame, self._chunks(index, events))

    def last_frames(self) -> Iterator[bytes]:
        """Yield what a stream ends with: the counts, where they are wanted, and the mark."""
        if self._includes_usage:
            yield data_frame(
                {
                    **self._head("chat.completion.chunk"),
                    "choices": [],
                    "usage": self.usage(),
                    "timings": make_timings(self._timings()[0]),
                }
            )
        yield DONE_FRAME

    def _chunks(self, index: int, events: Sequence[Event]) -> Iterator[Json]:
        """Yield the chunks for new events; texts that follow each other are joined."""
        for kind, run in groupby((event for event in events if event.text), _kind_of):
            joined = list(run)
            text = "".join(event.text for event in joined)
            if kind == "reasoning":
                yield self._chunk(index, {"reasoning_content": text, "reasoning": text})
            else:
                yield self._chunk(index, {"content": text}, scored=joined)
        # Calls come after the text before them, and nothing follows but further calls.
        for event in events:
            if event.tool_call_delta is not None:
                yield self._chunk(index, {"tool_calls": [_write_delta(event.tool_call_delta)]})
            elif event.kind == "done":
                chunk = self._chunk(index, {}, finish_reason=event.finish_reason)
                if event.timings is not None:
                    chunk["timings"] = make_timings(event.timings)
                yield chunk

    def usage(self) -> Json:
        """Return the counts of the finished answers."""
        return make_usage(self._timings())

    def _timings(self) -> list[Timings]:
        lasts = [choice.last for choice in self._choices]
        return [last.timings for last in lasts if last is not None and last.timings is not None]

    def _head(self, kind: str) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": None,
        }

    def _chunk(
        self,
        index: int,
        delta: Json,
        *,
        finish_reason: str | None = None,
        scored: Sequence[Event] = (),
    ) -> Json:
        logprobs = None
        if self._token_bytes is not None and scored:
            logprobs = self._logprobs(
                [token for event in scored for token in score_tokens(event, self._token_bytes)]
            )
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _write_choice(self, index: int, choice: _Choice) -> Json:
        content, reasoning = "".join(choice.content), "".join(choice.reasoning)
        message: Json = {
            "role": "assistant",
            "content": content if content or not choice.calls else None,
            "refusal": None,
            "annotations": [],
        }
        if reasoning:
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        if choice.calls:
            message["tool_calls"] = [_write_call(call) for call in choice.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": choice.last.finish_reason if choice.last else None,
        }

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> Json | None:
        if self._token_bytes is None:
            return None
        return {"content": write_chat_logprobs(tokens, self._token_bytes), "refusal": None}


def _kind_of(event: Event) -> str:
    return event.kind


def _write_call(call: ToolCall) -> Json:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments_text},
    }


def _write_delta(delta: ToolCallDelta) -> Json:
    if delta.name is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments_text}}
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments_text},
    }
