"""What form an answer can be asked to have.

A format is text and nothing else: it can be compared, hashed and kept. Whether it can be
compiled is found out by `grammar.py`; what is refused here is what is no format at all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.structured.schema_limits import read_schema

FormatKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]

MAX_CHOICES = 5_000


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The form of an answer; made by the class methods.

    Args:
        kind: Which kind of form.
        text: The schema as JSON, the pattern, the choices as a JSON list, or the grammar.
    """

    kind: FormatKind
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, object] | str | bool) -> "OutputFormat":
        """Return the form of JSON values that a schema (draft 2020-12) describes.

        The answer's properties come in the order of the schema, with a space after `,` and `:`
        and no other white space. `format` is enforced where it is known, else ignored.

        Raises:
            GrammarError: It is not JSON, or larger or deeper than allowed.
        """
        plain = read_schema(schema)
        return cls("json_schema", json.dumps(plain, ensure_ascii=False, allow_nan=False))

    @classmethod
    def json_object(cls) -> "OutputFormat":
        """Return the form of any JSON object."""
        return cls("json_object", '{"type": "object"}')

    @classmethod
    def regex(cls, pattern: str) -> "OutputFormat":
        """Return the form of texts that a regular expression matches as a whole.

        Raises:
            GrammarError: It is not a text, or empty.

        Source:
            Syntax of the Rust crate `regex`, without look-around, `\\b` and back references.
        """
        return cls("regex", _check_text("regex", pattern))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "OutputFormat":
        """Return the form of answers that are one of some texts.

        Raises:
            GrammarError: There are none or too many, or one is empty or no text.
        """
        if isinstance(texts, str) or not 1 <= len(texts) <= MAX_CHOICES:
            found = "a single text" if isinstance(texts, str) else f"{len(texts):,} texts"
            raise GrammarError(
                f"choice has {found}; expected a list of 1 to {MAX_CHOICES:,} texts.",
                "pass a list of texts",
                limit=MAX_CHOICES,
            )
        checked = [_check_text("choice", text) for text in texts]
        return cls("choice", json.dumps(list(dict.fromkeys(checked)), ensure_ascii=False))

    @classmethod
    def lark(cls, grammar: str) -> "OutputFormat":
        """Return the form that a context-free grammar describes.

        Raises:
            GrammarError: It is not a text, or empty.

        Source:
            llguidance 1.9, docs/syntax.md: a dialect of Lark.
        """
        return cls("lark", _check_text("lark", grammar))


def _check_text(kind: str, text: object) -> str:
    """Return a text that is not empty and has a UTF-8 form, or raise GrammarError."""
    if not isinstance(text, str) or not text:
        raise GrammarError(
            f"{kind} got {text!r:.80}; expected a text that is not empty.", "pass a text"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GrammarError(
            f"{kind} got a text with a lone surrogate at character {error.start:,}, which is "
            "half of a character.",
            "take it out",
        ) from error
    return text
