"""Compiles output formats, and keeps the last ones.

Compiling comes in three steps: our own limits, the engine, and a walk to the end of the shortest
answer. What cannot be kept to is refused here, before the first token. Read
`grammar_constraint.py` for what a grammar is started for.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_edge.errors import GrammarError, UsageError
from qwen_edge.runtime.structured.compile_thread import run_with_large_stack
from qwen_edge.runtime.structured.grammar_constraint import GrammarConstraint
from qwen_edge.runtime.structured.landing import Landing
from qwen_edge.runtime.structured.matcher import (
    JSON_LAYOUT,
    Matcher,
    make_engine_tokenizer,
    write_json_grammar,
    write_lark_grammar,
    write_regex_grammar,
)
from qwen_edge.runtime.structured.output_format import OutputFormat
from qwen_edge.runtime.structured.pattern_limits import check_lark, measure_pattern
from qwen_edge.runtime.structured.pattern_sample import sample_pattern
from qwen_edge.runtime.structured.schema_closing import close_objects
from qwen_edge.runtime.structured.schema_cost import SchemaCost, measure_schema
from qwen_edge.runtime.structured.schema_limits import check_schema, read_schema
from qwen_edge.runtime.structured.schema_rewrite import ENGINE_OPTIONS, rewrite_schema
from qwen_edge.runtime.structured.shortest import (
    MAX_WAY_TOKENS,
    Hints,
    ShortestWay,
    TextPlace,
    Vocabulary,
)
from qwen_edge.runtime.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MAX_COMPILE_S = 10.0  # measured: 0.5 s for the largest within the other limits, machine idle
MAX_GRAMMARS = 32
MAX_CACHE_BYTES = 64 * 1024 * 1024
_GRAMMAR_BYTES = 64 * 1024  # of the smallest one
_BYTES_PER_CHARACTER = 100  # measured: 2,000 properties, 60,000 characters, take 5 MB
_LARK_GROWTH = 128  # of grammars whose rules are not looked at
_MAX_HINTS = 256
_MAX_ENDINGS = 40  # of one text
_JSON_RULE = "%json"

CountTokens = Callable[[str], int]
"""Returns how many tokens a text has."""


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A compiled format; answers are started from it.

    Args:
        output: What it was compiled from.
        shortest_tokens: Tokens of the shortest answer found, its end included. None where it
            is longer than is looked for; such answers are not brought to an end at the limit.
    """

    output: OutputFormat
    shortest_tokens: int | None
    _start: Callable[[], GrammarConstraint]

    def start(self) -> GrammarConstraint:
        """Return a constraint for a new answer; takes microseconds."""
        return self._start()


class GrammarCompiler:
    """Compiles formats for one model.

    Args:
        tokenizer: The model's.
        vocab_size: Length of the logits; may be more than the tokenizer has tokens.
        eos_token_ids: Ids that end an answer. The first is the one that is forced.

    Raises:
        UsageError: There is no such id, or one is outside the vocabulary.

    State:
        Keeps the last formats, bounded in number and bytes. The first use reads the vocabulary:
        measured 1.5 s and 130 MB for Qwen3's. May be used from several threads.
    """

    def __init__(
        self, tokenizer: TextTokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        if not eos_token_ids or not all(0 <= i < vocab_size for i in eos_token_ids):
            raise UsageError(
                f"eos_token_ids is {list(eos_token_ids)}; expected at least one id below "
                f"{vocab_size:,}.",
                "pass the model's ids that end an answer",
            )
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._control_ids = frozenset(tokenizer.added_tokens.values())
        self._lock = threading.Lock()
        self._grammars: OrderedDict[OutputFormat, tuple[Grammar, int]] = OrderedDict()
        self._cache_bytes = 0
        self._engine: tuple[LLTokenizer, Vocabulary] | None = None

    def warm_up(self) -> None:
        """Read the vocabulary now, so that the first format need not wait for it.

        Raises:
            PackageError: The tokenizer cannot be used for structured output.
        """
        self._open_engine()

    def compile(self, output: OutputFormat) -> Grammar:
        """Return the grammar of a format, compiled now or kept from before.

        Raises:
            GrammarError: It is larger than allowed, cannot be compiled, or has no answers.
            PackageError: The tokenizer cannot be used for it.
        """
        with self._lock:
            if output in self._grammars:
                self._grammars.move_to_end(output)
                return self._grammars[output][0]
        grammar = self._compile_in_time(output)
        num_bytes = _GRAMMAR_BYTES + _BYTES_PER_CHARACTER * len(output.text)
        with self._lock:
            self._keep(grammar, num_bytes)
        return grammar

    def _keep(self, grammar: Grammar, num_bytes: int) -> None:
        """Keep a grammar, and let go of the oldest ones beyond the bounds."""
        if num_bytes > MAX_CACHE_BYTES or grammar.output in self._grammars:
            return
        self._grammars[grammar.output] = (grammar, num_bytes)
        self._cache_bytes += num_bytes
        while len(self._grammars) > MAX_GRAMMARS or self._cache_bytes > MAX_CACHE_BYTES:
            _, (_, freed) = self._grammars.popitem(last=False)
            self._cache_bytes -= freed

    def _compile_in_time(self, output: OutputFormat) -> Grammar:
        """Return a new grammar, or raise GrammarError when it is not there in time."""
        self._open_engine()
        try:
            return run_with_large_stack(lambda: self._compile(output), timeout_s=MAX_COMPILE_S)
        except TimeoutError as error:
            raise GrammarError(
                f"The form of the answer was not compiled within {MAX_COMPILE_S:g} s.",
                "make it smaller, or ask for a simpler form and check the answer afterwards",
                limit=MAX_COMPILE_S,
            ) from error

    def _compile(self, output: OutputFormat) -> Grammar:
        """Return a new grammar."""
        text, cost = _prepare(output, self._count_tokens)
        engine_tokenizer, vocabulary = self._open_engine()
        prototype = Matcher.compile(engine_tokenizer, text)
        ways = ShortestWay(vocabulary, self._eos_token_ids[0], self._hints(output, cost))
        # Also finds out what the engine only notices on the way, such as rules without an end.
        prototype.copy().fill_mask(prototype.new_mask())
        shortest = ways.find(prototype, TextPlace(), MAX_WAY_TOKENS)

        def start() -> GrammarConstraint:
            landing = Landing(
                ways, vocabulary, growth=cost.growth, scalar_growth=cost.scalar_growth
            )
            return GrammarConstraint(
                prototype.copy(),
                None if shortest is None else landing,
                eos_token_ids=self._eos_token_ids,
                control_ids=self._control_ids,
            )

        return Grammar(output, None if shortest is None else len(shortest), start)

    def _open_engine(self) -> "tuple[LLTokenizer, Vocabulary]":
        """Return the engine's tokenizer and what is known of its tokens; made once."""
        with self._lock:
            if self._engine is None:
                tokenizer = make_engine_tokenizer(
                    self._tokenizer,
                    vocab_size=self._vocab_size,
                    eos_token_ids=self._eos_token_ids,
                )
                control = self._control_ids
                token_bytes = [
                    b""
                    if i in control or tokenizer.is_special_token(i)
                    else tokenizer.decode_bytes([i])
                    for i in range(self._vocab_size)
                ]
                self._engine = (tokenizer, Vocabulary(token_bytes))
            return self._engine

    def _count_tokens(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self._tokenizer.encode(text))

    def _hints(self, output: OutputFormat, cost: SchemaCost) -> Hints:
        """Return pieces of answers as they would be written."""
        names = [json.dumps(name, ensure_ascii=False) for name in cost.required_names[:_MAX_HINTS]]
        separator = str(JSON_LAYOUT["key_separator"])
        is_json = output.kind != "regex"
        endings: list[str] = []
        for sample in cost.samples:
            text = json.dumps(sample, ensure_ascii=False)[1:] if is_json else sample
            endings += [text[begin:] for begin in range(min(len(text), _MAX_ENDINGS))]
        encode, end = self._tokenizer.encode, self._eos_token_ids[0]
        unique = dict.fromkeys(endings[:_MAX_HINTS])
        return Hints(
            names=[encode(name + separator) for name in names],
            quoted_names=[encode(name[1:] + separator) for name in names],
            endings=sorted(
                # Where no quote ends a text, only the end of the answer tells that it is whole.
                [encode(ending) + ([] if is_json else [end]) for ending in unique],
                key=len,
            ),
        )


def _prepare(output: OutputFormat, count_tokens: CountTokens) -> tuple[str, SchemaCost]:
    """Return the engine's form of a format that is within our limits, and its lengths."""
    if output.kind in ("json_schema", "json_object"):
        schema, cost = _prepare_schema(output.text, count_tokens)
        return write_json_grammar(schema), cost
    if output.kind == "lark":
        return _prepare_lark(output.text, count_tokens)
    if output.kind == "regex":
        length = measure_pattern(output.text, where="The pattern")
        sample = sample_pattern(output.text)
        cost = SchemaCost(0, length, length, samples=(sample,) if sample else ())
        return write_regex_grammar(output.text), cost
    texts = json.loads(output.text)
    length = max(map(count_tokens, texts))
    # As one lexeme; of alternatives of a rule the engine would take 2,000 at most.
    pattern = "|".join(map(_quote, texts))
    return write_regex_grammar(pattern), SchemaCost(0, length, length)


def _quote(text: str) -> str:
    """Return a pattern that matches one text."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _prepare_schema(text: str, count_tokens: CountTokens) -> tuple[str, SchemaCost]:
    """Return a schema for the engine as JSON, and its lengths."""
    schema = read_schema(text)
    check_schema(schema)
    if schema is False:
        raise GrammarError("The schema is false, which no answer satisfies.", "pass a schema")
    if isinstance(schema, dict):
        schema = close_objects(schema)
    cost = measure_schema(schema, count_tokens)
    rewritten = rewrite_schema(schema)
    return json.dumps({} if rewritten is True else rewritten, ensure_ascii=False), cost


def _prepare_lark(grammar: str, count_tokens: CountTokens) -> tuple[str, SchemaCost]:
    """Return a grammar whose JSON schemas went the way of all schemas, and its lengths."""
    rules: list[str] = []
    parts: list[str] = []
    costs: list[SchemaCost] = []
    for rule, schema in _split_schemas(grammar):
        rules.append(rule)
        parts.append(rule)
        if schema is not None:
            text, cost = _prepare_schema(schema, count_tokens)
            costs.append(cost)
            parts.append(json.dumps({**json.loads(text), ENGINE_OPTIONS: dict(JSON_LAYOUT)}))
    check_lark("".join(rules))
    names = dict.fromkeys(name for cost in costs for name in cost.required_names)
    growth = max((cost.growth for cost in costs), default=0)
    scalar_growth = max((cost.scalar_growth for cost in costs), default=_LARK_GROWTH)
    samples = dict.fromkeys(sample for cost in costs for sample in cost.samples)
    growth = max(growth, _LARK_GROWTH)
    whole = SchemaCost(0, growth, scalar_growth, tuple(names), tuple(samples))
    return write_lark_grammar("".join(parts)), whole


def _split_schemas(grammar: str) -> Iterator[tuple[str, str | None]]:
    """Yield the rules of a grammar and the schemas in it, by turns.

    Raises:
        GrammarError: What follows `%json` is not JSON.
    """
    decoder = json.JSONDecoder()
    position = 0
    while (found := grammar.find(_JSON_RULE, position)) >= 0:
        begin = found + len(_JSON_RULE)
        begin += len(grammar[begin:]) - len(grammar[begin:].lstrip())
        try:
            _, end = decoder.raw_decode(grammar, begin)
        except (ValueError, RecursionError) as error:
            raise GrammarError(
                f"What follows {_JSON_RULE} at character {found:,} is not JSON: {str(error)[:100]}",
                "write a JSON schema there",
            ) from error
        yield grammar[position:begin], grammar[begin:end]
        position = end
    yield grammar[position:], None
