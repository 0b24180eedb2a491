"""A model that answers many at a time: the batcher, with prompts, templates and events around it.

Requests join and leave between steps, and what their prompts begin with is computed once. The
answers are those of `Model`: planned by `planning.py`, cut into events by `turn.py`. Opened by
`loading.load_batch`; read `batching/scheduler.py` for how steps are shared.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Unpack

from qwen_edge.errors import EdgeError, UsageError
from qwen_edge.profiles.choose import Choice
from qwen_edge.runtime.answer_feed import AnswerFeed, make_last_event
from qwen_edge.runtime.answer_options import AnswerOptions, resolve_options
from qwen_edge.runtime.batching.answer_handle import AnswerHandle
from qwen_edge.runtime.batching.batch_backend import BatchBackend
from qwen_edge.runtime.batching.batch_options import (
    BatchOptions,
    BatchStatistics,
)
from qwen_edge.runtime.batching.generate_batch import run_requests
from qwen_edge.runtime.batching.scheduler import ContinuousBatcher
from qwen_edge.runtime.chat import Message, check_messages
from qwen_edge.runtime.events import Answer, Event
from qwen_edge.runtime.manifest import DeviceSettings, FormatName
from qwen_edge.runtime.planning import AnswerPlan, plan_answer, plan_completion
from qwen_edge.runtime.text_model import ModelCard, TextModel
from qwen_edge.runtime.text_tokenizer import TextTokenizer
from qwen_edge.runtime.turn import collect_answer, show_tokens

BatchPrompt = str | Sequence[Message]


@dataclass(frozen=True)
class BatchAnswer:
    """The answer to one prompt of many, or why there is none.

    Args:
        index: Which prompt.
        answer: The answer; None where something went wrong.
        error: What went wrong; None otherwise.
    """

    index: int
    answer: Answer | None
    error: EdgeError | None = None


class BatchStream:
    """The events of one answer among others.

    Args:
        events: They, not begun.
        handle: The request behind them.

    State:
        Its request is in the line already. Closing the stream cancels it, also before the first
        event, as does letting go of it.
    """

    def __init__(self, events: Generator[Event, None, None], handle: AnswerHandle) -> None:
        self._events = events
        self._handle = handle

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is still to come; closing twice is harmless."""
        self._events.close()
        self._handle.cancel()


class BatchModel(TextModel):
    """A model that is ready to answer many at a time.

    Args:
        backend: Empty; owned and closed by the model.
        tokenizer: The package's tokenizer.
        chat_template: Text of the package's `chat_template.jinja`.
        manifest: Name, generation defaults and thinking facts.
        options: How the steps are shared.
        backend_name: Which engine runs it; None for none.
        device_choice: The device's settings and why it was chosen; None for none.

    State:
        Open until `close`. May be used from several threads.
    """

    def __init__(
        self,
        backend: BatchBackend,
        tokenizer: TextTokenizer,
        chat_template: str,
        manifest: ModelCard,
        *,
        options: BatchOptions | None = None,
        backend_name: FormatName | None = None,
        device_choice: Choice[DeviceSettings] | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            chat_template,
            manifest,
            vocab_size=backend.vocab_size,
            # A request that needs more than all blocks could never be answered.
            max_context_tokens=min(
                backend.max_context_tokens, backend.num_blocks * backend.block_tokens
            ),
        )
        self.backend_name = backend_name
        self.device_choice = device_choice
        self.batcher = ContinuousBatcher(backend, options)

    def __enter__(self) -> "BatchModel":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def stream(
        self, prompt: BatchPrompt, *, system: str | None = None, **options: Unpack[AnswerOptions]
    ) -> "BatchStream":
        """Return one answer as a stream of events, beside whatever else is being answered.

        The request is made here and waits for its turn; reading the stream takes steps where no
        other thread does. Closing it cancels the request.

        Args:
            prompt: A text, or the messages of a conversation.
            system: System message, put before the prompt.
            **options: See `AnswerOptions`; guessing ahead is not done here.

        Raises:
            QueueFullError: Too many requests are waiting.
            EdgeError: As `Session.stream`.
        """
        plan = self._plan(prompt, system, options)
        handle = self._submit(plan)
        return BatchStream(self._show(plan, handle), handle)

    def ask(
        self, prompt: BatchPrompt, *, system: str | None = None, **options: Unpack[AnswerOptions]
    ) -> Answer:
        """Return a whole answer; the arguments and errors are those of `stream`."""
        return collect_answer(self.stream(prompt, system=system, **options))

    def ask_all(
        self,
        prompts: Iterable[BatchPrompt],
        *,
        system: str | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Iterator[BatchAnswer]:
        """Yield the answers to many prompts, those that are done first first.

        Prompts of any lengths share the steps. None is padded, and each gets the tokens it would
        get alone. A prompt that is refused does not keep the others from being answered.

        Args:
            prompts: Texts, or conversations.
            system: System message of all of them.
            **options: Of all answers; with a seed, each answer has one of its own.

        Raises:
            UsageError: An option is out of range.
        """
        resolve_options({}, options)
        if isinstance(prompts, str):
            raise UsageError(
                "prompts is one text; expected a list of them.", "pass [text], or use ask()"
            )
        prompts = list(prompts)
        feeds: dict[int, tuple[AnswerFeed, list[Event]]] = {}

        def submit(index: int) -> AnswerHandle:
            plan = self._plan(prompts[index], system, options, index)
            handle = self._submit(plan)
            feeds[index] = AnswerFeed(plan, handle), []
            return handle

        def is_finished(index: int, _: AnswerHandle) -> bool:
            feed, events = feeds[index]
            events += feed.read()
            return feed.is_finished

        runs = run_requests(self.batcher, len(prompts), submit, is_finished=is_finished)
        with closing(runs):
            for index, outcome in runs:
                if isinstance(outcome, EdgeError):
                    yield BatchAnswer(index, None, outcome)
                else:
                    yield _gather(index, *feeds.pop(index))

    def open_answer(
        self,
        prompt: BatchPrompt,
        *,
        on_change: Callable[[], None] | None = None,
        answer_index: int = 0,
        **options: Unpack[AnswerOptions],
    ) -> AnswerFeed:
        """Ask for an answer that is read without waiting, while another thread makes steps.

        Args:
            prompt: A text, or the messages of a conversation.
            on_change: Called by the thread that makes steps when there is something to read. It
                must return at once.
            answer_index: Which of several answers to one prompt; each has a seed of its own.
            **options: See `AnswerOptions`.

        Raises:
            EdgeError: As `stream`.
        """
        plan = self._plan(prompt, None, options, answer_index)
        return AnswerFeed(plan, self._submit(plan, on_change))

    def open_completion(
        self,
        prompt: str | Sequence[int],
        *,
        on_change: Callable[[], None] | None = None,
        answer_index: int = 0,
        **options: Unpack[AnswerOptions],
    ) -> AnswerFeed:
        """Ask for what follows a text, without the chat template; else as `open_answer`.

        Args:
            prompt: A text, whose control tokens are plain text, or token ids.
            on_change: See `open_answer`.
            answer_index: See `open_answer`.
            **options: Those that have a meaning without a conversation.

        Raises:
            EdgeError: As `stream`.
        """
        self._check_open()
        plan = plan_completion(
            self, prompt, resolve_options({}, options), answer_index=answer_index
        )
        return AnswerFeed(plan, self._submit(plan, on_change))

    def statistics(self) -> BatchStatistics:
        """Return what is being done and was done."""
        return self.batcher.statistics()

    def close(self) -> None:
        """End all requests and release the backend; closing twice is harmless."""
        self.batcher.close()

    def _plan(
        self,
        prompt: BatchPrompt,
        system: str | None,
        options: Mapping[str, Any],
        index: int = 0,
    ) -> AnswerPlan:
        """Return what one answer needs. Changes nothing."""
        self._check_open()
        messages = check_messages(
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        resolved = resolve_options({}, options)
        return plan_answer(self, check_messages(messages), resolved, answer_index=index)

    def _check_open(self) -> None:
        if self.batcher.is_closed:
            raise UsageError("This model is closed.", "load it again", name=self.name)

    def _submit(
        self, plan: AnswerPlan, on_change: Callable[[], None] | None = None
    ) -> AnswerHandle:
        return self.batcher.submit(
            plan.prompt_ids,
            plan.picker,
            max_new_tokens=plan.max_new_tokens,
            stop_token_ids=tuple(plan.stop_token_ids),
            on_change=on_change,
        )

    def _show(self, plan: AnswerPlan, handle: AnswerHandle) -> Generator[Event, None, None]:
        """Yield the events of one answer as its tokens come."""
        try:
            reason = yield from show_tokens(plan.text, handle.iter_tokens(), plan.stop_token_ids)
        finally:
            handle.cancel()  # where a stop string ended it, or the reader had enough
        yield make_last_event(plan, handle, reason)


def _gather(index: int, feed: AnswerFeed, events: Sequence[Event]) -> BatchAnswer:
    """Return an answer of which all has been read."""
    if isinstance(feed.error, EdgeError):
        return BatchAnswer(index, None, feed.error)
    if feed.error is not None:
        raise feed.error
    return BatchAnswer(index, collect_answer(iter(events)))
