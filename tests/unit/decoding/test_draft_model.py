"""A smaller model that drafts: its cache in step with the sequence, its doubts and its limits."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import DeviceError, UsageError
from qwen_edge.runtime.backends.backend import LogitsRows
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.decoding.draft_model import DraftModel, check_same_vocabulary
from qwen_edge.runtime.decoding.drafting import CallReport
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.decoding.speculation import make_drafter
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.text_tokenizer import TextTokenizer


def count_up(token_ids: Sequence[int]) -> int:
    return len(token_ids) % 256


def is_odd_one_out(token_ids: Sequence[int]) -> int:
    """Agree with `count_up` but at every seventh place."""
    return 0 if len(token_ids) % 7 == 0 else count_up(token_ids)


@settings(max_examples=40)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("extend"), st.lists(st.integers(0, 3), min_size=1, max_size=50)),
            st.tuples(st.just("propose"), st.integers(1, 6)),
            st.tuples(st.just("prepare"), st.just(0)),
            st.tuples(st.just("begin"), st.lists(st.integers(0, 3), min_size=1, max_size=50)),
            st.tuples(st.just("fail"), st.just(0)),
        ),
        max_size=12,
    )
)
def test_drafts_are_those_of_a_fresh_cache(steps: list[tuple[str, object]]) -> None:
    """Whatever was proposed, rejected, begun anew or failed before."""

    def next_token(token_ids: Sequence[int]) -> int:
        return (sum(token_ids[-5:]) + len(token_ids)) % 4

    backend = FakeBackend(next_token)
    model = DraftModel(backend)
    sequence = [1, 2, 3]
    model.begin(sequence)
    for action, value in steps:
        if action == "extend":
            model.extend(value)  # type: ignore[arg-type]
            sequence += value  # type: ignore[operator]
        elif action == "begin":
            model.close()
            model.begin(value)  # type: ignore[arg-type]
            sequence = list(value)  # type: ignore[call-overload]
        elif action == "prepare":
            model.prepare()
        elif action == "fail":
            backend.reset()  # as a backend does whose engine fails
        else:
            expected = list(sequence)
            for _ in range(value):  # type: ignore[call-overload]
                expected.append(next_token(expected))
            guesses = model.propose(value)  # type: ignore[arg-type]
            assert [*sequence, *guesses] == expected
        cached = backend.cached_ids
        assert action in ("extend", "begin") or cached[: len(sequence)] == sequence[: len(cached)]


def test_only_what_is_new_is_read() -> None:
    backend = FakeBackend(count_up)
    model = DraftModel(backend)
    model.begin([9] * 20)
    assert list(model.propose(3)) == [20, 21, 22]
    assert backend.num_forward_tokens == 20 + 2  # the last guess is not fed
    model.extend([20, 21, 5])
    backend.num_forward_tokens = 0
    assert list(model.propose(2)) == [23, 24]
    assert backend.num_forward_tokens == 1 + 1
    model.begin([*[9] * 20, 20, 21, 5, 6, 7])
    backend.num_forward_tokens = 0
    model.propose(1)
    assert backend.num_forward_tokens == 2
    model.begin([9] * 20)  # the same again: the last token is read for its logits
    backend.num_forward_tokens = 0
    model.propose(1)
    assert backend.num_forward_tokens == 1


def test_long_prompt_is_read_in_parts_before_the_first_draft() -> None:
    backend = FakeBackend(count_up)
    model = DraftModel(backend)
    model.begin([9] * 1100)
    sizes = []
    while model.prepare():
        sizes.append(backend.cached_tokens)
    assert sizes == [512, 1024, 1099]
    assert list(model.propose(1)) == [1100 % 256]
    model.extend([1, 2, 3])
    assert not model.prepare()


class Doubting(FakeBackend):
    """Is sure of its tokens up to a place."""

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        rows = super().forward_scored(token_ids, num_scored=num_scored)
        return rows * np.float32(1.0 if self.cached_tokens < 8 else 0.5)


def test_draft_ends_where_the_model_is_in_doubt() -> None:
    """10 above 255 others is a probability of 0.99, 5 above them one of 0.37."""
    model = DraftModel(Doubting(count_up))
    model.begin([9] * 5)
    assert list(model.propose(9)) == [5, 6, 7]
    model.extend([5, 6, 7])
    assert list(model.propose(9)) == []
    bold = DraftModel(Doubting(count_up), min_probability=0.3)
    bold.begin([9] * 5)
    assert list(bold.propose(9)) == list(range(5, 14))


def test_smaller_context_ends_the_drafts_and_not_the_answer() -> None:
    draft = DraftModel(FakeBackend(count_up, max_context_tokens=20))
    draft.begin([9] * 18)
    assert draft.evidence() > 0
    assert list(draft.propose(9)) == [18, 19, 20]
    draft.extend([18, 19])
    assert list(draft.propose(9)) == [20]
    draft.extend([20])
    assert draft.evidence() == 0
    assert list(draft.propose(9)) == []
    answer = answer_with(draft, [9] * 10, 60)
    assert answer == list(range(10, 70))


def answer_with(draft: DraftModel, prompt: list[int], num_tokens: int) -> list[int]:
    backend = FakeBackend(count_up)
    drafter = make_drafter(backend, lookup=False, draft=draft)
    assert drafter is not None
    drafter.begin(prompt)
    tokens = generate_tokens(
        backend,
        prompt,
        picker=TokenPicker(Sampler(SamplingParams(temperature=0.0))),
        max_new_tokens=num_tokens,
        drafter=drafter,
    )
    answer = [token.token_id for token in tokens]
    assert drafter.stats.num_calls == backend.num_forward_calls - 1
    return answer


@pytest.mark.parametrize("vocab_size", [256, 300, 20], ids=["same", "padded", "too small"])
def test_answer_is_that_of_the_large_model(vocab_size: int) -> None:
    """A draft model that lacks a token is left out where that token comes."""
    draft = DraftModel(
        FakeBackend(lambda ids: is_odd_one_out(ids) % vocab_size, vocab_size=vocab_size)
    )
    assert answer_with(draft, [9] * 10, 60) == list(range(10, 70))


def test_failing_draft_model_is_asked_again_for_the_next_answer() -> None:
    backend = FakeBackend(count_up, fail_at_call=2)
    draft = DraftModel(backend)
    draft.begin([9] * 10)
    with pytest.raises(DeviceError):
        draft.propose(5)
    assert list(draft.propose(5)) == [10, 11, 12, 13, 14]
    assert backend.cached_ids == [*[9] * 10, 10, 11, 12, 13]


def test_nothing_to_follow() -> None:
    draft = DraftModel(FakeBackend(count_up))
    assert draft.evidence() == 0
    assert list(draft.propose(5)) == []
    draft.report(CallReport(1, 0, 0, 0.1))
    draft.begin([1] * 5000)
    assert draft.evidence() == 0  # longer than the context


# Vocabularies.


def change_tokenizer(change: str) -> TextTokenizer:
    from tokenizers import AddedToken

    tokenizer = make_fake_tokenizer()
    if change == "one more":
        tokenizer._tokenizer.add_tokens([AddedToken("<more>")])
    return tokenizer


def test_same_vocabulary_passes() -> None:
    check_same_vocabulary(make_fake_tokenizer(), make_fake_tokenizer(), "small")


def test_other_vocabulary_is_refused(qwen3_tokenizer_file: object) -> None:
    own, more = make_fake_tokenizer(), change_tokenizer("one more")
    words = f"differ in 1 of {own.vocab_size + 1} ids. Id {own.vocab_size} is '<more>' there"
    with pytest.raises(UsageError, match=words) as caught:
        check_same_vocabulary(own, more, "small")
    assert "'small' cannot draft" in caught.value.problem
    assert caught.value.facts["first_id"] == own.vocab_size
    with pytest.raises(UsageError, match="is None there and '<more>' here"):
        check_same_vocabulary(more, own, "small")
    other = TextTokenizer.load(str(qwen3_tokenizer_file))
    with pytest.raises(UsageError, match="cannot draft"):
        check_same_vocabulary(own, other, "small")
