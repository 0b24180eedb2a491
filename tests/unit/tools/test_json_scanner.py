"""The scanner agrees with `json` on what is an object, however the text is cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.tools.json_scanner import MAX_DEPTH, MAX_NUMBER_CHARS, JsonScanner

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
SIGNS = ["{", "}", "[", "]", ":", ",", '"', "\\", " ", "\n", "-", "é"]
WORDS = ['"a"', "u00e9", "1", ".5", "e3", "true", "nul", '{"a":', '{"a": [', '"\\u12', "0", "x"]
SCRAPS = st.sampled_from(SIGNS + WORDS)


def scan(pieces: list[str]) -> tuple[str, dict[str, str]]:
    """Return how it ended, and the outermost values as written."""
    scanner = JsonScanner()
    values: dict[str, str] = {}
    for piece in pieces:
        for part in scanner.push(piece):
            values[part.key] = values.get(part.key, "") + part.text
    if scanner.is_broken:
        return "broken", {}
    return ("complete" if scanner.is_complete else "open"), values


@given(entries=st.dictionaries(st.text(max_size=5), VALUES, max_size=4), data=st.data())
def test_values_are_cut_out_as_written(entries: dict[str, object], data: st.DataObject) -> None:
    spaced = data.draw(st.sampled_from([None, 1]))
    text = json.dumps(entries, ensure_ascii=data.draw(st.booleans()), indent=spaced)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    state, values = scan(pieces)
    assert state == "complete"
    assert {json.loads(key): json.loads(value) for key, value in values.items()} == entries


@given(st.lists(SCRAPS, max_size=12))
def test_it_agrees_with_json_on_what_is_an_object(scraps: list[str]) -> None:
    text = "{" + "".join(scraps)
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    state, _ = scan([text])
    assert (state == "complete") == is_object
    assert scan(list(text)) == scan([text])


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "1",
        '"a"',
        "{{",
        '{"a": 1,}',
        '{"a": [1,]',
        '{"a": "\\u00g',
        '{"a": NaN',
        '{"a": Infinity',
        '{"a": 01,',
        '{"a": 1.}',
        '{"a": "\n"',
    ],
)
def test_what_cannot_go_on_is_noticed_at_once(text: str) -> None:
    assert scan([text])[0] == "broken"


def test_a_beginning_is_open() -> None:
    text = ' {"a\\u00e9": [1.5e3, {"b": true}], "c": "\\n"}'
    for end in range(len(text)):
        assert scan([text[:end]])[0] == "open"
    assert scan([text, " \n"])[0] == "complete"
    assert scan([text, "{"])[0] == "broken"


def test_depth_has_a_limit() -> None:
    assert scan(['{"a":' + "[" * MAX_DEPTH])[0] == "open"
    assert scan(['{"a":' + "[" * (MAX_DEPTH + 1)])[0] == "broken"


def test_numbers_have_a_longest_one() -> None:
    assert scan(['{"a":', *("1" * MAX_NUMBER_CHARS), "}"])[0] == "complete"
    assert scan(['{"a":', *("1" * (MAX_NUMBER_CHARS + 1))])[0] == "broken"


def test_keys_have_a_longest_one() -> None:
    assert scan(['{"', *("a" * 70)])[0] == "broken"
    assert scan(['{"' + "a" * 70 + '"'])[0] == "broken"
    assert scan(['{"b": {"' + "a" * 70 + '": 1}}'])[0] == "complete"


def test_where_any_word_may_stand() -> None:
    scanner = JsonScanner()
    seen = []
    for character in '{"a": "b\\"c"}':
        seen.append(scanner.is_in_text)
        scanner.push(character)
    # Not right after a backslash, where only few characters may follow.
    assert "".join("x" if inside else "." for inside in seen) == "..xx...xx.xx."
