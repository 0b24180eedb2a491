"""How long the shortest answer to a schema is, and how much one choice can add to it.

Two uses: a schema that no finite answer satisfies is refused before the engine would walk in it
for ever, and an answer that nears its limit has to know how far ahead to look. Figures are upper
estimates in tokens. Read `schema_limits.py` first; this module trusts sizes it has checked.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.structured.pattern_limits import measure_pattern
from qwen_edge.runtime.structured.pattern_sample import FORMAT_SAMPLES, sample_pattern
from qwen_edge.runtime.structured.schema_nodes import Schema, iter_children, resolve

MAX_SHORTEST_TOKENS = 32_768  # the longest answer that Qwen3's cards ask for
FORMAT_TOKENS = 40  # a date with time and zone has 25 characters, a UUID 36
PUNCTUATION_TOKENS = 2  # brackets, or a comma or colon and a space
_MAX_TOKENS_OF_CHARACTER = 3
_MAX_UPDATES = 50  # of each part, on average; every one lowers an estimate
_NEVER = math.inf


@dataclass(frozen=True, slots=True)
class SchemaCost:
    """Lengths of answers, in tokens.

    Args:
        shortest: Of the shortest answer.
        growth: Most that one choice can add: the longest of the shortest answers to any part.
        scalar_growth: The same of choices within one text or number.
        required_names: Names of properties that some part requires.
        samples: Short texts that fit the patterns and formats of some parts.
    """

    shortest: int
    growth: int
    scalar_growth: int
    required_names: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()


def measure_schema(root: Schema, count_tokens: Callable[[str], int] = len) -> SchemaCost:
    """Return how long answers have to be.

    Args:
        root: A checked schema.
        count_tokens: Returns how many tokens a text has, an upper estimate for any other way to
            write it.

    Raises:
        GrammarError: No answer has an end, or the shortest is longer than any context.
    """
    costs = _Costs(root, cache(count_tokens))
    endless = costs.find_endless()
    if endless is not None:
        raise GrammarError(
            f"The schema never comes to an end: what is at {endless} needs another of itself.",
            "make the property optional, or allow null, or an empty list",
            path=endless,
        )
    shortest = costs.of(root)
    if shortest > MAX_SHORTEST_TOKENS and shortest < _NEVER:
        raise GrammarError(
            f"The schema's shortest answer has about {shortest:,.0f} tokens; at most "
            f"{MAX_SHORTEST_TOKENS:,} are compiled.",
            "lower minItems, minLength or the number of required properties",
            found=shortest,
            limit=MAX_SHORTEST_TOKENS,
        )
    finite = [cost for cost in costs.values() if cost < _NEVER]
    dicts = [schema for _, schema in costs.reachable if isinstance(schema, dict)]
    names = dict.fromkeys(name for schema in dicts for name in _required(schema))
    return SchemaCost(
        shortest=0 if shortest == _NEVER else int(shortest),
        growth=int(max(finite, default=0)),
        scalar_growth=int(max(map(costs.scalar_growth, dicts), default=0)),
        required_names=tuple(names),
        samples=tuple(dict.fromkeys(sample for schema in dicts for sample in _samples(schema))),
    )


class _Costs:
    """Shortest answers to all parts of a schema, found by repeated estimates from above.

    State:
        Finished when constructed.
    """

    def __init__(self, root: Schema, count_tokens: Callable[[str], int]) -> None:
        self._root = root
        self._count_tokens = count_tokens
        self._cost_of_id: dict[int, float] = {}
        self.reachable = list(_iter_reachable(root))
        parts = {id(schema): schema for _, schema in self.reachable if isinstance(schema, dict)}
        users: dict[int, list[int]] = {key: [] for key in parts}
        for key, schema in parts.items():
            for used in self._used(schema):
                users.setdefault(id(used), []).append(key)
        # What is used was found after its user, so the last ones are settled first.
        due = list(parts)
        for _ in range(_MAX_UPDATES * len(parts)):
            if not due:
                break
            key = due.pop()
            cost = self._estimate(parts[key])
            if cost < self._cost_of_id.get(key, _NEVER):
                self._cost_of_id[key] = cost
                due.extend(users[key])

    def _used(self, schema: dict[str, object]) -> Iterator[object]:
        """Yield the parts that the cost of a part depends on."""
        yield from (child for _, child in iter_children(schema))
        if isinstance(schema.get("$ref"), str):
            yield resolve(self._root, str(schema["$ref"]))

    def values(self) -> Iterator[float]:
        """Yield the cost of every part that can be used."""
        yield from self._cost_of_id.values()

    def of(self, schema: object) -> float:
        """Return the cost of one part; infinite as long as none was found."""
        if isinstance(schema, dict):
            return self._cost_of_id.get(id(schema), _NEVER)
        return 1.0  # true allows any value; false is never entered

    def find_endless(self) -> str | None:
        """Return the path of a part that needs itself for ever, or None."""
        for path, schema in self.reachable:
            if self.of(schema) == _NEVER:
                return path
        return None

    def _estimate(self, schema: dict[str, object]) -> float:
        """Return the cost of a part from the costs of its parts so far."""
        cost = 0.0
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target = resolve(self._root, reference)
            cost += 1.0 if target is None else self.of(target)
        cost += sum(map(self.of, _list(schema, "allOf")))
        for keyword in ("anyOf", "oneOf"):
            if options := _list(schema, keyword):
                cost += min(map(self.of, options))
        return max(cost + self._own(schema), 1.0)

    def _own(self, schema: dict[str, object]) -> float:
        """Return what the keywords cost that describe the value itself."""
        literals = _literals(schema)
        if literals:
            return float(min(map(self._literal, literals)))
        types = schema.get("type")
        if types is None:
            # Values of every other kind are allowed too; what applies besides is counted there.
            return 0.0
        if isinstance(types, str):
            types = [types]
        if not isinstance(types, list):
            return 0.0
        return min((self._typed(schema, kind) for kind in types), default=1.0)

    def _typed(self, schema: dict[str, object], kind: object) -> float:
        """Return the cost of a value of one type."""
        if kind == "object":
            return PUNCTUATION_TOKENS + sum(
                self._literal(name) + 2 * PUNCTUATION_TOKENS + self.of(self._property(schema, name))
                for name in _required(schema)
            )
        if kind == "array":
            return PUNCTUATION_TOKENS + self._items(schema)
        if kind == "string":
            return PUNCTUATION_TOKENS + _string_tokens(schema)
        if kind in ("integer", "number"):
            return float(_number_tokens(schema))
        return float(self._count_tokens("true" if kind == "boolean" else "null"))

    def _literal(self, value: object) -> int:
        """Return how many tokens a fixed value may need."""
        return self._count_tokens(json.dumps(value, ensure_ascii=False))

    def scalar_growth(self, schema: dict[str, object]) -> int:
        """Return how much a choice within one text or number can add."""
        literals = max(map(self._literal, _literals(schema)), default=0)
        return max(literals, _string_tokens(schema), _number_tokens(schema))

    def _property(self, schema: dict[str, object], name: str) -> object:
        """Return the schema of one property."""
        properties = schema.get("properties")
        if isinstance(properties, dict) and name in properties:
            return properties[name]
        return schema.get("additionalProperties", True)

    def _items(self, schema: dict[str, object]) -> float:
        """Return the cost of the items that a list has to have."""
        count = _count(schema, "minItems")
        first = _list(schema, "prefixItems") or _list(schema, "items")
        rest = schema.get("items", True) if "prefixItems" in schema else None
        if rest is None:
            rest = schema.get("additionalItems" if first else "items", True)
        cost = sum(self.of(member) + PUNCTUATION_TOKENS for member in first[:count])
        num_rest = max(count - len(first), 0)
        return cost + (num_rest * (self.of(rest) + PUNCTUATION_TOKENS) if num_rest else 0)


def _iter_reachable(root: Schema) -> Iterator[tuple[str, object]]:
    """Yield every schema that an answer can come to, once, the whole first."""
    seen: set[int] = set()
    stack: list[tuple[str, object]] = [("#", root)]
    while stack:
        path, schema = stack.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield path, schema
        stack.extend((f"{path}/{name}", child) for name, child in iter_children(schema))
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target = resolve(root, reference)
            if target is not None:
                stack.append((reference, target))


def _samples(schema: dict[str, object]) -> Iterator[str]:
    """Yield short texts that fit a part's pattern and format."""
    pattern, kind = schema.get("pattern"), schema.get("format")
    sample = sample_pattern(pattern) if isinstance(pattern, str) else None
    if sample:
        yield sample
    if isinstance(kind, str) and kind in FORMAT_SAMPLES:
        yield FORMAT_SAMPLES[kind]


def _string_tokens(schema: dict[str, object]) -> int:
    """Return how many tokens a text may need; a character may need one of its own."""
    pattern = schema.get("pattern")
    length = 0
    if isinstance(pattern, str):
        of_character = 1 if pattern.isascii() else _MAX_TOKENS_OF_CHARACTER
        length = of_character * measure_pattern(pattern, where="pattern")
    formatted = FORMAT_TOKENS if "format" in schema else 0
    return max(length, formatted, _count(schema, "minLength"))


def _number_tokens(schema: dict[str, object]) -> int:
    """Return how many tokens a number may need; digits are tokens of their own."""
    keywords = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    bounds = [schema[keyword] for keyword in keywords if keyword in schema]
    return 2 + max((len(json.dumps(bound)) for bound in bounds), default=0)


def _literals(schema: dict[str, object]) -> list[object]:
    """Return the values that a part is limited to; none where it is not."""
    return [schema["const"]] if "const" in schema else _list(schema, "enum")


def _required(schema: dict[str, object]) -> list[str]:
    """Return the names of required properties."""
    return [name for name in _list(schema, "required") if isinstance(name, str)]


def _count(schema: dict[str, object], keyword: str) -> int:
    """Return a count, 0 where there is none."""
    value = schema.get(keyword)
    return max(int(value), 0) if isinstance(value, int | float) else 0


def _list(schema: dict[str, object], keyword: str) -> list[object]:
    """Return the list that is a keyword's value, or an empty one."""
    value = schema.get(keyword)
    return value if isinstance(value, list) else []
