"""What a model is besides its engine: tokenizer, template, defaults, grammars, limits.

`Model` answers one conversation after the other, `BatchModel` many at a time; prompts are made,
checked and limited the same way for both, from what is here. It knows no cache and no backend.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from qwen_edge.errors import UsageError
from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.decoding.presets import choose_sampling
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.limits import check_room
from qwen_edge.runtime.manifest import ChatFacts, GenerationFacts
from qwen_edge.runtime.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from qwen_edge.runtime.decoding.speculation import Speculation
    from qwen_edge.runtime.structured.grammar import GrammarCompiler

TOOL_CALL_TAGS = ("<tool_call>", "</tool_call>")


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


class TextModel:
    """The facts of a model that is ready to answer.

    Args:
        tokenizer: The package's tokenizer.
        chat_template: Text of the package's `chat_template.jinja`.
        manifest: Name, generation defaults and thinking facts.
        vocab_size: Length of the logits.
        max_context_tokens: Most tokens that prompt and answer may have together.
        max_prompt_tokens: Most prompt tokens, where the device has such a limit.

    State:
        Immutable but for what is made when it is first asked for.
    """

    drafter: "Speculation | None" = None
    """What guesses ahead; None where nothing may or can."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        chat_template: str,
        manifest: ModelCard,
        *,
        vocab_size: int,
        max_context_tokens: int,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.name = manifest.name
        self.generation = manifest.generation
        self.chat = manifest.chat
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate(chat_template, tokenizer, thinking=manifest.chat.thinking)
        self.vocab_size = vocab_size
        self.max_context_tokens = max_context_tokens
        self.max_prompt_tokens = max_prompt_tokens

    @property
    def max_prompt_length(self) -> int:
        """Most tokens of a prompt: one less than the context, or the device's own limit."""
        limit = self.max_context_tokens - 1
        return limit if self.max_prompt_tokens is None else min(limit, self.max_prompt_tokens)

    @cached_property
    def grammars(self) -> "GrammarCompiler":
        """What makes grammars of output formats; made when it is first asked for.

        Raises:
            PackageError: The tokenizer has no form that grammars can use.
        """
        from qwen_edge.runtime.structured.grammar import GrammarCompiler

        return GrammarCompiler(
            self.tokenizer,
            vocab_size=self.vocab_size,
            eos_token_ids=self.generation.eos_token_ids,
        )

    @property
    def tool_call_ids(self) -> tuple[int, int]:
        """Ids of `<tool_call>` and `</tool_call>`.

        Raises:
            UsageError: The model has no such tokens, so that calls cannot be told from text.
        """
        added = self.tokenizer.added_tokens
        if not all(tag in added for tag in TOOL_CALL_TAGS):
            raise UsageError(
                f"Tools were given, but the tokenizer of {self.name!r} has no tokens "
                f"{' and '.join(TOOL_CALL_TAGS)}.",
                "use a model that was trained to call tools, such as Qwen3",
                name=self.name,
            )
        return added[TOOL_CALL_TAGS[0]], added[TOOL_CALL_TAGS[1]]

    def sampling_defaults(self, thinking: bool | None = None) -> SamplingParams:
        """Return the settings used when a caller gives none.

        These are the package's, but for a model of Qwen's that could think and will not; see
        `choose_sampling` of `decoding/presets.py`.

        Args:
            thinking: Whether the model will think; None counts as the model's default.
        """
        return choose_sampling(self.generation, self.chat, thinking).value

    def check_prompt_tokens(self, num_tokens: int, *, is_lower_bound: bool = False) -> None:
        """Raise ContextFullError when a prompt of this length leaves no room."""
        check_room(
            num_tokens,
            max_context_tokens=self.max_context_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            is_lower_bound=is_lower_bound,
        )
