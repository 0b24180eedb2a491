"""Calls in an answer: found, streamed, and whatever is none comes out as the text it is."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.tools.call_parser import CLOSE_TEXT, OPEN_TEXT, ToolCallParser
from qwen_edge.runtime.tools.tool_call import CallPiece, ToolCall, ToolCallDelta, make_call_id

Parse = Callable[[Iterable[str]], list[CallPiece]]
O, C = OPEN_TEXT, CLOSE_TEXT  # noqa: E741
CALL = '\n{"name": "search", "arguments": {"query": "Köln", "n": [1, 2.5, null]}}\n'


def text_of(pieces: Iterable[CallPiece]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def calls_of(pieces: Iterable[CallPiece]) -> list[ToolCall]:
    return [piece for piece in pieces if isinstance(piece, ToolCall)]


def test_a_call_comes_in_steps(parse: Parse) -> None:
    pieces = parse(["Wait.\n", O, '\n{"name": "search", "argu', 'ments": {"query"', ': "a"}}\n', C])
    assert pieces == [
        "Wait.",
        ToolCallDelta(0, "call_0", "search"),
        ToolCallDelta(0, "call_0", None, '{"query"'),
        ToolCallDelta(0, "call_0", None, ': "a"}'),
        ToolCall("call_0", "search", {"query": "a"}, 0, '{"query": "a"}'),
    ]


def test_parallel_calls_and_text_around_them(parse: Parse) -> None:
    pieces = parse(["\n\n", O, CALL, C, "\n", O, '{"name": "get_time"}', C, "\nDone.\n"])
    first, second = calls_of(pieces)
    assert (first.index, second.index) == (0, 1)
    assert first.arguments == {"query": "Köln", "n": [1, 2.5, None]}
    assert second.arguments == {}
    # One line break before each call is layout.
    assert text_of(pieces) == "\n\nDone.\n"


@pytest.mark.parametrize(
    "body",
    [
        '{"arguments": {"query": "a"}, "name": "search"}',
        ' {\n"name"\n:\n"search","arguments":{"query":"a"}} ',
        '{"n\\u0061me": "se\\u0061rch", "arguments": {"query": "\\u0061"}}',
    ],
)
def test_other_ways_to_write_the_same(parse: Parse, body: str) -> None:
    for pieces in ([O, body, C], [O, *body, C]):
        (call,) = calls_of(parse(pieces))
        assert (call.name, call.arguments) == ("search", {"query": "a"})


def test_the_steps_joined_are_the_arguments(parse: Parse) -> None:
    for pieces in ([O, CALL, C], [O, *CALL, C], [O, '{"arguments": {}, "name": "search"}', C]):
        found = parse(pieces)
        deltas = [piece for piece in found if isinstance(piece, ToolCallDelta)]
        text = "".join(delta.arguments_text for delta in deltas)
        (call,) = calls_of(found)
        assert text == call.arguments_text
        assert json.loads(text) == call.arguments
        assert [delta.name for delta in deltas if delta.name] == ["search"]
        assert not any(delta.is_withdrawn for delta in deltas)


def test_a_call_may_be_about_calls(parse: Parse) -> None:
    body = ['{"name": "search", "arguments": {"query": "what is ', O, "x", C, '?"}}']
    (call,) = calls_of(parse([O, *body, C]))
    assert call.arguments == {"query": "what is <tool_call>x</tool_call>?"}


BROKEN = [
    "",
    "search",
    "{}",
    "[1]",
    '{"arguments": {}}',
    '{"name": "find", "arguments": {}}',
    '{"name": 3, "arguments": {}}',
    '{"name": {"a": "search"}, "arguments": {}}',
    '{"name": "search", "arguments": []}',
    '{"name": "search", "arguments": "{}"}',
    '{"name": "search", "arguments": {}, "id": 1}',
    '{"name": "search", "name": "search", "arguments": {}}',
    '{"name": "search", "arguments": {}, "arguments": {}}',
    '{"name": "search", "arguments": {"a": 1, "a": 2}}',
    '{"name": "search", "arguments": {"a": {"b": 1, "b": 2}}}',
    '{"name": "search", "arguments": {"a": NaN}}',
    '{"name": "search", "arguments": {"a": 1e999}}',
    '{"name": "search", "arguments": {"a": [-1e999]}}',
    '{"name": "search", "arguments": {"a": ' + "9" * 5_000 + "}}",
    '{"name": "search", "arguments": {"a": "\\ud800"}}',
    '{"name": "search", "arguments": {"\\udfff": 1}}',
    '{"name": "search", "arguments": {"a": "\ud800"}}',
    '{"name": "search", "arguments": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    '{"name": "search", "arguments": ' + '{"a":' * 100_000,
    '{"name": "search", "arguments": {"a": 1}',
    '{"name": "search", "arguments": {"a": "',
    '{"name": "search", "arguments": {"a": "\n"}}',
    '{"name": "search", "arguments": {}} {}',
    "{" * 1_000_000,
    '"' * 1_000,
    "\x00",
]


@pytest.mark.trust("T-GEN-12")
@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("end", [C, "", O], ids=["closed", "unclosed", "reopened"])
def test_what_is_no_call_is_text(parse: Parse, body: str, end: str) -> None:
    cut = len(body) // 2
    for pieces in ([body], [body[:cut], body[cut:]]):
        found = parse(["Hi\n", O, *pieces, end])
        assert not calls_of(found)
        assert text_of(found) == f"Hi\n{O}{body}{end}"


def test_a_complete_call_without_its_end_is_text(parse: Parse) -> None:
    found = parse([O, CALL])
    assert text_of(found) == O + CALL
    (last,) = [p for p in found if isinstance(p, ToolCallDelta) and p.is_withdrawn]
    assert (last.index, last.id) == (0, "call_0")


def test_a_call_within_a_call_is_a_new_one(parse: Parse) -> None:
    found = parse([O, '{"name": "search", "arguments": {"a": ', O, CALL, C])
    (call,) = calls_of(found)
    assert call.arguments["query"] == "Köln"
    assert text_of(found) == O + '{"name": "search", "arguments": {"a": '
    withdrawn = [p for p in found if isinstance(p, ToolCallDelta) and p.is_withdrawn]
    assert [(delta.index, delta.id) for delta in withdrawn] == [(0, "call_0")]
    assert (call.index, call.id) == (0, "call_1")


def test_a_broken_call_does_not_hold_the_answer_back() -> None:
    parser = ToolCallParser(["search"])
    parser.push_open()
    assert parser.is_in_call
    assert parser.push("Calls look like this: ") == [f"{O}Calls look like this: "]
    assert not parser.is_in_call
    assert parser.push("and so on") == ["and so on"]


SCRAPS = [O, C, "\n", "a", " ", CALL, '{"name": "search"', ', "arguments": {', '"a": "', '"', "}"]
MORE_SCRAPS = ['{"name": "get_time"}', "[", "\\", "1", ": ", "{", "\n\n", "é"]


def test_a_name_without_end_does_not_hold_the_answer_back() -> None:
    parser = ToolCallParser(["search"])
    parser.push_open()
    parser.push('{"name": "')
    for _ in range(100):
        parser.push("a")
    assert not parser.is_in_call


PIECES = st.lists(st.sampled_from(SCRAPS + MORE_SCRAPS), max_size=14)


def join_text(pieces: Iterable[str]) -> Iterator[str]:
    """Yield tags as they are, and neighbouring texts as one."""
    held = ""
    for piece in pieces:
        if piece not in (O, C):
            held += piece
            continue
        if held:
            yield held
        held = ""
        yield piece
    if held:
        yield held


@pytest.mark.trust("T-GEN-12")
@given(pieces=PIECES)
def test_nothing_is_lost_however_the_text_is_cut(parse: Parse, pieces: list[str]) -> None:
    found = parse(pieces)
    calls = calls_of(found)
    assert [call.index for call in calls] == list(range(len(calls)))
    if not calls:
        assert text_of(found) == "".join(pieces)
    assert all(found)
    for others in (
        [part for p in pieces for part in ([p] if p in (O, C) else p)],
        list(join_text(pieces)),
    ):
        again = parse(others)
        assert text_of(again) == text_of(found)
        assert [(c.name, c.arguments) for c in calls_of(again)] == [
            (c.name, c.arguments) for c in calls
        ]
    # Every call that was begun is finished or withdrawn.
    begun = {p.id for p in found if isinstance(p, ToolCallDelta)}
    withdrawn = {p.id for p in found if isinstance(p, ToolCallDelta) and p.is_withdrawn}
    assert begun == withdrawn | {call.id for call in calls}
    assert not withdrawn & {call.id for call in calls}


def streams() -> dict[str, Callable[[int], Iterable[str]]]:
    """Return makers of long streams, each about as long as its argument says."""
    begin = '{"name": "search", "arguments": {"a": '
    return {
        "text": lambda n: repeat("ab", n // 2),
        "line breaks": lambda n: repeat("\n", n),
        "opening tags": lambda n: repeat(O, n // 10),
        "both tags": lambda n: [O, C] * (n // 20),
        "a long text": lambda n: [O, begin, '"', *repeat("ab", n // 2), '"}}', C],
        "tags in a text": lambda n: [O, begin, '"', *([O, C] * (n // 20)), '"}}', C],
        "many numbers": lambda n: [O, begin, "[", *repeat("1,", n // 2), "1]}}", C],
        "many numbers at once": lambda n: [O, begin + "[" + "1," * (n // 2) + "1]}}", C],
        "many keys": lambda n: [O, begin[:-5], *(f'"{i}":1,' for i in range(n // 8)), '"":1}}', C],
        "a long name": lambda n: [O, '{"name": "', *repeat("a", n)],
        "white space": lambda n: [O, *repeat(" ", n)],
        "a broken call": lambda n: [O, *repeat("{", n)],
        "deep lists": lambda n: [O, begin, *repeat("[", n)],
    }


@pytest.mark.trust("T-GEN-12")
@pytest.mark.parametrize("make", streams().values(), ids=streams().keys())
def test_the_time_grows_with_the_length(make: Callable[[int], Iterable[str]]) -> None:
    def measure(num_chars: int) -> float:
        best = float("inf")
        for _ in range(3):
            stream = list(make(num_chars))
            parser = ToolCallParser(["search"])
            ways = {O: parser.push_open, C: parser.push_close}
            start_s = time.process_time()
            for piece in stream:
                ways[piece]() if piece in ways else parser.push(piece)
            parser.finish()
            best = min(best, time.process_time() - start_s)
        return best

    # What grows with the square takes 16 times as long; a machine's hiccups not twice.
    assert measure(20_000) < 9 * measure(5_000) + 0.005


def test_ids_are_unique() -> None:
    ids = {make_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(call_id.startswith("call_") and len(call_id) == 29 for call_id in ids)
