"""The one place where llguidance is touched: tokenizer, matchers, masks, and its errors.

A matcher of llguidance never raises. It goes into an error state, which has to be asked for, and
in which it allows the end of the answer as if all were well. A panic of its Rust code would come
as a class that is no `Exception`. Both become a `GrammarError` here.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from qwen_edge.errors import GrammarError, PackageError
from qwen_edge.runtime.decoding.constraint import Bitmask
from qwen_edge.runtime.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# How JSON is written: as Qwen writes it, and `json.dumps`. No other white space is allowed: a
# model could go on with it for ever, and where it is fixed, keys are forced to their quotes.
JSON_LAYOUT: Mapping[str, object] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}
_LIMITS = {
    # A grammar's first lexer; 50,000 per ms by its documentation. The largest that passed our
    # own limits took 0.5 s to compile in all.
    "initial_lexer_fuel": 1_000_000,
    # One mask: at most 15 ms for its lexer and 3 ms for its parser. Measured: 8 ms at most.
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    # 1 to 2 KB each, so 200 MB at most; a text of bounded length has one for each character.
    "max_lexer_states": 100_000,
    "max_grammar_size": 200_000,
    # Otherwise messages hold the whole grammar.
    "verbose_errors": False,
}
_WORD_BITS = 32
_MAX_MESSAGE_CHARACTERS = 200

_P = ParamSpec("_P")
_T = TypeVar("_T")


def make_engine_tokenizer(
    tokenizer: TextTokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]
) -> "LLTokenizer":
    """Return the engine's own copy of a tokenizer, for text without control tokens.

    The engine would read `<think>` in a forced text as the control token. In its copy those
    have names that nobody can know, so that they stand for no text.

    Args:
        tokenizer: The model's.
        vocab_size: Length of the logits, at least that of the tokenizer's vocabulary.
        eos_token_ids: Ids that end an answer; at least one.

    Raises:
        PackageError: The engine cannot use the tokenizer.
    """
    from llguidance import LLTokenizer

    description = json.loads(tokenizer.to_json())
    for token in description["added_tokens"]:
        name = f"<{secrets.token_hex(16)}>"
        token.update(content=name, special=True, normalized=False, lstrip=False, rstrip=False)
    try:
        return LLTokenizer(
            json.dumps(description), n_vocab=vocab_size, eos_token=list(eos_token_ids), slices=None
        )
    except BaseException as error:
        raise _as_ours(
            error,
            PackageError(
                f"The tokenizer cannot be used for structured output: {_shorten(str(error))}",
                "export the package again from the model's original tokenizer",
            ),
        ) from error


def write_json_grammar(schema: str) -> str:
    """Return the engine's form of a schema; it is not compiled yet."""
    from llguidance import LLMatcher

    layout: Any = dict(JSON_LAYOUT)
    return _guard(LLMatcher.grammar_from_json_schema, schema, overrides=layout)


def write_regex_grammar(pattern: str) -> str:
    """Return the engine's form of a regular expression; it is not compiled yet."""
    from llguidance import LLMatcher

    return _guard(LLMatcher.grammar_from_regex, pattern)


def write_lark_grammar(grammar: str) -> str:
    """Return the engine's form of a Lark grammar; it is not compiled yet."""
    from llguidance import LLMatcher

    return _guard(LLMatcher.grammar_from_lark, grammar)


class Matcher:
    """One place in one grammar.

    Args:
        engine: The engine's matcher; not shared.
        vocab_size: Length of the logits.

    State:
        `consume` moves it. After an error it stays unusable. Not for several threads at once.
    """

    def __init__(self, engine: "LLMatcher", vocab_size: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size

    @classmethod
    def compile(cls, tokenizer: "LLTokenizer", grammar: str) -> "Matcher":
        """Compile a grammar; other threads go on meanwhile.

        Raises:
            GrammarError: The engine refuses it.
        """
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**_LIMITS)  # type: ignore[arg-type]
        engine = _guard(LLMatcher, tokenizer, grammar, log_level=0, limits=limits)
        matcher = cls(engine, tokenizer.vocab_size)
        matcher.check()
        return matcher

    def copy(self) -> "Matcher":
        """Return another matcher at the same place; takes a few microseconds."""
        return Matcher(_guard(self._engine.deep_copy), self._vocab_size)

    def check(self) -> None:
        """Raise GrammarError when the engine has given up."""
        if self._engine.is_error():
            raise _engine_error(self._engine.get_error())

    def new_mask(self) -> Bitmask:
        """Return memory for a mask, int32 [words]."""
        return np.zeros(-(-self._vocab_size // _WORD_BITS), dtype=np.int32)

    def fill_mask(self, mask: Bitmask) -> None:
        """Write which tokens may come next; where the text may end, its end is among them.

        Args:
            mask: Of `new_mask`.

        Raises:
            GrammarError: Nothing may come, or finding out takes too long.
        """
        address, num_bytes = mask.ctypes.data, mask.size * mask.itemsize
        _guard(self._engine.unsafe_compute_mask_ptr, address, num_bytes)
        self.check()

    def forced(self) -> list[int]:
        """Return the ids that have to come next; none where there is a choice.

        Raises:
            GrammarError: Finding out takes too long.
        """
        token_ids = list(_guard(self._engine.compute_ff_tokens))
        self.check()
        return token_ids

    def consume(self, token_ids: Sequence[int]) -> None:
        """Go on by tokens.

        Raises:
            GrammarError: One is not allowed. The matcher cannot be used any more.
        """
        _guard(self._engine.consume_tokens, list(token_ids))
        self.check()

    def count_valid(self, token_ids: Sequence[int]) -> int:
        """Return how many of some tokens could follow; the end of the answer is not known here."""
        if not token_ids or self._engine.is_stopped():
            return 0
        known = [token_id for token_id in token_ids if 0 <= token_id < self._vocab_size]
        if len(known) < len(token_ids):
            bad = next(i for i, t in enumerate(token_ids) if not 0 <= t < self._vocab_size)
            known = list(token_ids[:bad])
        return int(_guard(self._engine.validate_tokens, known)) if known else 0

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is a whole one."""
        return bool(self._engine.is_accepting()) and not self._engine.is_error()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._engine.is_stopped()) and not self._engine.is_error()


def _guard(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what a call of the engine returns; its exceptions become GrammarError."""
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        raise _as_ours(error, _engine_error(str(error))) from error


def _as_ours(error: BaseException, ours: Exception) -> BaseException:
    """Return our error for the engine's exceptions; pass Ctrl-C and the like on unchanged."""
    is_panic = type(error).__name__ == "PanicException"
    return ours if is_panic or isinstance(error, Exception) else error


def _engine_error(message: str) -> GrammarError:
    """Return the error for a message of the engine."""
    return GrammarError(
        f"The form of the answer cannot be kept to: {_shorten(message)}",
        "mend it, or use a simpler form; docs/json_schema.md and docs/syntax.md of llguidance say "
        "what is supported",
        engine=_shorten(message),
    )


def _shorten(message: str) -> str:
    """Return the lines of a message that say something, as far as there is room."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # A pattern's reason comes last, below a drawing of the place.
    told = lines[:2] + [line for line in lines[2:] if line.startswith("error:")]
    text = " ".join(told) if told else "no reason given"
    return text[:_MAX_MESSAGE_CHARACTERS]
