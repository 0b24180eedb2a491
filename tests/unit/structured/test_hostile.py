"""What killed or hung servers elsewhere, in a process of its own and with a small stack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHILD = """
import threading
from qwen_edge.errors import GrammarError
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.structured import GrammarCompiler, OutputFormat

def links(number, make):
    parts = {f"d{i}": make(f"#/$defs/d{i + 1}") for i in range(number)}
    return {"$defs": {**parts, f"d{number}": {"type": "integer"}}, "$ref": "#/$defs/d0"}

def rules(number, make, last):
    middle = [f"{make(i)}: {last} {make(i + 1)}" for i in range(number)]
    return "\\n".join(["start: " + make(0), *middle, f'{make(number)}: "x"'])

def options(number):
    parts = [{"type": "object", "properties": {f"k{number}{i}": {}}} for i in range(8)]
    return {"anyOf": parts}

def lists(number):
    return links(number, lambda ref: {"type": "array", "items": {"$ref": ref}})

def nested(number):
    schema = {}
    for _ in range(number):
        schema = {"type": "array", "items": schema}
    return schema

S, R, L = OutputFormat.json_schema, OutputFormat.regex, OutputFormat.lark
REFUSED = {
    "depth": lambda: S(nested(30_000)),
    "depth as text": lambda: S('{"items":' * 30_000 + "{}" + "}" * 30_000),
    "brackets": lambda: S("[" * 200_000),
    "enum of 1 MB": lambda: S({"enum": ["x" * 20 + str(i) for i in range(40_000)]}),
    "constant of 1 MB": lambda: S({"const": "x" * 1_000_000}),
    "parentheses": lambda: S({"type": "string", "pattern": "(" * 30_000 + ")" * 30_000}),
    "parentheses in a regex": lambda: R("(" * 30_000 + ")" * 30_000),
    "parentheses in a grammar": lambda: L("start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "schema in a grammar": lambda: L("start: %json " + '{"items":' * 30_000),
    "references in a circle": lambda: S({"$ref": "#"}),
    "chain of references": lambda: S(links(3_000, lambda ref: {"$ref": ref})),
    "chain of rules": lambda: L(rules(8_000, lambda i: f"r{i}", "")),
    "chain of terminals": lambda: L(rules(8_000, lambda i: f"T{i}", '"a"')),
    "rules in a circle": lambda: L("start: a\\na: b\\nb: a"),
    "intersections": lambda: S({"allOf": [{"pattern": f".*{c}.*"} for c in "abcdefghijklmn"]}),
    "multiples": lambda: S({"type": "integer", "multipleOf": 1_000_003}),
    "repetition": lambda: S({"type": "string", "pattern": "^(a{1000}){1000}$"}),
    "optional parts": lambda: S({"type": "string", "pattern": "^(a?){500}a{500}$"}),
    "options times options": lambda: S({"allOf": [options(i) for i in range(8)]}),
}
KEPT = {
    "chain of references": lambda: S(links(490, lambda ref: {"$ref": ref})),
    "chain of lists": lambda: S(lists(1_900)),
    "chain of rules": lambda: L(rules(1_900, lambda i: f"r{i}", "")),
    "nested rules": lambda: L(rules(1_900, lambda i: f"r{i}", '"a"')),
    "chain of terminals": lambda: L(rules(1_900, lambda i: f"T{i}", '"a"')),
    "backtracking": lambda: R("(a+)+b"),
    "ambiguous": lambda: R("(a|aa)*"),
    "many states": lambda: R("(a|b)*a(a|b){60}c"),
    "counted": lambda: R("a{1,100000}"),
    "long list": lambda: S({"type": "array", "maxItems": 1_000_000}),
}

def attack():
    tokenizer = make_fake_tokenizer()
    compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=[258])
    for name, make in REFUSED.items():
        try:
            compiler.compile(make())
            print("not refused:", name)
        except GrammarError:
            pass
    for name, make in KEPT.items():
        constraint = compiler.compile(make()).start()
        for remaining in range(40, 0, -1):
            forced = list(constraint.forced(remaining))
            if not forced:
                mask = constraint.mask(remaining)
                forced = [int((mask != 0).argmax()) * 32]
                word = int(mask[forced[0] // 32]) & 0xFFFFFFFF
                forced[0] += (word & -word).bit_length() - 1
            if forced[0] == 258:
                break
            constraint.advance(forced[0])
    print("done")

threading.stack_size(512 * 1024)
thread = threading.Thread(target=attack)
thread.start()
thread.join()
"""


@pytest.mark.trust("T-SRV-08", "T-SRV-09")
def test_no_attack_ends_or_hangs_the_process() -> None:
    """A chain of 1,600 references ended it by a stack overflow, which nothing can catch."""
    roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": roots},
    )
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr[-2_000:]
