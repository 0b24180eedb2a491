"""Stop strings: exact cuts, overlaps, and no dependence on how the text arrives."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import UsageError
from qwen_edge.runtime.stopping import StopMatcher

ALPHABET = "aab\u00e9\U0001f44b"


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """Return the text shown and the stop string found."""
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    shown.append(matcher.finish())
    return "".join(shown), matcher.matched


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """Say the rule again, slowly: the match that ends first, the longest of those."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


texts = st.text(ALPHABET, max_size=30)
stop_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=5)


@pytest.mark.trust("T-GEN-06")
@given(stops=stop_lists, pieces=st.lists(texts, max_size=10))
def test_the_result_does_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    assert run(stops, pieces) == expected(stops, "".join(pieces))


@given(stops=stop_lists, text=texts)
def test_nothing_is_shown_that_may_still_become_a_stop_string(stops: list[str], text: str) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for index, character in enumerate(text):
        shown += matcher.push(character)
        if matcher.matched is None:
            held = text[len(shown) : index + 1]
            assert text.startswith(shown)
            assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.trust("T-GEN-06")
@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["END"], ["one E", "N", "D two"], "one "),
        (["END"], ["one E", "NO"], "one ENO"),
        (["aab"], ["aa", "a", "b"], "a"),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb"),
        (["abcd", "bc"], ["ab", "cd"], "a"),
        (["</s>", "</stop>"], ["x</st", "op>y"], "x"),
        ([], ["x", "y"], "xy"),
    ],
)
def test_overlaps_and_cuts(stops: list[str], pieces: list[str], shown: str) -> None:
    assert run(stops, pieces)[0] == shown


def test_text_after_the_match_is_never_shown() -> None:
    matcher = StopMatcher(["x"])
    assert matcher.push("ax b") == "a"
    assert (matcher.push("c"), matcher.finish(), matcher.matched) == ("", "", "x")


@pytest.mark.trust("T-GEN-06")
def test_an_empty_stop_string_is_refused_with_its_place() -> None:
    with pytest.raises(UsageError, match="Stop string 2 is ''"):
        StopMatcher(["a", ""])


@pytest.mark.trust("T-GEN-06")
def test_a_hundred_stop_strings_stay_linear() -> None:
    """Time for twice the text is about twice, not four times."""
    stops = [f"{'a' * 50}{index}" for index in range(100)]

    def seconds(num_pieces: int) -> float:
        matcher = StopMatcher(stops)
        start_s = time.perf_counter()
        for _ in range(num_pieces):
            matcher.push("aaa ")
        return time.perf_counter() - start_s

    short = min(seconds(100) for _ in range(3))
    assert min(seconds(200) for _ in range(3)) < 4 * short
