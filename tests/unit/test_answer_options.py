"""Options of an answer: defaults, what wins, and what is refused before anything is computed."""

from dataclasses import fields

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.answer_options import ResolvedOptions, resolve_options
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.structured.output_format import OutputFormat

GREEDY = SamplingParams(temperature=0.0)


def test_an_answers_own_options_win_and_none_asks_for_the_sessions() -> None:
    defaults = {"thinking": True, "max_new_tokens": 5, "stop": "a", "sampling": GREEDY}
    options = resolve_options(defaults, {"max_new_tokens": 9, "thinking": None, "stop": ["b", "c"]})
    assert options == ResolvedOptions(
        thinking=True, max_new_tokens=9, stop=("b", "c"), sampling=GREEDY
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"thinkin": True}, "Did you mean 'thinking'"),
        ({"thinking": "yes"}, "thinking is 'yes'"),
        ({"sampling": 0.5}, "expected SamplingParams"),
        ({"sampling": {"temprature": 0}}, "Did you mean 'temperature'"),
        ({"sampling": {"top_p": 0}}, "top_p is 0"),
        ({"output": {"type": "object"}}, "expected an OutputFormat"),
        ({"thinking_budget": True}, "thinking_budget is True"),
        ({"thinking_budget": -1}, "thinking_budget is -1"),
        ({"thinking_budget": 9, "thinking": False}, "thinking is switched off"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"on_overflow": "drop"}, "drop"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": ["a", ""]}, "Stop string 2"),
        ({"stop": 7}, "stop is 7"),
        ({"tools": 7}, "tools is 7"),
        ({"tools": {"name": "f"}}, "expected a list"),
        ({"output": OutputFormat.choice(["a"]), "tools": [print]}, "may also be a tool call"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        resolve_options({}, given)


def test_a_format_and_tools_that_may_not_be_called_go_together() -> None:
    output = OutputFormat.choice(["a"])
    options = resolve_options({}, {"output": output, "tools": [print], "tool_choice": "none"})
    assert options.output is output


def test_none_asks_for_the_default_in_a_session_too() -> None:
    """`model.session(tools=None)` was refused: None is no list."""
    everything = {field.name: None for field in fields(ResolvedOptions)}
    assert resolve_options(everything, {}) == ResolvedOptions()
    assert resolve_options({"stop": "a"}, {"stop": None}).stop == ("a",)
