"""Types of Python parameters: the JSON schema of each, and how a JSON value becomes one.

Supported are `str`, `int`, `float`, `bool`, `None`, `Any`, `Literal`, `Enum`, unions, `list`,
`tuple`, `dict` with text keys, `TypedDict` and dataclasses; `Annotated[..., "text"]` describes.
What a model writes is checked against the type here, also where a grammar has done so already.
It knows types only; `python_functions.py` is about functions.
"""

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from qwen_edge.errors import UsageError
from qwen_edge.runtime.tools.docstrings import read_docstring

_MAX_DEPTH = 16  # of types in types
_SUPPORTED = (
    "use str, int, float, bool, None, Any, Literal, Enum, unions, list, tuple, dict[str, ...], "
    "TypedDict or a dataclass"
)
_JSON_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    list: "a list",
    dict: "an object",
}


class ArgumentError(ValueError):
    """A JSON value that does not fit its type; the text is meant for the model."""


@dataclass(frozen=True)
class ParameterType:
    """One type.

    Args:
        schema: Its JSON schema.
        read: Returns the Python value of a JSON value. Its second argument is what errors
            call the value. Raises ArgumentError where it does not fit.
    """

    schema: dict[str, Any]
    read: Callable[[object, str], object]


@dataclass(frozen=True)
class _Place:
    """Where a type stands: for errors, and to notice one that holds itself."""

    text: str
    around: tuple[object, ...] = ()

    def inside(self, annotation: object) -> "_Place":
        """Return the place of a part of `annotation`."""
        return _Place(self.text, (*self.around, annotation))

    def refuse(self, problem: str) -> UsageError:
        """Return the error for a type that cannot be used."""
        return UsageError(f"{self.text} {problem}.", _SUPPORTED, where=self.text)


@dataclass(frozen=True)
class _Field:
    """One entry of an object; see `_object_type`."""

    kind: ParameterType
    is_required: bool


def make_parameter_type(annotation: object, where: str) -> ParameterType:
    """Return the type that an annotation stands for.

    Args:
        annotation: Resolved, so no text; may be `Annotated`.
        where: Beginning of an error's sentence, such as "The parameter 'x' of 'f'".

    Raises:
        UsageError: It is not supported, or holds itself.
    """
    return _make(annotation, _Place(where))


def _make(annotation: object, place: _Place) -> ParameterType:
    """Return the type of an annotation at a place."""
    if annotation in place.around:
        raise place.refuse(f"has the type {_name(annotation)}, which holds itself")
    if len(place.around) > _MAX_DEPTH:
        raise place.refuse(f"has types nested more than {_MAX_DEPTH} deep")
    simple = _SIMPLE.get(annotation) if isinstance(annotation, type | None) else None
    if simple is not None:
        return simple
    if annotation is Any or annotation is object:
        return ParameterType({}, lambda value, _: value)
    origin, inside = get_origin(annotation), place.inside(annotation)
    if origin is Annotated:
        return _annotated(annotation, inside)
    if origin is Literal:
        return _choice([(value, value) for value in get_args(annotation)], place)
    if origin in (Union, types.UnionType):
        return _union([_make(option, inside) for option in get_args(annotation)])
    if (origin or annotation) in _CONTAINERS:
        return _CONTAINERS[origin or annotation](get_args(annotation), inside)
    if isinstance(annotation, type):
        return _class_type(annotation, inside)
    alias = getattr(annotation, "__value__", getattr(annotation, "__supertype__", None))
    if alias is not None:  # `type X = ...` and NewType
        return _make(alias, inside)
    raise place.refuse(f"has the type {_name(annotation)}, which has no JSON form")


def _class_type(kind: type, place: _Place) -> ParameterType:
    """Return the type of a class that a caller wrote."""
    if issubclass(kind, Enum):
        return _choice([(member.value, member) for member in kind], place)
    if typing.is_typeddict(kind):
        return _typed_dict(kind, place)
    if is_dataclass(kind):
        return _dataclass_type(kind, place)
    raise place.refuse(f"has the type {_name(kind)}, which has no JSON form")


def _scalar(kind: type, schema_name: str) -> ParameterType:
    """Return the type of a text, a number, a truth value or null."""

    def read(value: object, where: str) -> object:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return _to_float(value, where)
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)  # JSON schema counts 3.0 among the integers
        raise _mismatch(value, _JSON_NAMES[kind], where)

    return ParameterType({"type": schema_name}, read)


def _to_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{where} is too large a number") from None


_SIMPLE: Mapping[object, ParameterType] = {
    str: _scalar(str, "string"),
    int: _scalar(int, "integer"),
    float: _scalar(float, "number"),
    bool: _scalar(bool, "boolean"),
    None: _scalar(type(None), "null"),
    type(None): _scalar(type(None), "null"),
}


def _choice(members: Sequence[tuple[Any, object]], place: _Place) -> ParameterType:
    """Return the type of a value that is one of a few.

    Args:
        members: JSON value and Python value of each.
        place: Where it stands.
    """
    # By type as well: 1 and True are equal in Python and differ in JSON.
    known = {(type(value), value): member for value, member in members}
    kinds = {kind for kind, _ in known}
    if not known or not kinds <= {str, int, bool, type(None)}:
        raise place.refuse("has a choice of something else than texts and whole numbers")
    schema: dict[str, Any] = {"enum": [value for _, value in known]}
    if len(kinds) == 1:
        schema = {"type": _SIMPLE[kinds.pop()].schema["type"], **schema}

    def read(value: object, where: str) -> object:
        if isinstance(value, str | int | None) and (type(value), value) in known:
            return known[type(value), value]
        raise _mismatch(value, "one of " + ", ".join(repr(item) for _, item in known), where)

    return ParameterType(schema, read)


def _union(options: Sequence[ParameterType]) -> ParameterType:
    """Return the type of a value that fits one of several; the first that does counts."""
    schema: dict[str, Any] = {"anyOf": [option.schema for option in options]}
    names = [option.schema.get("type") for option in options if len(option.schema) == 1]
    if len(names) == len(options) and all(isinstance(name, str) for name in names):
        schema = {"type": names}  # says the same in fewer tokens

    def read(value: object, where: str) -> object:
        problems = []
        for option in options:
            try:
                return option.read(value, where)
            except ArgumentError as exc:
                problems.append(str(exc))
        raise ArgumentError(" or ".join(problems))

    return ParameterType(schema, read)


def _list_type(args: tuple[Any, ...], place: _Place) -> ParameterType:
    """Return the type of `list[X]`."""
    item = _make(args[0] if args else Any, place)

    def read(value: object, where: str) -> object:
        items = _expect_list(value, where)
        return [item.read(entry, f"{where}[{index}]") for index, entry in enumerate(items)]

    return ParameterType({"type": "array", "items": item.schema}, read)


def _tuple_type(args: tuple[Any, ...], place: _Place) -> ParameterType:
    """Return the type of `tuple[X, ...]` or of `tuple[X, Y]`."""
    if not args or args[-1] is Ellipsis:
        entries = _list_type(args[:1], place)
        return ParameterType(
            entries.schema,
            lambda value, where: tuple(typing.cast("list[Any]", entries.read(value, where))),
        )
    kinds = [_make(arg, place) for arg in args]

    def read(value: object, where: str) -> object:
        items = _expect_list(value, where)
        if len(items) != len(kinds):
            raise ArgumentError(f"{where} has {len(items)} items; expected {len(kinds)}")
        pairs = enumerate(zip(kinds, items, strict=True))
        return tuple(kind.read(entry, f"{where}[{index}]") for index, (kind, entry) in pairs)

    schema = {
        "type": "array",
        "prefixItems": [kind.schema for kind in kinds],
        "items": False,
        "minItems": len(kinds),
        "maxItems": len(kinds),
    }
    return ParameterType(schema, read)


def _dict_type(args: tuple[Any, ...], place: _Place) -> ParameterType:
    """Return the type of `dict[str, X]`."""
    if args and args[0] is not str:
        raise place.refuse(f"is a dict with keys of type {_name(args[0])}; JSON has texts only")
    item = _make(args[1] if args else Any, place)

    def read(value: object, where: str) -> object:
        entries = _expect_object(value, where)
        return {key: item.read(entry, f"{where}.{key}") for key, entry in entries.items()}

    return ParameterType({"type": "object", "additionalProperties": item.schema}, read)


_CONTAINERS: Mapping[object, Callable[[tuple[Any, ...], _Place], ParameterType]] = {
    list: _list_type,
    Sequence: _list_type,
    tuple: _tuple_type,
    dict: _dict_type,
    Mapping: _dict_type,
}


def _typed_dict(kind: type, place: _Place) -> ParameterType:
    """Return the type of a TypedDict."""
    required: frozenset[str] = vars(kind).get("__required_keys__", frozenset())
    entries = {}
    for name, hint in _resolve_hints(kind, place).items():
        while get_origin(hint) in (Required, NotRequired):
            hint = get_args(hint)[0]
        entries[name] = _Field(_make(hint, place), name in required)
    return _object_type(kind, entries, dict)


def _dataclass_type(kind: type, place: _Place) -> ParameterType:
    """Return the type of a dataclass; fields that are not given when it is made are left out."""
    hints = _resolve_hints(kind, place)
    entries = {}
    for item in fields(kind):
        if item.init:
            is_required = item.default is MISSING and item.default_factory is MISSING
            entries[item.name] = _Field(_make(hints[item.name], place), is_required)
    return _object_type(kind, entries, kind)


def _object_type(
    kind: type, entries: Mapping[str, _Field], build: Callable[..., object]
) -> ParameterType:
    """Return the type of an object with known entries.

    Args:
        kind: The class, for its docstring.
        entries: Name → entry.
        build: Makes the Python value from the entries as keywords.
    """
    meanings = read_docstring(kind.__doc__).parameters
    schema = make_object_schema(
        {name: describe(entry.kind.schema, meanings.get(name)) for name, entry in entries.items()},
        [name for name, entry in entries.items() if entry.is_required],
    )

    def read(value: object, where: str) -> object:
        types_by_name = {name: entry.kind for name, entry in entries.items()}
        values = read_object(value, types_by_name, schema["required"], where)
        return build(**values)

    return ParameterType(schema, read)


def make_object_schema(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    """Return the schema of an object with these entries and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def read_object(
    value: object, kinds: Mapping[str, ParameterType], required: Sequence[str], where: str
) -> dict[str, object]:
    """Return the Python values of an object's entries.

    Args:
        value: JSON data.
        kinds: Name → type.
        required: Names that must be there.
        where: What errors call the value; empty for the arguments themselves.

    Raises:
        ArgumentError: It is no object, an entry is missing, unknown or of the wrong type.
    """
    entries = _expect_object(value, where or "the arguments")
    prefix = f"{where}." if where else ""
    for name in required:
        if name not in entries:
            raise ArgumentError(f"{prefix}{name} is missing")
    for name in entries:
        if name not in kinds:
            raise ArgumentError(f"{prefix}{name} is unknown; expected {', '.join(kinds) or 'none'}")
    return {name: kinds[name].read(entry, f"{prefix}{name}") for name, entry in entries.items()}


def describe(schema: Mapping[str, Any], description: str | None) -> dict[str, Any]:
    """Return a schema with a description, unless it has one already or there is none."""
    if not description:
        return dict(schema)
    return {**schema, "description": schema.get("description", description)}


def _annotated(annotation: object, place: _Place) -> ParameterType:
    """Return the type of `Annotated[X, "what it means"]`; other notes are left to others."""
    inner, *notes = get_args(annotation)
    kind = _make(inner, place)
    text = next((note for note in notes if isinstance(note, str)), None)
    return ParameterType(describe(kind.schema, text), kind.read)


def _resolve_hints(kind: type, place: _Place) -> dict[str, Any]:
    """Return the annotations of a class."""
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception as exc:
        raise place.refuse(f"has the type {_name(kind)}, which cannot be read: {exc}") from exc


def _expect_list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _mismatch(value, _JSON_NAMES[list], where)
    return value


def _expect_object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _mismatch(value, _JSON_NAMES[dict], where)
    return dict(value)


def _mismatch(value: object, expected: str, where: str) -> ArgumentError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ArgumentError(f"{where} is {shown}; expected {expected}")


def _name(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
