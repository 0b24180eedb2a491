"""Writes answers of `/v1/completions`."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qwen_edge.runtime.events import Event, Timings
from qwen_edge.server.api.counts import make_timings, make_usage
from qwen_edge.server.api.event_stream import DONE_FRAME, Json, data_frame
from qwen_edge.server.api.logprobs import (
    ScoredToken,
    TokenBytes,
    score_tokens,
    write_completion_logprobs,
)


@dataclass
class _Choice:
    """One answer as far as it has come."""

    texts: list[str] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)
    num_chars: int = 0
    last: Event | None = None


class CompletionAnswer:
    """The answers to one request, as events come in and JSON goes out.

    Args:
        model: Name of the model.
        num_prompts: How many prompts.
        num_each: Answers to each of them.
        token_bytes: Id to bytes, where log-probabilities are wanted; else None.
        includes_usage: Whether a stream ends with the counts.

    State:
        Remembers all there was.
    """

    def __init__(
        self,
        model: str,
        num_prompts: int,
        num_each: int,
        token_bytes: TokenBytes | None = None,
        *,
        includes_usage: bool = False,
    ) -> None:
        self._includes_usage = includes_usage
        self._id = f"cmpl-{uuid.uuid4().hex[:24]}"
        self._created = int(time.time())
        self._model = model
        self._num_each = num_each
        self._token_bytes = token_bytes
        self._choices = [_Choice() for _ in range(num_prompts * num_each)]

    def add(self, index: int, events: Sequence[Event]) -> None:
        """Take in new events of one answer."""
        choice = self._choices[index]
        for event in events:
            if event.kind == "done":
                choice.last = event
                continue
            choice.texts.append(event.text)
            choice.tokens += self._score([event])

    def whole(self) -> Json:
        """Return the finished answers."""
        choices = [
            self._write("".join(choice.texts), choice.tokens, index, choice.last)
            for index, choice in enumerate(self._choices)
        ]
        return {
            **self._head(),
            "choices": choices,
            "usage": self.usage(),
            "timings": make_timings(self._timings()[0]),
        }

    def first_frames(self) -> Iterator[bytes]:
        """Yield what a stream begins with: nothing."""
        return iter(())

    def frames(self, index: int, events: Sequence[Event]) -> Iterator[bytes]:
        """Yield one frame for new events of one answer, which are added already."""
        choice = self._choices[index]
        text = "".join(event.text for event in events)
        tokens = self._score([event for event in events if event.text])
        last = choice.last if events and events[-1].kind == "done" else None
        chunk = {**self._head(), "choices": [self._write(text, tokens, index, last)]}
        choice.num_chars += len(text)
        if last is not None and last.timings is not None:
            chunk["timings"] = make_timings(last.timings)
        if text or last is not None:
            yield data_frame(chunk)

    def last_frames(self) -> Iterator[bytes]:
        """Yield what a stream ends with: the counts, where they are wanted, and the mark."""
        if self._includes_usage:
            yield data_frame({**self._head(), "choices": [], "usage": self.usage()})
        yield DONE_FRAME

    def usage(self) -> Json:
        """Return the counts of the finished answers; each prompt is counted once."""
        timings = self._timings()
        firsts = timings[:: self._num_each]
        usage = make_usage(timings)
        prompt = sum(one.prompt_tokens for one in firsts)
        completion = sum(one.decode_tokens for one in timings)
        cached = sum(one.reused_tokens for one in firsts)
        return usage | {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _score(self, events: Sequence[Event]) -> list[ScoredToken]:
        if self._token_bytes is None:
            return []
        return [token for event in events for token in score_tokens(event, self._token_bytes)]

    def _timings(self) -> list[Timings]:
        lasts = [choice.last for choice in self._choices]
        return [last.timings for last in lasts if last is not None and last.timings is not None]

    def _head(self) -> Json:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": None,
        }

    def _write(
        self, text: str, tokens: Sequence[ScoredToken], index: int, last: Event | None
    ) -> Json:
        logprobs = None
        if self._token_bytes is not None:
            start = self._choices[index].num_chars
            logprobs = write_completion_logprobs(tokens, self._token_bytes, start)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": last.finish_reason if last else None,
        }
