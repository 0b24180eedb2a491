"""Which field of a request a fault of the library is about.

The library names its own options, and a client knows the fields that it sent: `output` is
`response_format` in one interface and `text.format` in another. Faults that are found while a
request is read have their field already; read `fields.py` for those.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from qwen_edge.errors import ContextFullError, GrammarError, MissingExtraError, UsageError

CONVERSATION = "conversation"
"""Stands for the field with the prompt; what no fact tells otherwise is about that."""

CHAT_FIELDS: Mapping[str, str] = {
    CONVERSATION: "messages",
    "output": "response_format",
    "thinking": "think",
}
COMPLETION_FIELDS: Mapping[str, str] = {CONVERSATION: "prompt"}
RESPONSES_FIELDS: Mapping[str, str] = {
    CONVERSATION: "input",
    "output": "text.format",
    "thinking": "reasoning.effort",
    "thinking_budget": "reasoning.effort",
}
# Facts that errors about an option have, where none of them has the option's name.
_OPTION_OF_FACT: Mapping[str, str] = {
    "tool": "tools",
    "num_tools": "tools",
    "names": "tools",
    "tool_choice": "tool_choice",
    "thinking": "thinking",
}


@contextmanager
def naming_fields(fields: Mapping[str, str], *, has_output: bool = False) -> Iterator[None]:
    """Tell with errors of the library which field they are about.

    Args:
        fields: The library's options to fields of the interface, where they differ.
        has_output: Whether the request asked for a form of the answer. Where it did not, a
            grammar is that of its tools.

    Raises:
        UsageError: As it was, with the field as `param`.
        ContextFullError: The same.
    """
    try:
        yield
    except (UsageError, ContextFullError) as error:
        if "param" in error.facts or isinstance(error, MissingExtraError):
            raise
        option = _find_option(error, has_output=has_output)
        param = fields.get(option, option)
        raise type(error)(error.problem, error.fix, **error.facts, param=param) from error


def _find_option(error: UsageError | ContextFullError, *, has_output: bool) -> str:
    """Return the option that an error is about, as far as its facts tell."""
    for name in ("field", "option"):
        value = error.facts.get(name)
        if isinstance(value, str):
            return value
    for fact, option in _OPTION_OF_FACT.items():
        if fact in error.facts:
            return option
    if isinstance(error, GrammarError):
        return "output" if has_output else "tools"
    return CONVERSATION
