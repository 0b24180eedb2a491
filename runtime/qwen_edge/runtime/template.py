"""Renders a chat template that nobody has checked: sandbox, time limit, output limit.

A package may come from anywhere, and its template is a program. Jinja2's immutable sandbox
keeps it from Python's internals; this module keeps it from running or growing without end.
It knows nothing of roles or tokens; read `chat.py` next, and `template_sandbox.py` for how.
"""

import importlib.metadata
import re
from collections.abc import Mapping
from types import CodeType

import jinja2
from jinja2.exceptions import SecurityError

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime.template_budget import LimitError
from qwen_edge.runtime.template_sandbox import TemplateMessageError, TemplateSandbox

MAX_TEMPLATE_CHARS = 64 * 1024
"""Qwen3's has 4,116; the longest published ones some 20,000. To compile takes up to 20 us each."""
_MIN_JINJA = (3, 1, 6)  # earlier ones have known ways out of the sandbox, CVE-2025-27516
_FIX = "use the chat template of the model this package was made from"


class Template:
    """A compiled chat template.

    Args:
        source: Jinja2 text, as in `chat_template.jinja`.

    Raises:
        PackageError: The template is too long or not Jinja2, or Jinja2 is too old to be safe.

    State:
        Immutable; may be rendered from several threads at once.
    """

    def __init__(self, source: str) -> None:
        _check_jinja_version(importlib.metadata.version("jinja2"))
        if len(source) > MAX_TEMPLATE_CHARS:
            raise PackageError(
                f"The chat template has {len(source):,} characters; the limit is "
                f"{MAX_TEMPLATE_CHARS:,}.",
                _FIX,
                template_chars=len(source),
            )
        self._code = _compile(source)

    def render(self, variables: Mapping[str, object]) -> str:
        """Return the text for these variables.

        Args:
            variables: Plain data only: dicts, lists, texts, numbers, booleans and None.

        Raises:
            UsageError: The template refuses the conversation; the text is the template's own.
            PackageError: The template failed, broke out of its limits, or tried to.
        """
        sandbox = TemplateSandbox()
        template = jinja2.Template.from_code(sandbox, self._code, sandbox.globals)
        try:
            return str(sandbox.budget.check(template.render(variables)))
        except TemplateMessageError as exc:
            raise UsageError(
                f"The chat template refuses this conversation: {str(exc)[:500]!r}.",
                "change the messages as the template asks",
            ) from exc
        except LimitError as exc:
            raise PackageError(f"The chat template was stopped: {exc}.", _FIX) from exc
        except SecurityError as exc:
            raise PackageError(
                f"The chat template was stopped, it uses what a template may not: {exc}", _FIX
            ) from exc
        except Exception as exc:
            raise PackageError(
                "The chat template cannot render this conversation: "
                f"{type(exc).__name__}: {str(exc)[:300]}",
                "check the roles and fields of the messages, or " + _FIX,
            ) from exc


def _compile(source: str) -> CodeType:
    """Return the code of a template; raise PackageError when it is not one."""
    try:
        return TemplateSandbox().compile(source)
    except jinja2.TemplateSyntaxError as exc:
        raise PackageError(
            f"The chat template is not valid Jinja2 in line {exc.lineno:,}: {exc.message}", _FIX
        ) from exc
    except Exception as exc:
        raise PackageError(
            f"The chat template cannot be compiled: {type(exc).__name__}: {str(exc)[:300]}", _FIX
        ) from exc


def _check_jinja_version(version: str) -> None:
    """Raise PackageError when this Jinja2 has a known way out of its sandbox."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < _MIN_JINJA:
        raise PackageError(
            f"Jinja2 {version} is installed; 3.1.6 or later is needed, because templates can "
            "leave the sandbox of earlier ones.",
            "pip install --upgrade jinja2",
            version=version,
        )
