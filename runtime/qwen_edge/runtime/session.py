"""A conversation with a model: streams answers, remembers messages, reuses the cache.

The ladder is `generate_tokens` (ids), `Session.stream` (events), `Session.ask` (an answer).
A session knows messages and limits; the cache belongs to the model, and sessions take turns
on it. Read `turn.py` for how ids become events and `prefix_cache.py` for the reuse.
"""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from qwen_edge.errors import UsageError
from qwen_edge.runtime.chat import Message, check_messages
from qwen_edge.runtime.events import Answer, Event, FinishReason
from qwen_edge.runtime.generation import generate_tokens
from qwen_edge.runtime.limits import check_max_new_tokens
from qwen_edge.runtime.sampling import SamplingParams, make_sampler
from qwen_edge.runtime.stopping import check_stop_strings
from qwen_edge.runtime.turn import Stopwatch, TurnText, collect_answer, make_splitter

if TYPE_CHECKING:
    from qwen_edge.runtime.model import Model

SessionState = Literal["new", "ready", "closed"]
Prompt = str | Sequence[Message]

_LONG_TEXT_CHARS = 100_000  # from here a lower bound is computed before the exact count


@dataclass(frozen=True)
class _Plan:
    """One checked request: what to feed, how to sample, what to remember."""

    base: tuple[Message, ...]
    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    text: TurnText


class Session:
    """One conversation. Made by `Model.session`.

    Args:
        model: Lends its cache for the time of each answer.
        system: System message, kept for the whole conversation.
        thinking: Default for `stream`; None leaves it to the model.
        sampling: Default for `stream`; None takes the package's settings.
        max_new_tokens: Default for `stream`; None means up to the end of the context.

    State:
        New until the first answer begins, then ready, after `close` closed. Laws, at every
        event: `cached_ids == conversation_ids[:len(cached_ids)]`; and `messages` changes only
        when an answer ends.
    """

    def __init__(
        self,
        model: "Model",
        *,
        system: str | None = None,
        thinking: bool | None = None,
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        model.chat_template.check_thinking(thinking)
        check_max_new_tokens(max_new_tokens)
        self._model = model
        self._thinking = thinking
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._system: tuple[Message, ...] = (
            () if system is None else ({"role": "system", "content": system},)
        )
        self._messages: tuple[Message, ...] = self._system
        self._conversation_ids: list[int] = []
        self._cancelled = threading.Event()
        self._state_lock = threading.Lock()
        self._state: SessionState = "new"

    def __enter__(self) -> "Session":
        self._check_open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def state(self) -> SessionState:
        """Where the session is in its life."""
        return self._state

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, the system message first."""
        return self._messages

    @property
    def conversation_ids(self) -> tuple[int, ...]:
        """Ids of the last prompt and of the answer to it."""
        return tuple(self._conversation_ids)

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """The beginning of `conversation_ids` that the model's cache holds now.

        Another session of the same model may have used the cache in between; then only what
        both conversations begin with is left.
        """
        cached = self._model.prefix_cache.cached_ids
        num_common = 0
        for cached_id, own_id in zip(cached, self._conversation_ids, strict=False):
            if cached_id != own_id:
                break
            num_common += 1
        return cached[:num_common]

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
        thinking: bool | None = None,
        stop: str | Sequence[str] = (),
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> Generator[Event, None, None]:
        """Return the answer as a stream of events, the last one of kind "done".

        All arguments and the length are checked here; nothing is computed before the first
        `next()`. Closing the generator, or `cancel`, ends the answer. A cancelled answer is
        remembered as far as it was given out; without any answer text the turn is forgotten.

        Args:
            prompt: A text adds a user message. A list of messages replaces the conversation;
                the session's system message is put before it unless it brings one.
            sampling: How to choose tokens.
            max_new_tokens: At least one; the end of the context also ends the answer.
            thinking: Whether to think first.
            stop: Texts that end the answer; they are not shown. Reasoning may hold them.
            tools: Function schemas offered to the model.

        Raises:
            UsageError: An argument is out of range, or the session is closed.
            ContextFullError: The prompt leaves no room in the context.
            PackageError: The chat template or the tokenizer failed.
        """
        self._check_open()
        plan = self._plan(
            prompt,
            sampling,
            max_new_tokens,
            thinking,
            (stop,) if isinstance(stop, str) else stop,
            tools,
        )
        return self._run(plan)

    def ask(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
        thinking: bool | None = None,
        stop: str | Sequence[str] = (),
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> Answer:
        """Return a whole answer; the arguments and errors are those of `stream`."""
        events = self.stream(
            prompt,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            thinking=thinking,
            stop=stop,
            tools=tools,
        )
        return collect_answer(events)

    def cancel(self) -> None:
        """End the answer that is being streamed, from any thread.

        The stream then ends with a "done" event whose reason is "cancelled", after at most
        one forward call. Without a stream nothing happens.
        """
        self._cancelled.set()

    def close(self) -> None:
        """End the session. The model stays open; closing twice is harmless."""
        with self._state_lock:
            self._cancelled.set()
            self._state = "closed"

    def _begin(self) -> None:
        """Start an answer; `close` in another thread comes wholly before or wholly after."""
        with self._state_lock:
            self._check_open()
            self._cancelled.clear()
            self._state = "ready"

    def _plan(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None,
        max_new_tokens: int | None,
        thinking: bool | None,
        stop: Sequence[str],
        tools: Sequence[Mapping[str, object]] | None,
    ) -> _Plan:
        """Check a request and return what it needs. Changes nothing."""
        model = self._model
        check_stop_strings(stop)
        check_max_new_tokens(max_new_tokens)
        thinking = self._thinking if thinking is None else thinking
        messages = self._with_prompt(prompt)
        self._check_long_text(messages)
        prompt_ids = model.chat_template.encode(messages, tools=tools, thinking=thinking)
        model.check_prompt_tokens(len(prompt_ids))
        room = model.max_context_tokens - len(prompt_ids)
        limit = max_new_tokens or self._max_new_tokens or room
        chat = model.chat
        splitter = make_splitter(
            model.tokenizer.token_bytes, prompt_ids, chat.think_open_id, chat.think_close_id
        )
        return _Plan(
            base=self._messages,
            messages=messages,
            prompt_ids=tuple(prompt_ids),
            sampling=sampling or self._sampling or model.sampling_defaults(thinking),
            max_new_tokens=min(limit, room),
            text=TurnText(splitter, stop),
        )

    def _with_prompt(self, prompt: Prompt) -> tuple[Message, ...]:
        """Return the conversation that a prompt leads to, as a plain copy."""
        if isinstance(prompt, str):
            return (*self._messages, *check_messages([{"role": "user", "content": prompt}]))
        messages = tuple(check_messages(prompt))
        has_system = messages[0]["role"] == "system"
        return messages if has_system else (*self._system, *messages)

    def _check_long_text(self, messages: Sequence[Message]) -> None:
        """Raise ContextFullError early when one text alone is longer than the context."""
        for message in messages:
            content = str(message["content"])
            if len(content) >= _LONG_TEXT_CHARS:
                num_tokens = self._model.tokenizer.count_at_least(content)
                self._model.check_prompt_tokens(num_tokens, is_lower_bound=True)

    def _run(self, plan: _Plan) -> Generator[Event, None, None]:
        """Yield the events of one answer; remember it when it ends."""
        with self._model.borrow_cache():
            self._begin()
            if self._messages is not plan.base:
                raise UsageError(
                    "The conversation went on after this stream was made, so its prompt is old.",
                    "call stream() again, and read one stream to its end before making the next",
                )
            watch = Stopwatch(len(plan.prompt_ids))
            try:
                finish_reason = yield from self._stream_text(plan, watch)
            except (GeneratorExit, KeyboardInterrupt):
                self._remember(plan, "cancelled")
                raise
            self._remember(plan, finish_reason)
            yield plan.text.done(finish_reason, watch.read())

    def _stream_text(self, plan: _Plan, watch: Stopwatch) -> Generator[Event, None, FinishReason]:
        """Yield the text events of one answer and return why it ended."""
        eos_token_ids = self._model.generation.eos_token_ids
        text = plan.text
        for token_id in self._iter_tokens(plan, watch):
            if token_id in eos_token_ids:
                text.push_hidden(token_id)
                yield from text.finish()
                return "stop"
            yield from text.push(token_id)
            if text.is_stopped:
                return "stop"
        yield from text.finish()
        if text.is_stopped:
            return "stop"
        is_cancelled = self._cancelled.is_set() or self._model.is_closed
        return "cancelled" if is_cancelled else "length"

    def _iter_tokens(self, plan: _Plan, watch: Stopwatch) -> Iterator[int]:
        """Yield new ids; keep the record of the cache and of the conversation."""
        model = self._model
        model.wait_until_warm()
        num_reused = model.prefix_cache.begin(plan.prompt_ids)
        watch.reused(num_reused)
        self._conversation_ids = list(plan.prompt_ids)
        token_ids = generate_tokens(
            model.backend,
            plan.prompt_ids[num_reused:],
            sample=make_sampler(plan.sampling),
            max_new_tokens=plan.max_new_tokens,
            prefill_chunk_tokens=model.prefill_chunk_tokens,
            is_cancelled=lambda: self._cancelled.is_set() or model.is_closed,
        )
        for token_id in token_ids:
            watch.decoded()
            model.prefix_cache.append(token_id)
            self._conversation_ids.append(token_id)
            yield token_id

    def _remember(self, plan: _Plan, finish_reason: FinishReason) -> None:
        """Add the turn to the conversation, unless it was cancelled before any answer."""
        answer, reasoning = plan.text.answer, plan.text.reasoning
        if finish_reason == "cancelled" and not answer:
            return
        message: dict[str, object] = {"role": "assistant", "content": answer}
        if reasoning:
            # Kept apart: the template drops the reasoning of earlier turns.
            message["reasoning_content"] = reasoning
        self._messages = (*plan.messages, message)

    def _check_open(self) -> None:
        """Raise UsageError when the session or its model is closed."""
        if self._state == "closed":
            raise UsageError(
                "This session is closed.", "open a new one with model.session()", state=self._state
            )
        self._model.check_open()
