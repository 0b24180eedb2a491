"""Makes JSON schemas from a seed: nested, recursive, bounded, in every script.

Each has an answer that ends. A few hold a keyword that no grammar can express; those are marked,
so that refusing them can be told from refusing what should work. Used by `check_schemas.py` and
its small version in the tests.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_DEPTH = 4
UNSUPPORTED_SHARE = 0.01

_ENGLISH = (
    "name id type total_amount_in_euros shippingAddress created-at is_active a.b x/y $ref <think> "
    "{brace} customer_identification_number preferred_delivery_time_window"
)
_OTHERS = "größe naïve ąćę адрес ключ नाम اسم 名前 数量 emoji_😀"
WORDS = (*_ENGLISH.split(), *_OTHERS.split(), 'quote"d', "back\\slash", "tab\tbed", "with space")
TEXTS = (
    *WORDS,
    "",
    "null",
    "true",
    "0",
    "line\nbreak",
    "\u0000nul",
    "</tool_call>",
    "é",
    "🏳️‍🌈",
    "'",
    "ﷺ",
)
PATTERNS = (
    r"^[a-z]+$",
    r"^[A-Z]{3}-[0-9]{4}$",
    r"^\d{3}[ -]\d{4}$",
    r"^(red|green|blue)$",
    r"^[^@\s]+@[^@\s]+\.[a-z]{2,3}$",
    r"^(\+\d{1,3} )?\d{6,10}$",
    r"^#[0-9a-fA-F]{6}$",
    r"^v\d+\.\d+\.\d+(-[a-z]+)?$",
    r"[aeiou]{2}",
    r"^.{3,12}$",
    r"^(a|b)*c$",
    r"^([0-9]{1,3}\.){3}[0-9]{1,3}$",
    r"^[а-я]{2,8}$",
    r"^x{0,40}y$",
)
FORMATS = (
    "date-time",
    "date",
    "time",
    "email",
    "uuid",
    "ipv4",
    "ipv6",
    "duration",
    "hostname",
    "uri",
)
IGNORED_FORMATS = ("password", "binary", "int64")
UNSUPPORTED: tuple[dict[str, object], ...] = (
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    {"type": "string", "pattern": r"^(?=a)[a-z]+$"},
    {"not": {"type": "null"}},
    {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]},
    {"type": "integer", "minimum": 5, "maximum": 4},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"$ref": "https://example.com/schema.json"},
)

Schema = dict[str, object]


@dataclass
class SchemaMaker:
    """Makes one schema.

    Args:
        seed: Same seed, same schema.

    State:
        `is_supported` turns False when a part was made that cannot be expressed.
    """

    seed: int
    is_supported: bool = True
    _random: random.Random = field(init=False)
    _definitions: dict[str, Schema] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def make(self) -> Schema:
        """Return the schema; call it once."""
        pick = self._random
        if pick.random() < UNSUPPORTED_SHARE:
            self.is_supported = False
            return dict(pick.choice(UNSUPPORTED))
        if pick.random() < 0.4:
            for number in range(pick.randint(1, 3)):
                self._definitions[f"part{number}"] = self._value(2)
        if pick.random() < 0.25:
            self._definitions["node"] = self._recursive()
        root = self._object(0) if pick.random() < 0.8 else self._value(0)
        if self._definitions:
            root["$defs"] = self._definitions
        if pick.random() < 0.2:
            root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        return root

    def _value(self, depth: int) -> Schema:
        """Return a schema of any kind."""
        pick = self._random
        small: list[Callable[[], Schema]] = [
            self._string,
            self._string,
            self._string,
            self._integer,
            self._number,
            self._literals,
            lambda: {"type": "boolean"},
            lambda: {"type": "null"},
            lambda: {"type": pick.sample(["string", "integer", "null", "boolean"], 2)},
        ]
        if self._definitions:
            name = pick.choice(list(self._definitions))
            small.append(lambda: {"$ref": f"#/$defs/{name}"})
        large: list[Callable[[], Schema]] = [
            lambda: self._object(depth),
            lambda: self._object(depth),
            lambda: self._array(depth),
            lambda: self._options(depth),
            lambda: self._joined(depth),
        ]
        is_small = depth >= MAX_DEPTH or pick.random() < 0.3 + 0.15 * depth
        schema = pick.choice(small if is_small else large)()
        if pick.random() < 0.1:
            schema["description"] = pick.choice(TEXTS)
        return schema

    def _string(self) -> Schema:
        pick = self._random
        kind = pick.randrange(6)
        if kind == 0:
            return {"type": "string", "pattern": pick.choice(PATTERNS)}
        if kind == 1:
            return {"type": "string", "format": pick.choice(FORMATS + IGNORED_FORMATS)}
        schema: Schema = {"type": "string"}
        if kind in (2, 3):
            low = pick.randint(0, 12)
            schema |= {"minLength": low} if pick.random() < 0.6 else {}
            schema |= {"maxLength": low + pick.randint(0, 30)} if pick.random() < 0.7 else {}
        return schema

    def _integer(self) -> Schema:
        pick = self._random
        schema: Schema = {"type": "integer"}
        if pick.random() < 0.5:
            low = pick.choice([-1000, -7, 0, 1, 5, 95, 10**6])
            schema["minimum" if pick.random() < 0.7 else "exclusiveMinimum"] = low
            if pick.random() < 0.6:
                schema["maximum" if pick.random() < 0.7 else "exclusiveMaximum"] = low + 30
        elif pick.random() < 0.4:
            schema["multipleOf"] = pick.choice([2, 5, 7, 10, 25])
        return schema

    def _number(self) -> Schema:
        pick = self._random
        schema: Schema = {"type": "number"}
        if pick.random() < 0.5:
            low = pick.choice([-10, -0.5, 0, 0.25, 3.14, 1000])
            schema["minimum" if pick.random() < 0.7 else "exclusiveMinimum"] = low
            schema["maximum" if pick.random() < 0.7 else "exclusiveMaximum"] = low + 2.5
        elif pick.random() < 0.3:
            schema["multipleOf"] = pick.choice([0.5, 0.01, 2])
        return schema

    def _literals(self) -> Schema:
        pick = self._random
        if pick.random() < 0.3:
            values = [pick.choice(TEXTS), 7, None, True, -1.5, {"a": [1, "é"]}, []]
            return {"const": pick.choice(values)}
        texts = pick.sample(TEXTS, pick.randint(1, 8))
        return {"enum": [*texts, *pick.sample([0, 1.5, None, False], pick.randint(0, 2))]}

    def _object(self, depth: int) -> Schema:
        pick = self._random
        names = pick.sample(WORDS, pick.randint(0 if depth else 1, 5))
        properties = {name: self._value(depth + 1) for name in names}
        schema: Schema = {"type": "object", "properties": properties}
        required = [name for name in names if pick.random() < 0.6]
        if required or pick.random() < 0.5:
            schema["required"] = required
        if pick.random() < 0.75:
            schema["additionalProperties"] = (
                False if pick.random() < 0.8 else self._value(MAX_DEPTH)
            )
        return schema

    def _array(self, depth: int) -> Schema:
        pick = self._random
        schema: Schema = {"type": "array"}
        if pick.random() < 0.25:
            schema["prefixItems"] = [self._value(depth + 1) for _ in range(pick.randint(1, 3))]
            schema["items"] = False if pick.random() < 0.5 else self._value(depth + 1)
            return schema
        schema["items"] = self._value(depth + 1)
        if pick.random() < 0.5:
            low = pick.randint(0, 3)
            schema |= {"minItems": low, "maxItems": low + pick.randint(0, 4)}
        if pick.random() < 0.2:
            schema["uniqueItems"] = False
        return schema

    def _options(self, depth: int) -> Schema:
        pick = self._random
        if pick.random() < 0.4:
            return {"oneOf": pick.sample([self._string(), self._integer(), {"type": "null"}], 2)}
        if pick.random() < 0.4:
            options = []
            for tag in pick.sample(["a", "b", "c", "ß"], 3):
                option = self._object(depth + 1)
                assert isinstance(option["properties"], dict)
                option["properties"] = {"kind": {"const": tag}, **option["properties"]}
                names = option.get("required", [])
                assert isinstance(names, list)
                options.append(option | {"required": ["kind", *names]})
            return {"oneOf": options}
        return {"anyOf": [self._value(depth + 1) for _ in range(pick.randint(2, 3))]}

    def _joined(self, depth: int) -> Schema:
        pick = self._random
        names = pick.sample(WORDS, 4)
        parts = []
        for half in (names[:2], names[2:]):
            properties = {name: self._value(max(depth + 2, MAX_DEPTH)) for name in half}
            parts.append({"type": "object", "properties": properties, "required": half[:1]})
        return {"allOf": parts}

    def _recursive(self) -> Schema:
        link: Schema = {"$ref": "#/$defs/node"}
        ends: list[Schema] = [
            {"type": "array", "items": link},
            {"anyOf": [{"type": "null"}, link]},
            {"type": "array", "items": link, "maxItems": 2},
        ]
        properties = {"value": self._value(MAX_DEPTH), "next": self._random.choice(ends)}
        required = ["value", "next"] if self._random.random() < 0.6 else ["value"]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
