"""Which files of a model say what may be done with it, by their names."""

import re

# What makers call them; with any ending, in any case.
_LICENCE_TEXT = re.compile(
    r"(?:licen[cs]e|copying|notice|us(?:e|age)[_-]policy|terms)(?:[._-].*)?", re.IGNORECASE
)


def is_licence_text(name: str) -> bool:
    """Return whether a file of a checkpoint or package is a licence, a notice or terms."""
    return _LICENCE_TEXT.fullmatch(name) is not None
