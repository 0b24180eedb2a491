"""Golden tokens: chosen here, run by the runtime, the same at every run."""

from pathlib import Path

import pytest

from qwen_edge.export.golden import GOLDEN_TEXT, NUM_GOLDEN_TOKENS, measure_golden_tokens
from qwen_edge.runtime.golden import answer_greedily, run_golden_tokens
from qwen_edge.runtime.package import read_manifest
from qwen_edge.runtime.text_tokenizer import TextTokenizer


def test_the_sealed_tokens_come_again(demo_package: Path) -> None:
    manifest = read_manifest(demo_package)
    assert len(manifest.golden.token_ids) == NUM_GOLDEN_TOKENS
    assert run_golden_tokens(demo_package, manifest) == manifest.golden.token_ids


def test_the_prompt_is_the_chat_with_thinking_switched_off(demo_package: Path) -> None:
    golden = read_manifest(demo_package).golden
    assert GOLDEN_TEXT in golden.prompt
    assert golden.prompt.endswith("<think>\n\n</think>\n\n")


@pytest.mark.trust("T-EXP-17")
def test_a_template_with_a_date_is_left_out(
    demo_package: Path, demo_tokenizer: TextTokenizer
) -> None:
    """Llama 3.2's template writes today's date: tomorrow's export had another prompt."""
    template = "{{ strftime_now('%d') }} {{ messages[0].content }}"
    found = measure_golden_tokens(demo_package, demo_tokenizer, template, "never")
    assert found.prompt == GOLDEN_TEXT
    assert found.prompt_ids == tuple(demo_tokenizer.encode(GOLDEN_TEXT, allow_special=True))


def test_stop_tokens_do_not_stop_it(demo_package: Path) -> None:
    ids = answer_greedily(demo_package, [999, 272, 198], 40)
    assert len(ids) == 40
