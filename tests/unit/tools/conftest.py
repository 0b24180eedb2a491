"""Fixtures of the tool tests."""

import itertools
from collections.abc import Callable, Iterable

import pytest

from qwen_edge.runtime.tools.call_parser import CLOSE_TEXT, OPEN_TEXT, ToolCallParser
from qwen_edge.runtime.tools.tool_call import CallPiece

Parse = Callable[[Iterable[str]], list[CallPiece]]


@pytest.fixture(scope="session")
def parse() -> Parse:
    """Return a function from pieces to what the parser makes of them; tags are tokens.

    The tools are `get_time` and `search`; the ids of calls are call_0, call_1, ….
    """

    def run(pieces: Iterable[str]) -> list[CallPiece]:
        numbers = itertools.count()
        parser = ToolCallParser(["get_time", "search"], make_id=lambda: f"call_{next(numbers)}")
        found: list[CallPiece] = []
        for piece in pieces:
            if piece == OPEN_TEXT:
                found += parser.push_open()
            elif piece == CLOSE_TEXT:
                found += parser.push_close()
            else:
                found += parser.push(piece)
        return found + parser.finish()

    return run
