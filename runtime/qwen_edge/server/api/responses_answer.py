"""Writes answers of `/v1/responses`: items, and streams of named events about them."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qwen_edge.runtime.events import Event
from qwen_edge.server.api.counts import make_timings
from qwen_edge.server.api.event_stream import Json, named_frame
from qwen_edge.server.api.logprobs import TokenBytes, score_tokens, write_chat_logprobs
from qwen_edge.server.api.responses_request import ResponsesRequest

OnFinished = Callable[[str, Json, Mapping[str, object]], None]
"""Told id, response and message of an answer that is finished."""


class ResponsesAnswer:
    """One answer, as events come in and JSON goes out.

    Args:
        request: What was asked.
        model: Name of the model.
        token_bytes: Id to bytes, where log-probabilities are wanted; else None.
        on_finished: Told of the finished answer.

    State:
        `_items` are those begun so far; the last one may be open. Frames are numbered.
    """

    def __init__(
        self,
        request: ResponsesRequest,
        model: str,
        token_bytes: TokenBytes | None,
        on_finished: OnFinished,
    ) -> None:
        self._id = f"resp_{uuid.uuid4().hex[:24]}"
        self._created = int(time.time())
        self._request = request
        self._model = model
        self._token_bytes = token_bytes
        self._on_finished = on_finished
        self._items: list[dict[str, Any]] = []
        self._is_open = False
        self._number = 0
        self._last: Event | None = None
        self._waiting: list[bytes] = []

    def add(self, index: int, events: Sequence[Event]) -> None:
        """Take in new events; their frames are made at once."""
        del index
        for event in events:
            self._waiting.extend(self._take(event))

    def first_frames(self) -> Iterator[bytes]:
        """Yield what a stream begins with."""
        for name in ("response.created", "response.in_progress"):
            yield self._frame(name, response=self._response("in_progress"))

    def frames(self, index: int, events: Sequence[Event]) -> Iterator[bytes]:
        """Yield the frames for events that are added already."""
        del index, events
        yield from self._waiting
        self._waiting.clear()

    def last_frames(self) -> Iterator[bytes]:
        """Yield what a stream ends with."""
        whole = self.whole()
        yield self._frame(f"response.{whole['status']}", response=whole)

    def whole(self) -> Json:
        """Return the finished answer, and tell of it."""
        assert self._last is not None
        is_cut = self._last.finish_reason == "length"
        whole = self._response("incomplete" if is_cut else "completed")
        self._on_finished(self._id, whole, self._last.message)
        return whole

    def _take(self, event: Event) -> Iterator[bytes]:
        if event.kind == "reasoning":
            yield from self._add_text("reasoning", event)
        elif event.kind == "answer":
            yield from self._add_text("message", event)
        elif event.tool_call_delta is not None:
            delta = event.tool_call_delta
            if delta.name is not None:
                yield from self._begin(_make_call(delta.id, delta.name))
            elif delta.is_withdrawn:
                self._items[-1]["status"] = "incomplete"
            if delta.arguments_text:
                self._items[-1]["arguments"] += delta.arguments_text
                yield self._item_frame(
                    "response.function_call_arguments.delta", delta=delta.arguments_text
                )
        elif event.tool_call is not None:
            self._items[-1]["arguments"] = event.tool_call.arguments_text
            yield from self._end()
        elif event.kind == "done":
            self._last = event
            yield from self._end("incomplete" if event.finish_reason == "length" else "completed")

    def _add_text(self, kind: str, event: Event) -> Iterator[bytes]:
        if not self._is_open or self._items[-1]["type"] != kind:
            yield from self._begin(_make_text_item(kind))
        part = self._items[-1]["content"][0]
        part["text"] += event.text
        if kind == "reasoning":
            yield self._item_frame(
                "response.reasoning_text.delta", content_index=0, delta=event.text
            )
            return
        logprobs: list[dict[str, object]] = []
        if self._token_bytes is not None:
            tokens = score_tokens(event, self._token_bytes)
            logprobs = write_chat_logprobs(tokens, self._token_bytes)
            part["logprobs"] += logprobs
        yield self._item_frame(
            "response.output_text.delta", content_index=0, delta=event.text, logprobs=logprobs
        )

    def _begin(self, item: dict[str, Any]) -> Iterator[bytes]:
        """Yield the frames that open an item, after those that close the one before."""
        yield from self._end()
        self._items.append(item)
        self._is_open = True
        shown = {**item, "content": []} if "content" in item else item
        yield self._frame(
            "response.output_item.added", output_index=len(self._items) - 1, item=shown
        )
        if "content" in item:
            yield self._item_frame(
                "response.content_part.added", content_index=0, part=dict(item["content"][0])
            )

    def _end(self, status: str = "completed") -> Iterator[bytes]:
        """Yield the frames that close the open item, if there is one."""
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        if item["status"] == "in_progress":
            item["status"] = status
        if item["type"] == "function_call":
            yield self._item_frame(
                "response.function_call_arguments.done",
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            part = item["content"][0]
            is_text = item["type"] == "message"
            name = "output_text" if is_text else "reasoning_text"
            more = {"logprobs": part["logprobs"]} if is_text else {}
            yield self._item_frame(
                f"response.{name}.done", content_index=0, text=part["text"], **more
            )
            yield self._item_frame("response.content_part.done", content_index=0, part=part)
        yield self._frame("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _item_frame(self, event_name: str, /, **facts: object) -> bytes:
        """Return a frame about the last item."""
        index = len(self._items) - 1
        return self._frame(
            event_name, item_id=self._items[index]["id"], output_index=index, **facts
        )

    def _frame(self, event_name: str, /, **facts: object) -> bytes:
        frame = named_frame(
            event_name, {"type": event_name, "sequence_number": self._number, **facts}
        )
        self._number += 1
        return frame

    def _response(self, status: str) -> Json:
        request, timings = self._request, self._last.timings if self._last else None
        is_cut = status == "incomplete"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": list(self._items),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": _dump(request.reasoning) or {"effort": None, "summary": None},
            "store": request.store is not False,
            "temperature": request.temperature,
            "text": _dump(request.text) or {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": request.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None
            if timings is None
            else {
                "input_tokens": timings.prompt_tokens,
                "input_tokens_details": {"cached_tokens": timings.reused_tokens},
                "output_tokens": timings.decode_tokens,
                "output_tokens_details": {"reasoning_tokens": timings.reasoning_tokens},
                "total_tokens": timings.prompt_tokens + timings.decode_tokens,
            },
            **({} if timings is None else {"timings": make_timings(timings)}),
        }


def _make_text_item(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {
            "id": f"rs_{uuid.uuid4().hex[:24]}",
            "type": "reasoning",
            "status": "in_progress",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": ""}],
        }
    return {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}],
    }


def _make_call(call_id: str, name: str) -> dict[str, Any]:
    return {
        "id": f"fc_{uuid.uuid4().hex[:24]}",
        "type": "function_call",
        "status": "in_progress",
        "call_id": call_id,
        "name": name,
        "arguments": "",
    }


def _dump(settings: Any) -> Json | None:
    if settings is None:
        return None
    dumped: Json = settings.model_dump(by_alias=True, exclude_none=True)
    return dumped
