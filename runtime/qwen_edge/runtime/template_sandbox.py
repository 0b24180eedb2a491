"""The sandbox that chat templates run in: what they may use, and how much of it.

How the limits hold, in one process and without threads, signals or tracing, so on every
system: compiled templates spend from a budget at every block they enter (loop bodies, macros,
branches), every loop test, call, filter, operator and output, and each of these looks at the
clock. Between two looks runs one operation on values that exist already, and no value may be
larger than `MAX_OUTPUT_CHARS` characters or `MAX_VALUE_ITEMS` items: operations that multiply
(`*`, `**`, `replace`, `join`, `indent`, ...) are measured before they run, those that
add (`+`, `~`, lists, macros) after, and those that go through items (`map`, `sort`, ...) look
at the clock at each. What chat templates have no use for is not there.

What remains open: a template that stays just below every limit can hold some 100 MB for the
whole second, and its last operation may end some 0.3 s after it.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from qwen_edge.runtime.template_budget import MAX_INTEGER_BITS, Budget, LimitError
from qwen_edge.runtime.template_operations import MeasuredOperations, is_small_power

_STEP = "_step"  # the filter that every loop test passes through

_FILTERS = frozenset(
    {
        "abs",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "first",
        "float",
        "indent",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "safe",
        "select",
        "selectattr",
        "sort",
        "string",
        "title",
        "trim",
        "unique",
        "upper",
    }
)
# Of them, those that go through items: one after the other as these are asked for, or all at once.
_LAZY_FILTERS = frozenset({"map", "reject", "rejectattr", "select", "selectattr", "unique"})
_WHOLE_FILTERS = frozenset({"list", "max", "min", "sort", "unique"})
# Where the name of an attribute stands among what follows the value, unless it is named.
_ATTRIBUTE_AT = {"max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2, "unique": 1}
_TEXT_METHODS = frozenset(
    {
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isdigit",
        "islower",
        "isnumeric",
        "isspace",
        "istitle",
        "isupper",
        "join",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
    }
)
_METHODS: tuple[tuple[tuple[type, ...], frozenset[str]], ...] = (
    ((str,), _TEXT_METHODS),
    ((dict,), frozenset({"get", "items", "keys", "values"})),
    ((list, tuple), frozenset({"count", "index"})),
    ((int, float, bytes), frozenset()),
)


class TemplateMessageError(Exception):
    """The template itself refused the conversation, with `raise_exception`."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A Jinja2 environment for one rendering, set up as Transformers sets up its own.

    State:
        `budget` shrinks while the template runs.

    Source:
        `_cached_compile_jinja_template` in transformers 5.5.4, `utils/chat_template_utils.py`.
    """

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        # Without the optimizer no part of a template runs while it is compiled.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            cache_size=0,
            extensions=[_GenerationTag, loopcontrols],
        )
        self.budget = Budget()
        measured = self._measured = MeasuredOperations(self.budget, self.getitem)
        self.code_generator_class = _SpendingCodeGenerator
        self.finalize = _write
        offered: dict[str, Callable[..., Any]] = {name: self.filters[name] for name in _FILTERS}
        self.filters = {name: self._spending(offered[name], name) for name in _FILTERS}
        self.filters |= {
            "indent": measured.indent,
            "join": measured.join,
            "replace": measured.replace,
            "title": measured.title,
            "trim": measured.trim,
            "tojson": measured.to_json,
            _STEP: self._spending(lambda value: value),
        }
        tests = cast("dict[str, Callable[..., Any]]", self.tests)
        self.tests = {name: self._spending(test) for name, test in tests.items()}
        self.globals = {
            "range": self.globals["range"],
            "dict": measured.make_dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _generate(
        self,
        source: nodes.Template,
        name: str | None,
        filename: str | None,
        defer_init: bool = False,
    ) -> str:
        """Return Python source; Jinja2's hook for changing the tree before it is compiled."""
        for loop in source.find_all(nodes.For):
            if loop.test is not None:
                loop.test = nodes.Filter(loop.test, _STEP, [], [], None, None)
        return super()._generate(source, name, filename, defer_init)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow the methods that chat templates need, on top of Jinja2's own rules."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for types, methods in _METHODS:
            if isinstance(obj, types):
                return attr in methods
        return True

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse at once, where Jinja2 would print nothing and go on."""
        raise SecurityError(f"{attribute!r} of a value of type {type(obj).__name__!r}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Refuse `str.format`: one width in a format makes a text of any size."""
        if super().wrap_str_format(value) is not None:
            raise SecurityError("the text methods format and format_map are not offered")
        return None

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Run one operator, measured before where its result can be much larger."""
        self.budget.step()
        if operator == "%" and isinstance(left, str):
            raise SecurityError("text formatting with % is not offered")
        if operator == "**" and not is_small_power(left, right):
            raise LimitError(f"it made a number of more than {MAX_INTEGER_BITS:,} bits")
        if operator == "*":
            self._measured.check_product(left, right)
        return self.budget.check(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function, macro or method, measured before where needed, and after."""
        __self.budget.step()
        target = getattr(__obj, "__self__", None)
        if isinstance(target, str):
            __self._measured.check_text_call(target, str(__obj.__name__), (*args, *kwargs.values()))
        return __self.budget.check(super().call(__context, __obj, *args, **kwargs))

    def concat_checked(self, parts: Sequence[object]) -> str:
        """Join the parts of a `~` expression; called by compiled templates."""
        texts = [str(part) for part in parts]
        self.budget.check_chars(sum(map(len, texts)))
        return "".join(texts)

    def _spending(self, function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
        """Return a filter or test that is checked before and after it runs."""
        # Jinja2 hands some filters the environment or context before the value.
        first = 1 if hasattr(function, "jinja_pass_arg") else 0
        is_walking = name in _LAZY_FILTERS | _WHOLE_FILTERS

        @functools.wraps(function)  # also copies Jinja2's mark of what it wants passed
        def spend(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            if is_walking and len(args) > first:
                value = self._measured_items(name, args[first])
                at = first + 1 + _ATTRIBUTE_AT.get(name, len(args))
                self._measured.check_attribute(kwargs.get("attribute", *args[at : at + 1]))
                args = (*args[:first], value, *args[first + 1 :])
            return self.budget.check(function(*args, **kwargs))

        return spend

    def _measured_items(self, name: str, value: Any) -> Any:
        """Return what the filter is to go through in place of the value."""
        if name in _WHOLE_FILTERS:
            value = self._measured.take(value)
        # Nothing at all (None, what is not defined) is left to the filter.
        return self._measured.walk(value) if value and name in _LAZY_FILTERS else value


class _SpendingCodeGenerator(CodeGenerator):
    """Writes Python that reports to the budget of its environment."""

    def blockvisit(self, nodes_: Iterable[nodes.Node], frame: Frame) -> None:
        """Write a block; its constant text is counted each time it is entered."""
        block = list(nodes_)
        num_chars = sum(
            len(part.data)
            for node in block
            if isinstance(node, nodes.Output)
            for part in node.nodes
            if isinstance(part, nodes.TemplateData)
        )
        self.writeline(f"environment.budget.emit({num_chars})")
        super().blockvisit(block, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """Write a `~` expression."""
        self.write("environment.concat_checked((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        """Write a list; lists of one list twice grow like powers of two."""
        self.write("environment.budget.check(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        """Write a dict."""
        self.write("environment.budget.check(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        """Write a tuple; one that is assigned to is no value."""
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.budget.check(")
        super().visit_Tuple(node, frame)
        self.write(")")


class _GenerationTag(Extension):
    """`{% generation %}`: marks the model's part for training; here it only passes through."""

    tags = {"generation"}  # noqa: RUF012  declared so by Jinja2

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace that does not print its values: they may hold each other without end."""

    def __repr__(self) -> str:
        return "<Namespace>"


@jinja2.pass_context  # with the context Jinja2 cannot call this while it compiles
def _write(context: Context, value: object) -> str:
    """Return the text of an output expression, counted."""
    budget = context.environment.budget  # type: ignore[attr-defined]
    text = value if isinstance(value, str) else str(budget.check(value))
    budget.emit(len(text))
    return text


def _raise_exception(message: object) -> None:
    """Template function: refuse the conversation."""
    raise TemplateMessageError(str(message))


def _strftime_now(time_format: str) -> str:
    """Template function: the local time now. Widths in the format are refused."""
    if len(time_format) > 64 or any(character.isdigit() for character in time_format):
        raise LimitError("its time format is too long")
    return datetime.now().strftime(time_format)
