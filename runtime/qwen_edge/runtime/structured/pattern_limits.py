"""What a regular expression or a grammar's text may cost before the engine looks at it.

It only counts: length, depth, repetitions. Whether a pattern is right is the engine's to say.
Read `schema_limits.py` for the same of schemas.
"""

import re
from dataclasses import dataclass

from qwen_edge.errors import GrammarError

MAX_PATTERN_CHARACTERS = 8_192
MAX_LARK_CHARACTERS = 262_144
MAX_RULES = 2_000  # measured with the stack of `compile_thread.py`: 12,000 in a chain
MAX_NESTING = 50  # the engine's own is 250, counted in its call stack
MAX_REPEATED_ITEMS = 20_000  # measured: 100,000 take it 0.15 s, 1,000,000 0.8 s and 130 MB
MAX_REPETITION = 1_000_000
MAX_INTERSECTIONS = 8  # measured: 20 patterns that have to match at once took 27 s, 10 0.01 s

_REPETITION = re.compile(r"\{(\d{1,12})(?:(,)(\d{0,12}))?\}")
_RULE = re.compile(r"^[ \t]*[?!+-]*\w[^:\n|]*:", re.MULTILINE)
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|(?://|#)[^\n]*')


@dataclass(slots=True)
class _Group:
    """Items counted in one group: of the branch being read, and of the longest before it."""

    branch: int = 0
    longest: int = 0
    last: int = 0

    def add(self, weight: int) -> None:
        """Count one more item of the branch."""
        self.branch += weight
        self.last = weight

    def repeat_last(self, least: int) -> None:
        """Count the last item as often as it has to come."""
        extra = self.last * (max(least, 1) - 1)
        self.branch += extra
        self.last += extra

    def end_branch(self) -> None:
        """Begin another alternative."""
        self.longest = max(self.longest, self.branch)
        self.branch = self.last = 0

    @property
    def weight(self) -> int:
        """Items of the longest alternative."""
        return max(self.longest, self.branch)


def measure_pattern(pattern: str, *, where: str) -> int:
    """Return how many characters may at most be missing to complete a match.

    Every part is counted as often as it has to be repeated, of alternatives the longest.

    Args:
        pattern: A regular expression.
        where: How error messages call it.

    Raises:
        GrammarError: It is too long or too deep, or repeats too much.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise too_large(where, "characters", len(pattern), MAX_PATTERN_CHARACTERS)
    groups = [_Group()]
    position = 0
    while position < len(pattern):
        character = pattern[position]
        repetition = _REPETITION.match(pattern, position) if character == "{" else None
        if repetition:
            groups[-1].repeat_last(_least(repetition, where))
            position = repetition.end()
        elif character == "(":
            groups.append(_Group())
            if len(groups) > MAX_NESTING:
                raise too_large(where, "nested groups", _count_open(pattern), MAX_NESTING)
            position += 1
        elif character == ")" and len(groups) > 1:
            group = groups.pop()
            groups[-1].add(group.weight)
            position += 1
        elif character == "|":
            groups[-1].end_branch()
            position += 1
        elif character in "*+?":
            position += 1
        else:
            groups[-1].add(1)
            position = _skip_item(pattern, position)
        if groups[-1].weight > MAX_REPEATED_ITEMS:
            raise too_large(where, "repeated items", groups[-1].weight, MAX_REPEATED_ITEMS)
    return sum(group.weight for group in groups)


def check_lark(text: str) -> None:
    """Raise GrammarError when a grammar's text is none, too long, too deep or repeats too much."""
    if text.lstrip().startswith("{"):  # the engine would read JSON as a form of its own
        raise GrammarError(
            "The grammar begins with '{'; expected Lark rules, such as 'start: \"yes\" | \"no\"'.",
            "write rules, or ask for a JSON schema as such",
        )
    if len(text) > MAX_LARK_CHARACTERS:
        raise too_large("The grammar", "characters", len(text), MAX_LARK_CHARACTERS)
    for quoted in _QUOTED.findall(text):
        if quoted.startswith("/") and not quoted.startswith("//"):
            measure_pattern(quoted[1:-1], where=f"The pattern {quoted:.60}")
    bare = _QUOTED.sub("", text)
    num_rules = len(_RULE.findall(bare))
    if num_rules > MAX_RULES:
        raise too_large("The grammar", "rules", num_rules, MAX_RULES)
    depth = deepest = 0
    for character in bare:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise too_large("The grammar", "nested brackets", deepest, MAX_NESTING)
    if bare.count("&") > MAX_INTERSECTIONS:
        raise too_large("The grammar", "intersections", bare.count("&"), MAX_INTERSECTIONS)
    for repetition in _REPETITION.finditer(bare):
        least = _least(repetition, "The grammar")
        if least > MAX_REPEATED_ITEMS:
            raise too_large("The grammar", "repeated items", least, MAX_REPEATED_ITEMS)


def too_large(where: str, what: str, found: int, limit: int) -> GrammarError:
    """Return the error for something that is over its limit."""
    return GrammarError(
        f"{where} has {found:,} {what}; at most {limit:,} are compiled.",
        "make it smaller, or ask for a simpler form and check the answer afterwards",
        found=found,
        limit=limit,
        what=what,
    )


def _least(repetition: re.Match[str], where: str) -> int:
    """Return how often something must be repeated, and check the largest number of it."""
    least, _, most = repetition.groups()
    largest = max(int(least), int(most or 0))
    if largest > MAX_REPETITION:
        raise too_large(where, "repetitions of one item", largest, MAX_REPETITION)
    return int(least)


def _skip_item(pattern: str, position: int) -> int:
    """Return where the item that begins at `position` ends: a character, escape or class."""
    if pattern[position] == "\\":
        return position + 2
    if pattern[position] != "[":
        return position + 1
    position += 2  # the first member may be `]`
    while position < len(pattern) and pattern[position] != "]":
        position += 2 if pattern[position] == "\\" else 1
    return position + 1


def _count_open(pattern: str) -> int:
    """Return how many groups are open at once at most, escapes and classes not looked at."""
    depth = deepest = 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest
