"""Ways to the end are short, and found from the middle of everything."""

import pytest

from qwen_edge.runtime.structured import GrammarCompiler, GrammarConstraint, OutputFormat

EMAIL = {"type": "string", "pattern": r"^[^@\s]+@[^@\s]+\.[a-z]{2,3}$"}
OPEN = {
    "type": "object",
    "properties": {"first": {"type": "string"}, "second": {"type": "integer"}},
    "required": ["second"],
}
MATRIX = {"type": "array", "items": {"type": "array", "items": {"type": "array"}}}
NUMBER = {"type": "integer", "multipleOf": 7, "minimum": 10}


def way_from(constraint: GrammarConstraint) -> bytes:
    """Return the text of the way to the end from where an answer is."""
    landing = constraint._landing
    assert landing is not None
    way = landing._ways.find(constraint._matcher, landing._place, 1_000)
    assert way is not None
    assert landing._ways.is_way(constraint._matcher, way)
    return bytes(way[:-1])


@pytest.mark.parametrize(
    ("schema", "begun", "rest"),
    [
        (EMAIL, '"someone', '@a.aa"'),
        (EMAIL, '"someone@here', '.aa"'),
        (EMAIL, '"someone@here.c', 'a"'),
        ({"type": "string", "format": "date"}, '"2026-1', '0-01"'),
        ({"type": "string", "minLength": 6}, '"abc', 'xyz"'),
        ({"type": "string"}, '"a \\', '""'),
        (OPEN, "{", '"second": 0}'),
        (OPEN, '{"fi', 'rst": "", "second": 0}'),
        (MATRIX, "[[[", "]]]"),
        (MATRIX, "[[[1, 2], [", "]]]"),
        ({"type": "array"}, "[" * 20, "]" * 20),
        (NUMBER, "1", "001"),
        ({"type": "number"}, "-1.", "0"),
        ({"enum": ["red", "green"]}, '"g', 'reen"'),
        ({"type": ["object", "null"]}, "{", "}"),
        ({"type": "string", "pattern": "[aeiou]{2}"}, '"xxx', 'aa"'),
    ],
)
def test_the_way_from_the_middle_is_short(
    compiler: GrammarCompiler, schema: dict[str, object], begun: str, rest: str
) -> None:
    constraint = compiler.compile(OutputFormat.json_schema(schema)).start()
    for token_id in begun.encode():
        constraint.advance(token_id)
    assert len(way_from(constraint)) <= len(rest)


def test_circles_are_cut_out(compiler: GrammarCompiler) -> None:
    """Nothing hints at the way here; what is found by trying is cut to what leads on."""
    output = OutputFormat.lark("start: A\nA: /[a-z]+~[a-z]+%/")
    assert len(way_from(compiler.compile(output).start())) <= 8
