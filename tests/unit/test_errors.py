"""The error tree in the docstring is the error tree in the code."""

import re

import pytest

import qwen_edge.errors
from qwen_edge.errors import EdgeError, UsageError, did_you_mean, format_bytes, join_problems


def tree_in_docstring() -> dict[str, tuple[str, int]]:
    """Return name -> (parent, exit code) as drawn; a child without a code has its parent's."""
    drawn: dict[str, tuple[str, int]] = {}
    path: list[str] = []
    for line in (qwen_edge.errors.__doc__ or "").splitlines():
        found = re.match(r"    (?P<branch>[│├└─ ]*)(?P<name>\w+Error)\b(?P<rest>.*)", line)
        if found is None:
            continue
        depth = len(found["branch"]) // 4
        del path[depth:]
        parent = path[-1] if path else "Exception"
        code = re.search(r"exit (\d+)", found["rest"])
        drawn[found["name"]] = (parent, int(code[1]) if code else drawn[parent][1])
        path.append(found["name"])
    return drawn


def tree_in_code() -> dict[str, tuple[str, int]]:
    """Return name -> (parent, exit code) of every exported exception."""
    found = [getattr(qwen_edge.errors, name) for name in qwen_edge.errors.__all__]
    classes = [item for item in found if isinstance(item, type) and issubclass(item, EdgeError)]
    return {item.__name__: (item.__bases__[0].__name__, item.exit_code) for item in classes}


def test_the_drawn_tree_equals_the_classes() -> None:
    assert tree_in_docstring() == tree_in_code()


def test_every_subclass_is_exported() -> None:
    def walk(kind: type[EdgeError]) -> set[str]:
        return {kind.__name__}.union(*(walk(child) for child in kind.__subclasses__()))

    ours = {name for name in walk(EdgeError) if hasattr(qwen_edge.errors, name)}
    assert ours == set(tree_in_code())


def test_exit_codes_of_different_kinds_differ() -> None:
    kinds = {name: code for name, (parent, code) in tree_in_code().items() if parent == "EdgeError"}
    assert len(set(kinds.values())) == len(kinds)
    assert 0 not in kinds.values()


def test_text_is_problem_then_indented_fix() -> None:
    error = UsageError("Nothing fits.", "do this\nor that", name="x")
    assert str(error) == "Nothing fits.\n  Fix: do this\n       or that"
    assert (error.problem, error.facts) == ("Nothing fits.", {"name": "x"})


def test_without_a_fix_the_text_is_the_problem() -> None:
    assert str(EdgeError("Nothing fits.")) == "Nothing fits."


def test_did_you_mean_names_the_closest_or_nothing() -> None:
    assert did_you_mean("core-ultra-gup", ["core-ultra-gpu", "generic-x86"]) == (
        " Did you mean 'core-ultra-gpu'?"
    )
    assert did_you_mean("zebra", ["core-ultra-gpu", "generic-x86"]) == ""


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (2_300_000_000, "2.3 GB"),
        (4_000_000_000_000, "4,000.0 GB"),
    ],
)
def test_format_bytes(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


def test_join_problems_counts_what_it_leaves_out() -> None:
    assert join_problems(["a", "b"]) == "a; b"
    assert join_problems([str(n) for n in range(10)]).endswith("; 7; and 2 more")
