"""A client that sends a new schema with each request fills neither memory nor disk."""

from typing import Any

import psutil
import pytest

from qwen_edge.runtime.structured.grammar import MAX_GRAMMARS, GrammarCompiler
from qwen_edge.runtime.structured.output_format import OutputFormat

NUM_SCHEMAS = 2_000
MAX_GROWTH_BYTES = 16 * 1024 * 1024


@pytest.mark.trust("T-SRV-10")
def test_thousands_of_schemas_leave_nothing_behind(compiler: GrammarCompiler, cases: Any) -> None:
    def compile_many(begin: int, end: int) -> None:
        for index in range(begin, end):
            grammar = compiler.compile(
                OutputFormat.json_schema({"properties": {f"field{index}": {"type": "integer"}}})
            )
            assert grammar.start() is not None

    process = psutil.Process()
    compile_many(0, 500)
    before, written = process.memory_info().rss, process.io_counters().write_chars
    compile_many(500, NUM_SCHEMAS)
    assert len(compiler._grammars) <= MAX_GRAMMARS
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES
    assert process.io_counters().write_chars - written < 100_000
    cases(NUM_SCHEMAS)
