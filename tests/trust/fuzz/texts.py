"""Targets that read texts: chat templates, tool calls, JSON as it is written, reasoning, tools."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from random import Random

from lab import BrokenLawError, Lab, Reader, Target
from mutate import add_key, change_bytes, change_json, make_text, put_in

from qwen_edge.errors import UsageError
from qwen_edge.export.package_facts import chat_facts
from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.loading import _read_text
from qwen_edge.runtime.reasoning import ReasoningSplitter
from qwen_edge.runtime.structured.schema_limits import check_schema, read_schema
from qwen_edge.runtime.template_budget import MAX_OUTPUT_CHARS
from qwen_edge.runtime.tools.call_parser import CLOSE_TEXT, OPEN_TEXT, ToolCallParser
from qwen_edge.runtime.tools.json_scanner import JsonScanner
from qwen_edge.runtime.tools.tool import read_tools
from qwen_edge.runtime.tools.tool_call import CallPiece, ToolCall, ToolCallDelta

# Chat templates

_TEMPLATE_PIECES = (
    "{% for m in messages %}", "{% for i in range(99999) %}", "{% for i in range(99) %}",
    "{% endfor %}", "{% if x %}", "{% if messages %}", "{% else %}", "{% endif %}", "{{ m }}",
    "{{ m.content }}", "{{ messages }}", "{{ 'a' * 10**10 }}", "{{ 10**10**10 }}",
    "{{ [0]*10**9 }}",
    "{% set x = 'aaaaaaaaaaaaaaaa' %}", "{% set x = x ~ x %}", "{% set x = x + x %}", "{{ x }}",
    "{% set x = [x, x] %}", "{% set ns = namespace(a=messages) %}", "{% set ns.a = [ns, ns] %}",
    "{{ ns }}", "{{ ns.a }}", "{% set ns.a = ns.a + ns.a %}", "{% macro f(n) %}", "{% endmacro %}",
    "{{ f(9) }}", "{{ f(f(f(9))) }}", "{{ f(messages) }}", "{{ caller() }}", "{% call f(1) %}",
    "{% endcall %}", "{% filter upper %}", "{% filter indent(99999) %}", "{% endfilter %}",
    "{% generation %}", "{% endgeneration %}", "{{ messages|tojson }}",
    "{{ messages|tojson(indent=9) }}",
    "{{ x|replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa') }}", "{{ x|join(x) }}",
    "{{ ''.__class__.__mro__ }}", "{{ x|attr('__class__') }}", "{{ messages.append(1) }}",
    "{{ cycler }}", "{{ lipsum(9) }}", "{{ lipsum.__globals__ }}", "{{ joiner }}", "{{ self }}",
    "{{ raise_exception('no') }}", "{{ strftime_now('%Y') }}", "{{ x|batch(2)|list }}",
    "{{ x|slice(3)|list }}", "{{ range(999999)|list|length }}", "{{ x|center(99999999) }}",
    "{{ '%99999999d' % 1 }}", "{{ '{:99999999}'.format(1) }}", "{{ x.zfill(99999999) }}",
    "{{ x|wordwrap(1) }}", "{{ x|urlize }}", "{{ messages|groupby('role') }}",
    "{{ messages|map('upper') }}",
    "{{ messages|sum(start=[]) }}", "{{ x|pprint }}", "{{ x|xmlattr }}",
    "{{ messages|unique|list }}",
    "{{ messages|sort|list }}", "{{ messages[::-1] }}", "{{ messages[0]['content'].split('a') }}",
    "{% include 'a' %}", "{% extends 'a' %}", "{% import 'a' as b %}", "{% block a %}",
    "{% endblock %}",
    "{% raw %}", "{% endraw %}", "{# x", "#}", "{{", "}}", "{%", "%}", "{%- set -%}", "\n",
    " text ",
    "{{ add_generation_prompt }}", "{{ tools|tojson }}", "{{ enable_thinking is defined }}",
    "{% for a, b in messages[0].items() %}", "{% for m in messages recursive %}",
    "{{ loop(messages) }}",
    "{{ loop.index }}", "{{ loop.cycle('a', 'b') }}", "{% break %}", "{% continue %}", "{{ 1/0 }}",
    "{{ x.encode() }}", "{{ (1,)*99999999 }}", "{{ x.join(messages) }}", "{{ dict(a=x) }}",
    "\ud800",
    "{{ x|round }}", "{{ x|int(base=99) }}", "{{ '9'*9999|int }}", "{{ x|float|abs }}", "{{ x|e }}",
    "{{ x|format(1) }}", "{{ (x ~ x)|length }}", "{{ messages|random }}", "{{ x is sameas x }}",
    "{{ x|truncate(-1) }}", "{{ 1 if }}", "{{ x[999999999999999999999] }}", "{{ -9 ** 99 }}",
)  # fmt: skip
_CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "aaaa <|im_end|> {{ x }} " * 5},
    {"role": "assistant", "content": "<think>\nHm\n</think>\n\nYes."},
    {"role": "user", "content": "And 1+1?"},
]


def _template_seeds(lab: Lab) -> list[bytes]:
    return [(lab.package / "chat_template.jinja").read_bytes()]


def _render(lab: Lab) -> Reader:
    tokenizer = make_fake_tokenizer()
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}

    def read(data: bytes) -> None:
        lab.write("chat_template.jinja", data)
        source = _read_text(lab.work, "chat_template.jinja")
        template = ChatTemplate(source, tokenizer)
        for tools in (None, [tool]):
            text = template.render(_CHAT, tools=tools)
            if len(text) > MAX_OUTPUT_CHARS:
                raise BrokenLawError(f"a template made {len(text):,} characters")
        chat_facts(source, tokenizer)

    return read


# Tool calls

_NAMES = ("f", "clock", "<tool_call>")
_CALL_PIECES = (
    OPEN_TEXT, OPEN_TEXT, CLOSE_TEXT, CLOSE_TEXT, "\n", "<tool_call", "</tool_call", "{", "}", "[",
    "]",
    '{"name": "f", "arguments": {}}', '{"name": "clock", "arguments": {"a": [1, "<tool_call>"]}}',
    '{"name": "g", "arguments": {}}', '{"arguments": {"a": 1}, "name": "f"}', '{"name": "f"}',
    '{"name": "f", "name": "f", "arguments": {}}', '{"name": "f", "arguments": "{}"}', '"', '\\"',
    "\\",
    '\\u0000', '\\ud800', ",", ":", " ", "name", '"name"', '"arguments"', '"f"', "null", "true",
    "nul",
    "-0", "1e999", "1e5", "0123", "9" * 40, "[" * 80, '{"a":' * 80, "]" * 80, "}" * 80, "text",
    "<think>", "</think>", "ä😀", "\u2028", "\x00", '"a\nb"', "NaN", "Infinity", "\ufeff", "\t",
    '{"name": "f", "arguments": {"x": "', '"}}', '{"name": "f", "arguments": ', "'", "//", "{}" * 9,
)  # fmt: skip


def _call_seeds(lab: Lab) -> list[bytes]:
    call = json.dumps({"name": "f", "arguments": {"a": "b", "c": [1, {"d": None}]}})
    return [f"Text.\n{OPEN_TEXT}\n{call}\n{CLOSE_TEXT}\n{OPEN_TEXT}{call}{CLOSE_TEXT} End".encode()]


def _tokens(text: str) -> list[str]:
    """Return a text cut at its tags, as the ids of an answer are."""
    parts: list[str] = []
    for index, part in enumerate(text.split(OPEN_TEXT)):
        parts += [OPEN_TEXT] * bool(index)
        for number, inner in enumerate(part.split(CLOSE_TEXT)):
            parts += [CLOSE_TEXT] * bool(number)
            parts.append(inner)
    return parts


def _parse(parts: Iterable[str]) -> list[CallPiece]:
    parser = ToolCallParser(_NAMES, make_id=lambda: "id")
    pieces: list[CallPiece] = []
    for part in parts:
        if part == OPEN_TEXT:
            pieces += parser.push_open()
        elif part == CLOSE_TEXT:
            pieces += parser.push_close()
        else:
            pieces += parser.push(part)
    return pieces + parser.finish()


def _summary(pieces: Sequence[CallPiece]) -> list[object]:
    """Return what an answer comes to: its texts joined, its calls, and no steps."""
    kept = [piece for piece in pieces if not isinstance(piece, ToolCallDelta)]
    found: list[object] = []
    for is_text, group in groupby(kept, key=lambda piece: isinstance(piece, str)):
        pieces_of_a_kind = list(group)
        found += ["".join(map(str, pieces_of_a_kind))] if is_text else pieces_of_a_kind
    return found


def _check_steps(pieces: Sequence[CallPiece]) -> None:
    """Every call's steps joined are its arguments, unless it was withdrawn."""
    texts: dict[int, str] = {}
    for piece in pieces:
        if isinstance(piece, ToolCallDelta):
            if piece.is_withdrawn:
                del texts[piece.index]
            else:
                texts[piece.index] = texts.get(piece.index, "") + piece.arguments_text
        elif isinstance(piece, ToolCall):
            steps = texts.pop(piece.index)
            if steps != piece.arguments_text or json.loads(steps) != piece.arguments:
                raise BrokenLawError(f"the steps say {steps!r}, the call {piece.arguments!r}")
    if texts:
        raise BrokenLawError(f"calls {sorted(texts)} were begun and neither made nor withdrawn")


def _read_calls(lab: Lab) -> Reader:
    def read(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        parts = _tokens(text)
        whole = _parse(parts)
        _check_steps(whole)
        shown = sum(len(piece) for piece in whole if isinstance(piece, str))
        if shown > len(text):
            raise BrokenLawError(f"{len(text):,} characters became {shown:,}")
        single = [
            character
            for part in parts
            for character in ([part] if part in (OPEN_TEXT, CLOSE_TEXT) else part)
        ]
        pieces = _parse(single)
        _check_steps(pieces)
        if _summary(pieces) != _summary(whole):
            raise BrokenLawError("the calls depend on how the text is cut")

    return read


def _scan(lab: Lab) -> Reader:
    """Return a reader that compares the scanner with `json`, and itself cut otherwise."""

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        scanner = JsonScanner()
        parts = scanner.push(text)
        other = JsonScanner()
        cut = [part for character in text for part in other.push(character)]
        if (scanner.is_broken, scanner.is_complete) != (other.is_broken, other.is_complete):
            raise BrokenLawError("the scanner depends on how the text is cut")
        is_whole = scanner.is_complete and not scanner.is_broken
        if is_whole:
            pairs = json.loads(text, object_pairs_hook=lambda found: found)
            if len(pairs) != sum(part.is_end for part in parts):
                raise BrokenLawError("the scanner found other values than there are")
            if "".join(part.text for part in cut) != "".join(part.text for part in parts):
                raise BrokenLawError("the values depend on how the text is cut")

    return read


_JSON_PIECES = (
    "{", "}", "[", "]", ",", ":", '"', '"a"', '"b"', '{"a":', "1", "-1", "1.5e9", "01", "-", "true",
    "nul", "null", " ", "\n", "\\", "\\u12", "\\u1234", "\\x", '"\\""', "\t", "\x00", "é", "[" * 70,
    '{"a": 1}', '{"a": {"b": [1, 2, "}"]}, "c": "\\n"}', "\u00a0", "+1", ".5", "1.", "NaN",
    "9" * 30,
    '"a": 1', '"a": [', '"b": {"c": "', '"}', '"]', "false,", '"\\ud83d\\ude00"', "'a'",
)  # fmt: skip


# Reasoning

_ANSWER_PIECES = (
    "<think>", "</think>", "\n", "\n\n", " ", "text", "ä", "😀", "\u200d", "<thi", "nk>",
    "<|im_end|>",
    "<tool_call>", "</tool_call>", "\x00", "\ud800", "a" * 50, "\ufeff", "é", "你好",
)  # fmt: skip


def _split(lab: Lab) -> Reader:
    tokenizer = make_fake_tokenizer()
    added = tokenizer.added_tokens

    def read(data: bytes) -> None:
        ids = tokenizer.encode(data.decode("utf-8", "replace"), allow_special=True)
        rng = Random(len(data))
        for at in range(0, len(ids), 7):  # ids that no text has: parts of characters
            ids.insert(at, rng.randrange(256))
        for starts_open in (False, True):
            splitter = ReasoningSplitter(
                tokenizer.token_bytes, added["<think>"], added["</think>"], starts_open=starts_open
            )
            pieces = [piece for token_id in ids for piece in splitter.push(token_id)]
            pieces += splitter.finish()
            told = "".join(text for _, text in pieces)
            told.encode("utf-8")
            given = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
            tags = given.count("<think>") + given.count("</think>")
            space = sum(character.isspace() for character in given)
            if len(told) + 8 * tags + space < len(given.strip("\n")) - given.count("\ufffd") * 3:
                raise BrokenLawError(f"of {len(given):,} characters {len(told):,} are left")

    return read


# Tools and schemas

_SCHEMA = {
    "type": "object", "required": ["a"], "additionalProperties": False,
    "properties": {
        "a": {"type": "string", "pattern": "^[a-z]{1,5}$", "maxLength": 9},
        "b": {"anyOf": [{"type": "integer", "minimum": 0}, {"$ref": "#/$defs/c"}]},
        "d": {"type": "array", "items": {"enum": [1, "x", None]}, "maxItems": 3},
    },
    "$defs": {"c": {"type": "object", "properties": {"e": {"$ref": "#/$defs/c"}}}},
}  # fmt: skip
_SCHEMA_PIECES = (
    '"$ref": "#",', '"pattern": "(a+)+$",', '"pattern": "(((((a{9}){9}){9}){9}){9}",',
    '"minLength": 1e9,',
    '"maxItems": 99999999,', '"$ref": "#/$defs/c",', '"allOf": [true],', '"not": {},',
    '"multipleOf": 0,',
    '"pattern": "[",', '"type": ["string", 5],', '"enum": [],', '"$id": "http://x/",',
    '"const": {},',
)  # fmt: skip


def _read_tools(lab: Lab) -> Reader:
    def read(data: bytes) -> None:
        try:
            value = json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            raise UsageError("not JSON", "send JSON") from None  # told before anything is read
        for tool in read_tools(value if isinstance(value, list) else [value]):
            tool.to_openai()

    return read


def _read_schema(lab: Lab) -> Reader:
    return lambda data: check_schema(read_schema(data.decode("utf-8", "replace")))


def _tool_seeds(lab: Lab) -> list[bytes]:
    inner = {"name": "f", "description": "d", "parameters": _SCHEMA, "strict": True}
    return [json.dumps([{"type": "function", "function": inner}, inner | {"name": "g"}]).encode()]


TARGETS = (
    Target(
        "template",
        _template_seeds,
        (make_text(_TEMPLATE_PIECES, 40), put_in(_TEMPLATE_PIECES), change_bytes),
        _render,
        500,
        ("T-TPL-03",),
    ),
    Target(
        "tool-calls",
        _call_seeds,
        (make_text(_CALL_PIECES, 60), put_in(_CALL_PIECES), change_bytes),
        _read_calls,
        2_000,
        ("T-GEN-12",),
    ),
    Target(
        "json-scanner",
        lambda lab: [b'{"name": "f", "arguments": {"a": [1, 2.5e3, "x\\u00e9"], "b": null}}'],
        (make_text(_JSON_PIECES, 40), put_in(_JSON_PIECES), change_bytes),
        _scan,
        2_000,
        ("T-GEN-12",),
    ),
    Target(
        "reasoning",
        lambda lab: [b"<think>\n\nHm, 1 + 1.\n</think>\n\nTwo. \xf0\x9f\x98\x80"],
        (make_text(_ANSWER_PIECES, 40), put_in(_ANSWER_PIECES), change_bytes),
        _split,
        1_500,
    ),
    Target("tools", _tool_seeds, (change_json, put_in(_SCHEMA_PIECES)), _read_tools, 1_000),
    Target(
        "schema",
        lambda lab: [json.dumps(_SCHEMA).encode()],
        (change_json, add_key(_SCHEMA_PIECES)),
        _read_schema,
        1_000,
    ),
)
