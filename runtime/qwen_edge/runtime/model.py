"""An opened model: one backend, its tokenizer, its chat template and its defaults.

A model has one cache. Sessions borrow it for the time of an answer, one at a time; several
answers at once are the business of a server. Packages are opened by `loading.py`; `fake`
makes a model from a script, for tests and examples without files.
"""

import atexit
import functools
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Unpack

from qwen_edge.errors import UsageError
from qwen_edge.profiles.choose import Choice
from qwen_edge.runtime.answer_options import AnswerOptions
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.decoding.draft_model import DraftModel, check_same_vocabulary
from qwen_edge.runtime.decoding.fitting import fit_to_model
from qwen_edge.runtime.decoding.generation import PREFILL_CHUNK_TOKENS
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.decoding.speculation import make_drafter
from qwen_edge.runtime.limits import check_max_new_tokens, read_path
from qwen_edge.runtime.manifest import DeviceSettings
from qwen_edge.runtime.prefix_cache import PrefixCache
from qwen_edge.runtime.session import Session
from qwen_edge.runtime.snapshots.binding import SnapshotBinding
from qwen_edge.runtime.structured.output_format import OutputFormat
from qwen_edge.runtime.text_model import ModelCard, TextModel
from qwen_edge.runtime.text_tokenizer import TextTokenizer
from qwen_edge.runtime.token_stream import stream_tokens

if TYPE_CHECKING:
    from qwen_edge.runtime.backends.failover import FailoverBackend
    from qwen_edge.runtime.decoding.drafting import Drafter
    from qwen_edge.runtime.devices.routing import Placement
    from qwen_edge.runtime.devices.trying import Refusal

_LAST_STEP_S = 5.0
_models: "weakref.WeakSet[Model]" = weakref.WeakSet()


class Model(TextModel):
    """A model that is ready to answer.

    Args:
        backend: An empty cache; owned and closed by the model.
        tokenizer: The package's tokenizer.
        chat_template: Text of the package's `chat_template.jinja`.
        manifest: Name, generation defaults and thinking facts.
        prefill_chunk_tokens: Prompt tokens per forward call.
        max_prompt_tokens: Most prompt tokens, where the device has such a limit.
        backend_name: Which engine runs it: "openvino", "onnx", or "fake" for none.
        device_choice: The device's settings and why it was chosen; None for a fake.
        wait_until_warm: Returns when the backend may be used; called before each answer.
        binding: What a saved session belongs to; None for a model without files.
        uses_lookup: Whether to guess what comes next from the text so far.
        draft: A smaller model of the same vocabulary that guesses what comes next; owned and
            closed by this one.
        devices: What the backend is, or wraps, where it may change the device. It then says
            where the model runs and what fits there, now and after each answer.

    Raises:
        UsageError: The draft model has another vocabulary.

    State:
        Open until `close`. Its cache serves one answer at a time.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: TextTokenizer,
        chat_template: str,
        manifest: ModelCard,
        *,
        prefill_chunk_tokens: int = PREFILL_CHUNK_TOKENS,
        max_prompt_tokens: int | None = None,
        backend_name: Literal["openvino", "onnx", "fake"] = "fake",
        device_choice: Choice[DeviceSettings] | None = None,
        wait_until_warm: Callable[[], None] | None = None,
        binding: SnapshotBinding | None = None,
        uses_lookup: bool = True,
        draft: "Model | None" = None,
        devices: "FailoverBackend[Placement] | None" = None,
    ) -> None:
        super().__init__(
            tokenizer,
            chat_template,
            manifest,
            vocab_size=backend.vocab_size,
            max_context_tokens=backend.max_context_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )
        self.backend = backend
        self._devices = devices
        place = "" if devices is None else devices.place
        self.prefix_cache = PrefixCache(backend, place=place)
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.backend_name = backend_name
        self.device_choice = device_choice
        self.binding = binding or SnapshotBinding("fake", hashlib.sha256(b"fake").hexdigest())
        self.warm_prompt: str | None = None
        """The system message whose cache the package brings along; None where it brings none."""
        self._wait_until_warm = wait_until_warm
        self._draft = draft
        self.drafter = make_drafter(
            backend, lookup=uses_lookup, draft=None if draft is None else self._make_source(draft)
        )
        self._lock = threading.Lock()
        self._is_closed = False
        self._follow_devices()
        _models.add(self)
        _close_at_exit()

    @classmethod
    def fake(cls, answers: Sequence[str], *, max_context_tokens: int = 4096) -> "Model":
        """Return a model without files that gives these answers; see `fake_model.py`.

        Args:
            answers: The n-th is the answer to the n-th user message; the last is repeated.
            max_context_tokens: Most tokens of prompt and answer; a token is a byte.
        """
        from qwen_edge.runtime.fake_model import make_fake_model

        return make_fake_model(answers, max_context_tokens=max_context_tokens)

    def __enter__(self) -> "Model":
        self.check_open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    @property
    def refusals(self) -> "tuple[Refusal, ...]":
        """The devices that were passed over or given up, each with the reason."""
        return () if self._devices is None else self._devices.refusals

    def session(self, *, system: str | None = None, **options: Unpack[AnswerOptions]) -> Session:
        """Return a new conversation.

        Args:
            system: System message, kept for the whole conversation.
            **options: Defaults of all its answers; see `AnswerOptions`.

        Raises:
            UsageError: An option is out of range, or the model is closed.
        """
        self.check_open()
        return Session(self, system=system, defaults=options)

    def load_session(self, path: Path | str, **options: Unpack[AnswerOptions]) -> Session:
        """Return a saved conversation, with what its prompt cost to compute.

        Args:
            path: A file that `Session.save` wrote with this package and these settings.
            **options: As for `session`; a file holds the conversation, not its options.

        Raises:
            PackageError: The file is damaged, cut short or no saved session.
            UsageError: It belongs to another package or other settings; or the cache is in use.
            ContextFullError: It is longer than the context.
        """
        from qwen_edge.runtime.saved_session import load_session

        self.check_open()
        return load_session(self, read_path(path), options)

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
        output: OutputFormat | None = None,
        speculate: bool = True,
    ) -> Iterator[int]:
        """Yield the ids that follow a prompt, the stop id included, without any template.

        Args:
            prompt_ids: At least one id, each below the backend's `vocab_size`.
            sampling: How to choose tokens; None takes the package's settings.
            max_new_tokens: None means up to the package's own limit. The end of the context
                ends the iteration too.
            output: What the text must look like; None for anything.
            speculate: Whether to guess ahead, for speed; the model still chooses every token.

        Raises:
            UsageError: An id is out of range, there is none, or the cache is in use.
            ContextFullError: The prompt leaves no room in the context.
        """
        self.check_open()
        self._check_ids(prompt_ids)
        check_max_new_tokens(max_new_tokens)
        self.check_prompt_tokens(len(prompt_ids))
        wanted = self.generation.max_new_tokens if max_new_tokens is None else max_new_tokens
        limit = min(wanted, self.max_context_tokens - len(prompt_ids))
        constraint = None if output is None else self.grammars.compile(output).start()
        fitted = fit_to_model(
            sampling or self.sampling_defaults(),
            self.tokenizer,
            vocab_size=self.backend.vocab_size,
        )
        sampler = Sampler(fitted, prompt_ids=prompt_ids)
        stop_ids = (*self.generation.eos_token_ids, *fitted.stop_token_ids)
        drafter = self.drafter if speculate else None
        picker = TokenPicker(sampler, constraint)
        return self._generate(list(prompt_ids), picker, limit, stop_ids, drafter)

    def wait_until_warm(self) -> None:
        """Return when the first inference, which is slow, is done."""
        if self._wait_until_warm is not None:
            self._wait_until_warm()

    def prepare_cache(
        self, prompt_ids: Sequence[int], *, owner: object, asked_tokens: int | None = None
    ) -> int:
        """Wait for the model, take the device that fits a prompt, and keep what is cached of it.

        Args:
            prompt_ids: The whole prompt.
            owner: As for `PrefixCache.begin`.
            asked_tokens: How long the answer may get, where that was said.

        Returns:
            How many of the ids are cached.

        Raises:
            ContextFullError: No device takes the prompt.
            EdgeError: The device that does cannot be loaded.
        """
        self.wait_until_warm()
        devices = self._devices
        if devices is not None:
            devices.route(len(prompt_ids), asked_tokens)
            self.prefix_cache.move(devices.place, devices.cached_ids, devices.places)
            self._follow_devices()
        return self.prefix_cache.begin(prompt_ids, owner=owner)

    def take_notices(self) -> tuple[str, ...]:
        """Return what became of the devices since the last time, in sentences."""
        return () if self._devices is None else self._devices.take_notices()

    def check_open(self) -> None:
        """Raise UsageError when the model is closed."""
        if self._is_closed:
            raise UsageError("This model is closed.", "load it again", name=self.name)

    @contextmanager
    def borrow_cache(self) -> Iterator[None]:
        """Reserve the cache for one answer.

        Raises:
            UsageError: Another answer is being made with it, or the model is closed.
        """
        if not self._lock.acquire(blocking=False):
            raise UsageError(
                "The model is in the middle of another answer, and it has one cache.",
                "read that stream to its end or close it first",
            )
        try:
            self.check_open()
            yield
        finally:
            self._follow_devices()
            self._lock.release()
            self._close_backend()

    def close(self) -> None:
        """Release the backend; closing twice is harmless.

        An answer in the making is cancelled at its next token and the backend released then.
        """
        self._is_closed = True
        self._close_backend()

    def _follow_devices(self) -> None:
        """Say where the model runs now, and what fits there."""
        devices = self._devices
        if devices is None:
            return
        where = devices.where
        self.backend_name, self.device_choice = where.name, where.choice
        self.prefill_chunk_tokens = where.choice.value.prefill_chunk_tokens
        self.binding = where.binding
        self.max_context_tokens = devices.max_context_tokens
        self.max_prompt_tokens = devices.max_prompt_tokens

    def _make_source(self, draft: "Model") -> DraftModel:
        """Return another model as a source of guesses; refuse one that means other tokens."""
        check_same_vocabulary(self.tokenizer, draft.tokenizer, draft.name)
        return DraftModel(draft.backend, name=draft.name)

    def _close_backend(self) -> None:
        """Release the backend when the model is closed and nobody uses it."""
        if self._is_closed and self._lock.acquire(blocking=False):
            try:
                self.prefix_cache.clear_parking()
                self.backend.close()
                if self._draft is not None:
                    self._draft.close()
            finally:
                self._lock.release()

    def _generate(
        self,
        prompt_ids: list[int],
        picker: TokenPicker,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        drafter: "Drafter | None",
    ) -> Iterator[int]:
        """Yield ids while holding the cache."""
        with self.borrow_cache():
            tokens = stream_tokens(
                self,
                prompt_ids,
                picker=picker,
                max_new_tokens=max_new_tokens,
                stop_token_ids=stop_token_ids,
                drafter=drafter,
                is_cancelled=lambda: self._is_closed,
                owner=self,
            )
            with closing(tokens):
                for token in tokens:
                    yield token.token_id

    def _check_ids(self, prompt_ids: Sequence[int]) -> None:
        """Raise UsageError unless there is at least one id and all are in range."""
        if isinstance(prompt_ids, str | bytes) or not hasattr(prompt_ids, "__len__"):
            raise UsageError(
                f"prompt_ids is {prompt_ids!r}; expected a list of token ids.",
                "encode the prompt with this model's tokenizer, or use a session for text",
            )
        if not len(prompt_ids):
            raise UsageError("prompt_ids is empty; expected at least one id.", "pass a prompt")
        vocab_size = self.backend.vocab_size
        for index, token_id in enumerate(prompt_ids):
            is_id = isinstance(token_id, Integral) and 0 <= token_id < vocab_size
            if not is_id:
                shown = f"{token_id:,}" if isinstance(token_id, Integral) else repr(token_id)
                raise UsageError(
                    f"prompt_ids[{index}] is {shown}; expected 0 to {vocab_size - 1:,}.",
                    "encode the prompt with this model's tokenizer",
                    token_id=token_id,
                )


@functools.cache
def _close_at_exit() -> None:
    """Let models that are still open when the interpreter ends be closed before.

    A daemon thread that comes back from the engine after that would end the process by a signal.
    """

    def close_all() -> None:
        for model in list(_models):
            model.close()
            if model._lock.acquire(timeout=_LAST_STEP_S):  # whoever answers is done with it
                model._lock.release()

    atexit.register(close_all)
