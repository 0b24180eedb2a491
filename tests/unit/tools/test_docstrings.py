"""Docstrings in Google style, and texts that are none."""

from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.tools.docstrings import Docstring, read_docstring

TEXT = """Get the weather
    of a city.

    It is a forecast: Tomorrow counts.

    Args:
        city: Its name,
            in English.
        days (int, optional): How many.
            Example: three

        unit:
    Returns:
        days: nothing of a parameter.
    """


def test_description_and_parameters() -> None:
    read = read_docstring(TEXT)
    assert read.description == "Get the weather of a city.\nIt is a forecast: Tomorrow counts."
    assert read.parameters == {
        "city": "Its name, in English.",
        "days": "How many. Example: three",
        "unit": "",
    }


def test_none_is_nothing() -> None:
    assert read_docstring(None) == Docstring() == read_docstring(" \n ")


@given(st.text(alphabet="Args:\n ab()*", max_size=60))
def test_any_text_is_accepted(text: str) -> None:
    read_docstring(text)
