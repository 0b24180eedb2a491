"""Presets: what Qwen recommends, and when a package's own settings give way to it."""

import dataclasses

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.decoding.presets import (
    ANSWER_PRESET,
    PRESETS,
    THINKING_PRESET,
    choose_preset,
    choose_sampling,
    find_preset,
)
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.manifest import ChatFacts, GenerationFacts

QWEN = GenerationFacts(
    do_sample=True,
    temperature=0.6,
    top_p=0.95,
    top_k=20,
    min_p=0.0,
    eos_token_ids=(2,),
    max_new_tokens=100,
)
SWITCHABLE = ChatFacts("switchable", 3, 4)
ALWAYS = ChatFacts("always", 3, 4)
NEVER = ChatFacts("never", None, None)


@pytest.mark.parametrize(
    ("chat", "thinking", "name"),
    [
        (SWITCHABLE, None, "qwen3-thinking"),
        (SWITCHABLE, True, "qwen3-thinking"),
        (SWITCHABLE, False, "qwen3-answer"),
        (ALWAYS, None, "qwen3-thinking-2507"),
        (ALWAYS, False, "qwen3-thinking-2507"),
        (NEVER, None, "qwen3-instruct-2507"),
        (NEVER, True, "qwen3-instruct-2507"),
    ],
)
def test_the_preset_follows_from_how_the_model_thinks(
    chat: ChatFacts, thinking: bool | None, name: str
) -> None:
    assert choose_preset(chat, thinking).value.name == name


def test_the_packages_own_settings_win() -> None:
    own = dataclasses.replace(QWEN, temperature=0.2)
    expected = SamplingParams(temperature=0.2, top_k=20, top_p=0.95)
    for chat in (SWITCHABLE, ALWAYS, NEVER):
        for thinking in (None, True, False):
            assert choose_sampling(own, chat, thinking).value == expected


def test_a_switched_off_qwen_gets_the_settings_for_plain_answers() -> None:
    assert choose_sampling(QWEN, SWITCHABLE, None).value == THINKING_PRESET
    off = choose_sampling(QWEN, SWITCHABLE, False)
    assert off.value == ANSWER_PRESET
    assert "thinking is off" in off.reason and "qwen3-answer" in off.reason
    assert choose_sampling(QWEN, NEVER, False).value == THINKING_PRESET


def test_a_package_that_does_not_sample_is_greedy() -> None:
    greedy = dataclasses.replace(QWEN, do_sample=False)
    assert choose_sampling(greedy, SWITCHABLE, False).value.is_greedy


def test_presets_are_found_by_name_and_say_where_they_are_from() -> None:
    for preset in PRESETS:
        assert find_preset(preset.name) is preset
        assert "model card of Qwen/Qwen3-4B" in preset.source
        assert preset.max_answer_tokens <= preset.max_hard_answer_tokens
        dataclasses.replace(preset.sampling, presence_penalty=preset.loop_presence_penalty)
    with pytest.raises(UsageError, match="Did you mean 'qwen3-thinking'"):
        find_preset("qwen3-thinkin")
