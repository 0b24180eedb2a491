"""An opened model: one backend, its tokenizer, its chat template and its defaults.

A model has one cache. Sessions borrow it for the time of an answer, one at a time; several
answers at once are the business of a server. Packages are opened by `loading.py`; `fake`
makes a model from a script, for tests and examples without files.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Protocol

from qwen_edge.errors import UsageError
from qwen_edge.profiles.choose import Choice
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.generation import PREFILL_CHUNK_TOKENS, generate_tokens
from qwen_edge.runtime.limits import check_max_new_tokens, check_room
from qwen_edge.runtime.manifest import ChatFacts, DeviceSettings, GenerationFacts
from qwen_edge.runtime.prefix_cache import PrefixCache
from qwen_edge.runtime.sampling import (
    ANSWER_PRESET,
    THINKING_PRESET,
    SamplingParams,
    make_sampler,
)
from qwen_edge.runtime.session import Session
from qwen_edge.runtime.text_tokenizer import TextTokenizer


class ModelCard(Protocol):
    """The part of a manifest that a model needs; `Manifest` has it."""

    @property
    def name(self) -> str:
        """Name of the package."""
        ...

    @property
    def generation(self) -> GenerationFacts:
        """Sampling defaults and stop ids."""
        ...

    @property
    def chat(self) -> ChatFacts:
        """Whether and how the model thinks."""
        ...


class Model:
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
    ) -> None:
        self.name = manifest.name
        self.generation = manifest.generation
        self.chat = manifest.chat
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate(chat_template, tokenizer, thinking=manifest.chat.thinking)
        self.backend = backend
        self.prefix_cache = PrefixCache(backend)
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.backend_name = backend_name
        self.device_choice = device_choice
        self._wait_until_warm = wait_until_warm
        self._lock = threading.Lock()
        self._is_closed = False

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
    def max_context_tokens(self) -> int:
        """Most tokens that prompt and answer may have together."""
        return self.backend.max_context_tokens

    def session(
        self,
        *,
        system: str | None = None,
        thinking: bool | None = None,
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
    ) -> Session:
        """Return a new conversation; see `Session` for the arguments."""
        self.check_open()
        return Session(
            self,
            system=system,
            thinking=thinking,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
        )

    def sampling_defaults(self, thinking: bool | None = None) -> SamplingParams:
        """Return the settings used when a caller gives none.

        These are the package's. One exception: a package holds one set, and that of Qwen3 is
        for thinking; where it is exactly that and thinking is off, Qwen's set for plain
        answers is taken.

        Args:
            thinking: Whether the model will think; None counts as the model's default.
        """
        facts = self.generation
        if not facts.do_sample:
            return SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
        params = SamplingParams(
            temperature=facts.temperature,
            top_k=facts.top_k,
            top_p=facts.top_p,
            min_p=facts.min_p,
        )
        is_switched_off = thinking is False and self.chat.thinking == "switchable"
        return ANSWER_PRESET if is_switched_off and params == THINKING_PRESET else params

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[int]:
        """Yield the ids that follow a prompt, the stop id included, without any template.

        Args:
            prompt_ids: At least one id, each below the backend's `vocab_size`.
            sampling: How to choose tokens; None takes the package's settings.
            max_new_tokens: None means up to the package's own limit. The end of the context
                ends the iteration too.

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
        return self._generate(list(prompt_ids), sampling or self.sampling_defaults(), limit)

    def wait_until_warm(self) -> None:
        """Return when the first inference, which is slow, is done."""
        if self._wait_until_warm is not None:
            self._wait_until_warm()

    def check_prompt_tokens(self, num_tokens: int, *, is_lower_bound: bool = False) -> None:
        """Raise ContextFullError when a prompt of this length leaves no room."""
        check_room(
            num_tokens,
            max_context_tokens=self.max_context_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            is_lower_bound=is_lower_bound,
        )

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
            self._lock.release()
            self._close_backend()

    def close(self) -> None:
        """Release the backend; closing twice is harmless.

        An answer in the making is cancelled at its next token and the backend released then.
        """
        self._is_closed = True
        self._close_backend()

    def _close_backend(self) -> None:
        """Release the backend when the model is closed and nobody uses it."""
        if self._is_closed and self._lock.acquire(blocking=False):
            try:
                self.backend.close()
            finally:
                self._lock.release()

    def _generate(
        self, prompt_ids: list[int], sampling: SamplingParams, max_new_tokens: int
    ) -> Iterator[int]:
        """Yield ids while holding the cache."""
        with self.borrow_cache():
            self.wait_until_warm()
            num_reused = self.prefix_cache.begin(prompt_ids)
            token_ids = generate_tokens(
                self.backend,
                prompt_ids[num_reused:],
                sample=make_sampler(sampling),
                max_new_tokens=max_new_tokens,
                prefill_chunk_tokens=self.prefill_chunk_tokens,
                is_cancelled=lambda: self._is_closed,
            )
            for token_id in token_ids:
                self.prefix_cache.append(token_id)
                yield token_id
                if token_id in self.generation.eos_token_ids:
                    return

    def _check_ids(self, prompt_ids: Sequence[int]) -> None:
        """Raise UsageError unless there is at least one id and all are in range."""
        if not len(prompt_ids):
            raise UsageError("prompt_ids is empty; expected at least one id.", "pass a prompt")
        vocab_size = self.backend.vocab_size
        for index, token_id in enumerate(prompt_ids):
            if not 0 <= token_id < vocab_size:
                raise UsageError(
                    f"prompt_ids[{index}] is {token_id:,}; expected 0 to {vocab_size - 1:,}.",
                    "encode the prompt with this model's tokenizer",
                    token_id=token_id,
                )
