"""Readers of what a model writes take time in proportion to its length, whatever it writes."""

import time
from collections.abc import Callable, Iterable
from random import Random

import pytest

from qwen_edge.runtime.detokenizer import byte_of_character
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.reasoning import ReasoningSplitter
from qwen_edge.runtime.tools.call_parser import CLOSE_TEXT, OPEN_TEXT, ToolCallParser
from qwen_edge.runtime.tools.json_scanner import JsonScanner

BEGIN = '{"name": "f", "arguments": {"a": "'
PIECES = (
    OPEN_TEXT, OPEN_TEXT, CLOSE_TEXT, BEGIN, '"}}', "{", "[", "]", "}", '"', "\\", '\\"', "\\u0041",
    ",", ":", "1", "-1.5e9", "null", "name", '"name"', '"f"', " ", "\n", "text", "é",
    '{"name": "f"}',
)  # fmt: skip
NUM_UNITS = 50
MOST = 2.5
"""Times as long for twice as much. What grows with the square takes 4 times as long."""


def units() -> list[list[str]]:
    """Return what is repeated: random texts, each alone and behind the beginning of a call."""
    rng = Random(8)
    found = [[rng.choice(PIECES) for _ in range(rng.randrange(1, 6))] for _ in range(NUM_UNITS)]
    return [[piece] for piece in PIECES] + found


def take(run: Callable[[Iterable[str]], object], make: Callable[[int], list[str]]) -> float:
    """Return how many times as long twice as much takes: the least of a few rounds."""
    num_pieces = 1_500
    least = float("inf")
    for _ in range(6):  # a busy machine makes one of two figures larger, seldom six times
        once_s, twice_s = (_measure(run, make(num_pieces * times)) for times in (1, 2))
        if once_s < 0.002:  # too short for the clock
            num_pieces *= 3
            continue
        least = min(least, twice_s / once_s)
        if least < MOST:
            break
    return least if least < float("inf") else 1.0


def _measure(run: Callable[[Iterable[str]], object], stream: list[str]) -> float:
    start_s = time.process_time()
    run(stream)
    return time.process_time() - start_s


def parse_calls(stream: Iterable[str]) -> None:
    parser = ToolCallParser(["f"])
    ways = {OPEN_TEXT: parser.push_open, CLOSE_TEXT: parser.push_close}
    for piece in stream:
        ways[piece]() if piece in ways else parser.push(piece)
    parser.finish()


def scan(stream: Iterable[str]) -> None:
    scanner = JsonScanner()
    for piece in stream:
        scanner.push(piece)


@pytest.mark.trust("T-GEN-12")
@pytest.mark.parametrize("opening", [[], [OPEN_TEXT, BEGIN]], ids=["text", "in a call"])
def test_tool_calls_take_time_in_proportion(opening: list[str], cases: Callable[..., None]) -> None:
    for unit in units():
        factor = take(parse_calls, lambda num: opening + unit * (num // len(unit)))  # noqa: B023
        assert factor < MOST, (unit, factor)
        cases(1)


@pytest.mark.trust("T-GEN-12")
def test_arguments_take_time_in_proportion(cases: Callable[..., None]) -> None:
    for unit in units():
        for opening in (['{"a": "'], ['{"a": [1, "x", '], ['{"a": {"b": ']):
            factor = take(scan, lambda num: opening + unit * (num // len(unit)))  # noqa: B023
            assert factor < MOST, (opening, unit, factor)
            cases(1)


@pytest.mark.trust("T-GEN-12")
def test_reasoning_takes_time_in_proportion(cases: Callable[..., None]) -> None:
    tokenizer = make_fake_tokenizer()
    added, byte = tokenizer.added_tokens, byte_of_character()
    singles = [added["<think>"], added["</think>"], byte["Ċ"], byte["Ġ"], byte["a"], byte["Ã"]]
    rng = Random(9)
    rows = [[one] for one in singles] + [rng.choices(singles, k=4) for _ in range(20)]

    def split(ids: Iterable[int]) -> None:
        splitter = ReasoningSplitter(tokenizer.token_bytes, singles[0], singles[1])
        for token_id in ids:
            list(splitter.push(token_id))
        list(splitter.finish())

    for row in rows:
        factor = take(split, lambda num: singles[:1] + row * (num // len(row)))  # type: ignore[arg-type,return-value]  # noqa: B023
        assert factor < MOST, (row, factor)
        cases(1)
