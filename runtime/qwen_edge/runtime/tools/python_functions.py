"""Typed Python functions as tools: their schema from the signature, and the call back.

The annotations give the types, a docstring in Google style the meanings, and what has a default
need not be given. It knows one function; `tool.py` is about tools and `running.py` runs them.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from qwen_edge.errors import UsageError
from qwen_edge.runtime.tools.docstrings import read_docstring
from qwen_edge.runtime.tools.parameter_types import (
    ParameterType,
    describe,
    make_object_schema,
    make_parameter_type,
    read_object,
)

_FIX = "write a function whose parameters are named and annotated, such as def f(city: str)"
_REFUSED_KINDS = {
    inspect.Parameter.VAR_POSITIONAL: "takes any number of arguments (*)",
    inspect.Parameter.VAR_KEYWORD: "takes any keyword (**)",
    inspect.Parameter.POSITIONAL_ONLY: "can be given by position only (/)",
}


class TypedFunction:
    """A Python function that takes what a model wrote.

    Called with JSON data as keywords, it checks and converts them and calls the function.

    Args:
        function: A function or a method with every parameter annotated; not async.

    Raises:
        UsageError: It is something else, or a parameter cannot be described; the error names
            the function and the parameter.

    State:
        Immutable.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self.__wrapped__ = function
        if not inspect.isroutine(function):
            raise self._refuse(f"is {type(function).__name__}, no function")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise self._refuse("is async; a tool is called and its result awaited by nobody")
        docstring = read_docstring(inspect.getdoc(function))
        self.description = docstring.description
        self._types: dict[str, ParameterType] = {}
        self._required: list[str] = []
        properties = {}
        hints = self._read_hints(function)
        for parameter in self._read_signature(function).parameters.values():
            name = parameter.name
            if parameter.kind in _REFUSED_KINDS:
                problem = _REFUSED_KINDS[parameter.kind]
                raise self._refuse(f"has the parameter {name!r}, which {problem}")
            if name not in hints:
                raise self._refuse(f"has the parameter {name!r} without an annotation")
            where = f"The parameter {name!r} of the function {self.name!r}"
            self._types[name] = make_parameter_type(hints[name], where)
            properties[name] = describe(self._types[name].schema, docstring.parameters.get(name))
            if parameter.default is inspect.Parameter.empty:
                self._required.append(name)
        self.parameters = make_object_schema(properties, self._required)

    def __call__(self, /, **arguments: object) -> object:
        """Call the function and return its result.

        Args:
            **arguments: What the model wrote, as JSON data.

        Raises:
            ArgumentError: They do not fit the function's parameters.
            Exception: Whatever the function raises.
        """
        return self.__wrapped__(**read_object(arguments, self._types, self._required, ""))

    def _read_signature(self, function: Callable[..., object]) -> inspect.Signature:
        try:
            return inspect.signature(function)
        except (TypeError, ValueError) as exc:
            raise self._refuse("has no signature to be read") from exc

    def _read_hints(self, function: Callable[..., object]) -> dict[str, Any]:
        try:
            return typing.get_type_hints(function, include_extras=True)
        except Exception as exc:  # whatever evaluating an annotation raises
            raise self._refuse(f"has annotations that cannot be read: {exc}") from exc

    def _refuse(self, problem: str) -> UsageError:
        return UsageError(
            f"The function {self.name!r} cannot be a tool: it {problem}.", _FIX, tool=self.name
        )
