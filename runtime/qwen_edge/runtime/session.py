"""A conversation with a model: streams answers, remembers messages, reuses the cache.

The ladder is `generate_tokens` (ids), `Session.stream` (events), `Session.ask` (an answer).
A session knows messages and limits; the cache belongs to the model, and sessions take turns
on it. Read `planning.py` for what is checked before an answer, `turn.py` for how ids become
events and `prefix_cache.py` for the reuse.
"""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack

from qwen_edge.errors import UsageError
from qwen_edge.runtime.answer_options import AnswerOptions, ResolvedOptions, resolve_options
from qwen_edge.runtime.chat import Message, check_messages
from qwen_edge.runtime.decoding.picker import NewToken
from qwen_edge.runtime.events import Answer, Event, FinishReason
from qwen_edge.runtime.limits import check_num_answers
from qwen_edge.runtime.planning import AnswerPlan, plan_answer
from qwen_edge.runtime.saved_session import save_session
from qwen_edge.runtime.token_stream import stream_tokens
from qwen_edge.runtime.turn import Stopwatch, collect_answer, show_tokens

if TYPE_CHECKING:
    from qwen_edge.runtime.model import Model

SessionState = Literal["new", "ready", "closed"]
Prompt = str | Sequence[Message] | None
MAX_TOOL_ROUNDS = 8


class Session:
    """One conversation. Made by `Model.session`.

    Args:
        model: Lends its cache for the time of each answer.
        system: System message, kept for the whole conversation.
        defaults: Options of every answer that does not bring its own; see `AnswerOptions`.

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
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._defaults = dict(defaults or {})
        model.chat_template.check_thinking(resolve_options(self._defaults, {}).thinking)
        self._model = model
        self._system: tuple[Message, ...] = ()
        if system is not None:
            message = {"role": "system", "content": system}
            self._system = tuple(check_messages([message], is_complete=False))
        self._messages: tuple[Message, ...] = self._system
        self._conversation_ids: list[int] = []
        self._cancelled = threading.Event()
        self._state_lock = threading.Lock()
        self._state: SessionState = "new"
        self._is_answering = False

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
        """The conversation so far, the system message first; a copy."""
        return deepcopy(self._messages)

    @property
    def conversation_ids(self) -> tuple[int, ...]:
        """Ids of the last prompt and of the answer to it."""
        return tuple(self._conversation_ids)

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """The beginning of `conversation_ids` that the cache holds now, whoever used it last."""
        pairs = zip(self._model.prefix_cache.cached_ids, self._conversation_ids, strict=False)
        return tuple(own for _, own in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def stream(
        self, prompt: Prompt = None, **options: Unpack[AnswerOptions]
    ) -> Generator[Event, None, None]:
        """Return the answer as a stream of events, the last one of kind "done".

        All options and the length are checked here; nothing is computed before the first
        `next()`. Closing the generator, or `cancel`, ends the answer. A cancelled answer is
        remembered as far as it was given out; without any answer text the turn is forgotten.

        Args:
            prompt: A text adds a user message. A list of messages replaces the conversation;
                the session's system message is put before it unless it brings one. None
                answers the conversation as it is, after `add`.
            **options: See `AnswerOptions`; they win over the session's.

        Raises:
            UsageError: An option is out of range, or the session is closed.
            GrammarError: What the answer must look like cannot be made a grammar.
            ContextFullError: The prompt leaves no room in the context.
            PackageError: The chat template or the tokenizer failed.
        """
        self._check_open()
        base = self._messages
        plan = self._plan(prompt, resolve_options(self._defaults, options))
        return self._run(plan, base)

    def ask(self, prompt: Prompt = None, **options: Unpack[AnswerOptions]) -> Answer:
        """Return a whole answer; the arguments and errors are those of `stream`."""
        return collect_answer(self.stream(prompt, **options))

    def ask_several(
        self, prompt: Prompt = None, *, n: int, **options: Unpack[AnswerOptions]
    ) -> tuple[Answer, ...]:
        """Return `n` answers to the same prompt; none of them becomes part of the conversation.

        The prompt is computed once. Each has a seed of its own, made from the one given. To go on
        from one of them: `session.add(prompt message, answer.message)`.

        Args:
            prompt: As for `stream`.
            n: At least one.
            **options: As for `stream`.

        Raises:
            UsageError: `n` is no number of answers.
            EdgeError: As `stream`.
        """
        check_num_answers(n)
        self._check_open()
        resolved = resolve_options(self._defaults, options)
        base = self._messages
        answers = []
        for index in range(n):
            plan = self._plan(prompt, resolved, answer_index=index)
            answers.append(collect_answer(self._run(plan, base, is_remembered=False)))
            if answers[-1].finish_reason == "cancelled":
                break
        return tuple(answers)

    def ask_with_tools(
        self,
        prompt: Prompt = None,
        *,
        max_rounds: int = MAX_TOOL_ROUNDS,
        **options: Unpack[AnswerOptions],
    ) -> Answer:
        """Return the answer to a prompt after calling the Python functions among the tools.

        Calls are made one after the other and their results are given to the model, until it
        answers without a call. What a function raises is given to the model as its result.

        Args:
            prompt: As for `stream`.
            max_rounds: Most times that results are given back.
            **options: As for `stream`; `tools` must hold Python functions.

        Raises:
            UsageError: A tool has no function, or the model still calls tools
                after `max_rounds`. The conversation keeps what was said.
            ContextFullError: The context ended in the middle of a call.
            EdgeError: As `stream`.
        """
        from qwen_edge.runtime.tools.tool_loop import ask_with_tools

        tools = resolve_options(self._defaults, options).tools
        return ask_with_tools(self, prompt, max_rounds=max_rounds, **{**options, "tools": tools})

    def add(self, *messages: Message) -> None:
        """Add messages without answering, such as the results of tool calls.

        Raises:
            UsageError: The conversation would be malformed; nothing was added.
        """
        self._check_idle()
        self._messages = tuple(check_messages([*self._messages, *messages], is_complete=False))

    def edit(self, index: int, content: str, **options: Unpack[AnswerOptions]) -> Answer:
        """Replace an earlier user message, forget what came after it, and answer.

        Args:
            index: Of a user message in `messages`.
            content: Its new text.
            **options: As for `stream`.

        Raises:
            UsageError: There is no user message at this index.
            EdgeError: As `stream`; nothing was forgotten then.
        """
        if type(index) is not int or index not in self._user_places():
            raise UsageError(
                f"index is {index!r}; the user messages are at {self._user_places()}.",
                "look at session.messages",
                option="index",
            )
        before = self._messages[:index]
        return self.ask([*before, {"role": "user", "content": content}], **options)

    def rollback(self, num_turns: int = 1) -> None:
        """Forget the last turns: each a user message with everything after it.

        Args:
            num_turns: At least 1, at most the number of user messages.

        Raises:
            UsageError: There are not as many turns.
        """
        self._check_idle()
        starts = self._user_places()
        if type(num_turns) is not int or not 1 <= num_turns <= len(starts):
            raise UsageError(
                f"num_turns is {num_turns!r}; the conversation has {len(starts)} turns.",
                f"pass 1 to {len(starts)}" if starts else "ask something first",
                option="num_turns",
            )
        self._messages = self._messages[: starts[-num_turns]]

    def branch(self) -> "Session":
        """Return another session that goes on from here; this one stays as it is."""
        self._check_open()
        other = Session(self._model, defaults=self._defaults)
        other._system = self._system
        other._messages = self._messages
        other._conversation_ids = list(self._conversation_ids)
        return other

    def save(self, path: Path | str) -> None:
        """Write the conversation to a file, with what the model's cache holds of it.

        `Model.load_session` goes on from there without computing it again, bit for bit; with the
        same package and settings only.

        Args:
            path: Replaced when the file is whole, and not before.

        Raises:
            UsageError: The file cannot be written, or the cache is in use.
            DeviceError: The device does not give its cache out.
        """
        self._check_open()
        save_session(self._model, path, self._system, self._messages, self._conversation_ids)

    def resume(
        self, system: Sequence[Message], messages: Sequence[Message], token_ids: Sequence[int]
    ) -> None:
        """Take over a saved conversation, of which the cache holds these ids."""
        self._system, self._messages = tuple(system), tuple(messages)
        self._conversation_ids = list(token_ids)

    def cancel(self) -> None:
        """End the answer that is being streamed, or the rounds of tool calls, from any thread.

        The stream then ends with a "done" event whose reason is "cancelled", after at most
        one forward call. Without a stream nothing happens.
        """
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called since the last answer began."""
        return self._cancelled.is_set()

    def close(self) -> None:
        """End the session. The model stays open; closing twice is harmless."""
        with self._state_lock:
            self._cancelled.set()
            self._state = "closed"

    def _user_places(self) -> list[int]:
        """Return where in `messages` the user's are: each begins a turn."""
        return [i for i, message in enumerate(self._messages) if message["role"] == "user"]

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Hold an answer; `close` in another thread comes wholly before or wholly after."""
        with self._state_lock:
            self._check_open()
            self._cancelled.clear()
            self._state = "ready"
            self._is_answering = True
        try:
            yield
        finally:
            self._is_answering = False

    def _check_idle(self) -> None:
        """Raise UsageError while an answer is being made: its end sets the conversation."""
        self._check_open()
        if self._is_answering:
            raise UsageError(
                "An answer is being made, and its end decides how the conversation goes on.",
                "read the stream to its end or close it first",
            )

    def _plan(
        self, prompt: Prompt, options: ResolvedOptions, *, answer_index: int = 0
    ) -> AnswerPlan:
        """Return what an answer needs. Changes nothing."""
        messages = self._with_prompt(prompt)
        return plan_answer(self._model, messages, options, answer_index=answer_index)

    def _with_prompt(self, prompt: Prompt) -> tuple[Message, ...]:
        """Return the conversation that a prompt leads to, as a plain copy."""
        if prompt is None:
            return tuple(check_messages(self._messages))
        if isinstance(prompt, str):
            return tuple(check_messages([*self._messages, {"role": "user", "content": prompt}]))
        messages = tuple(check_messages(prompt))
        has_system = messages[0]["role"] == "system"
        return messages if has_system else (*self._system, *messages)

    def _run(
        self, plan: AnswerPlan, base: tuple[Message, ...], *, is_remembered: bool = True
    ) -> Generator[Event, None, None]:
        """Yield the events of one answer; remember it when it ends."""
        with self._model.borrow_cache():
            with self._answering():
                if self._messages is not base:
                    raise UsageError(
                        "The conversation went on after this stream was made: its prompt is old.",
                        "call stream() again, and read one stream to its end before the next",
                    )
                watch = Stopwatch(len(plan.prompt_ids))
                try:
                    with closing(self._iter_tokens(plan, watch)) as tokens:
                        reason = yield from show_tokens(plan.text, tokens, plan.stop_token_ids)
                    if reason is None:
                        is_cancelled = self._cancelled.is_set() or self._model.is_closed
                        reason = "cancelled" if is_cancelled else "length"
                except (GeneratorExit, KeyboardInterrupt):
                    self._remember(plan, "cancelled", is_remembered=is_remembered)
                    raise
                self._remember(plan, reason, is_remembered=is_remembered)
            stats = None if plan.drafter is None else plan.drafter.stats
            notices = self._model.take_notices()
            yield plan.text.done(reason, watch.read(), plan.dropped_messages, stats, notices)

    def _iter_tokens(self, plan: AnswerPlan, watch: Stopwatch) -> Generator[NewToken, None, None]:
        """Yield new tokens; keep the record of the cache and of the conversation."""
        model = self._model

        def begin(num_reused: int) -> None:
            watch.reused(num_reused)
            self._conversation_ids = list(plan.prompt_ids)

        tokens = stream_tokens(
            model,
            plan.prompt_ids,
            picker=plan.picker,
            max_new_tokens=plan.max_new_tokens,
            stop_token_ids=tuple(plan.stop_token_ids),
            drafter=plan.drafter,
            is_cancelled=lambda: self._cancelled.is_set() or model.is_closed,
            owner=self,
            asked_tokens=plan.asked_tokens,
            on_begin=begin,
        )
        with closing(tokens):
            for token in tokens:
                watch.decoded()
                self._conversation_ids.append(token.token_id)
                yield token

    def _remember(self, plan: AnswerPlan, reason: FinishReason, *, is_remembered: bool) -> None:
        """Add the turn to the conversation, unless it was cancelled before any answer."""
        message = plan.text.message
        is_empty = not message["content"] and "tool_calls" not in message
        if is_remembered and not (reason == "cancelled" and is_empty):
            self._messages = (*plan.messages, message)

    def _check_open(self) -> None:
        """Raise UsageError when the session or its model is closed."""
        if self._state == "closed":
            raise UsageError(
                "This session is closed.", "open a new one with model.session()", state=self._state
            )
        self._model.check_open()
