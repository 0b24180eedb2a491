"""Models: defaults, raw generation, the loan of the cache, closing."""

import dataclasses
from typing import Any

import pytest

from qwen_edge.errors import ContextFullError, UsageError
from qwen_edge.runtime.decoding.presets import ANSWER_PRESET, THINKING_PRESET
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.fake_model import FakeCard
from qwen_edge.runtime.model import Model


def with_generation(**changes: Any) -> Model:
    """Return a fake model with other generation defaults."""
    model = Model.fake(["x"])
    card = FakeCard(
        "fake", dataclasses.replace(model.generation, do_sample=True, **changes), model.chat
    )
    return Model(model.backend, model.tokenizer, "{{ messages[0].content }}", card)


def test_qwens_presets_apply_where_the_package_has_qwens_own_values() -> None:
    model = with_generation()
    assert model.sampling_defaults() == THINKING_PRESET
    assert model.sampling_defaults(thinking=True) == THINKING_PRESET
    assert model.sampling_defaults(thinking=False) == ANSWER_PRESET


def test_other_values_of_the_package_apply_to_both_modes() -> None:
    model = with_generation(temperature=0.2)
    expected = SamplingParams(temperature=0.2, top_k=20, top_p=0.95)
    assert model.sampling_defaults(True) == model.sampling_defaults(False) == expected


def test_a_package_that_does_not_sample_is_greedy() -> None:
    assert Model.fake(["x"]).sampling_defaults().is_greedy


def test_raw_generation_ends_with_the_stop_id() -> None:
    model = Model.fake(["ab"])
    prompt = model.tokenizer.encode("<|im_start|>assistant\n", allow_special=True)
    tokens = list(model.generate(prompt))
    assert tokens == [97, 98, model.tokenizer.added_tokens["<|im_end|>"]]
    assert list(model.generate(prompt, max_new_tokens=1)) == [97]
    assert list(model.generate([*prompt, 97])) == tokens[1:]


@pytest.mark.trust("T-TOK-05")
@pytest.mark.parametrize(
    ("prompt_ids", "says"), [([], "empty"), ([1, 9999], r"prompt_ids\[1\] is 9,999"), ([-1], "-1")]
)
def test_raw_generation_checks_its_ids_at_the_call(prompt_ids: list[int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Model.fake(["x"]).generate(prompt_ids)


def test_raw_generation_checks_the_context() -> None:
    with pytest.raises(ContextFullError, match="needs 4,096 tokens"):
        Model.fake(["x"]).generate([1] * 4096)


@pytest.mark.trust("T-EMB-09")
def test_a_closed_model_refuses_and_closing_twice_is_harmless() -> None:
    with Model.fake(["x"]) as model:
        chat = model.session()
    model.close()
    assert model.backend.is_closed  # type: ignore[attr-defined]
    for call in (lambda: chat.stream("Hi"), model.session, lambda: model.generate([1])):
        with pytest.raises(UsageError, match="closed"):
            call()


@pytest.mark.trust("T-EMB-09")
def test_closing_during_an_answer_ends_it_and_then_releases_the_backend() -> None:
    model = Model.fake(["abcdef"])
    stream = model.session().stream("Hi")
    next(stream)
    model.close()
    assert not model.backend.is_closed  # type: ignore[attr-defined]
    assert [event.finish_reason for event in stream] == ["cancelled"]
    assert model.backend.is_closed  # type: ignore[attr-defined]


def test_every_answer_waits_for_the_warm_up() -> None:
    waits: list[str] = []
    model = Model.fake(["a"])
    model = Model(
        model.backend,
        model.tokenizer,
        "{{ messages[0].content }}",
        model.manifest,
        wait_until_warm=lambda: waits.append("waited"),
        device_choice="CPU",
    )
    stream = model.session().stream("Hi", max_new_tokens=2)
    assert waits == []
    list(stream)
    list(model.generate([1], max_new_tokens=1))
    assert (waits, model.device_choice) == (["waited", "waited"], "CPU")


def test_the_prompt_limit_of_the_device_is_kept() -> None:
    model = Model.fake(["a"])
    model = Model(
        model.backend,
        model.tokenizer,
        "{{ messages[0].content }}",
        model.manifest,
        max_prompt_tokens=10,
    )
    assert model.session().ask("a" * 10, max_new_tokens=2).text
    with pytest.raises(ContextFullError, match="up to 10 on this device"):
        model.session().ask("a" * 11)
