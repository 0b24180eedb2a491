"""What requests of all three interfaces share: strict fields, and how a fault in them is told.

Nothing is converted and nothing is passed over: a field of another type, or one that is unknown
here, is refused by its name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen_edge.errors import UsageError, did_you_mean
from qwen_edge.runtime.answer_options import AnswerOptions
from qwen_edge.runtime.structured.output_format import OutputFormat

MAX_CHOICES = 8
"""Most answers to one request."""

MAX_TOP_LOGPROBS = 20
_MAX_STOP_TEXTS = 16
_MAX_SEED = 2**64
_MAX_SHOWN_PROBLEMS = 3

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
EFFORT_BUDGETS: Mapping[str, int | None] = {
    "minimal": 256,
    "low": 1_024,
    "medium": 4_096,
    "high": None,
    "xhigh": None,
}
"""Most tokens of reasoning for each effort; None is no limit. "none" does not think."""


class RequestFields(BaseModel):
    """A JSON object whose fields are all known, and of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SamplingFields(RequestFields):
    """How tokens are chosen; what is left out is the package's, for the mode the model is in."""

    temperature: float | None = Field(None, description="0 is greedy; from 0 to 100")
    top_p: float | None = Field(None, description="above 0, up to 1")
    top_k: int | None = Field(None, description="0 keeps all tokens; not OpenAI's")
    min_p: float | None = Field(None, description="from 0 to 1; not OpenAI's")
    typical_p: float | None = Field(None, description="above 0, up to 1; not OpenAI's")
    repetition_penalty: float | None = Field(None, description="0.1 to 10; not OpenAI's")
    presence_penalty: float | None = Field(None, description="-2 to 2")
    frequency_penalty: float | None = Field(None, description="-2 to 2")
    logit_bias: dict[str, float] | None = Field(None, description="token id to -100 … 100")
    seed: int | None = Field(None, description="the same seed gives the same answer")

    def sampling(self, num_logprobs: int | None = None) -> dict[str, Any]:
        """Return the settings that were given, as `AnswerOptions.sampling` takes them.

        Args:
            num_logprobs: How many of the likeliest tokens are asked for, or None.

        Raises:
            UsageError: A key of `logit_bias` is no token id.
        """
        names = SamplingFields.model_fields
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if "logit_bias" in given:
            given["logit_bias"] = _read_logit_bias(given["logit_bias"])
        if "seed" in given:
            given["seed"] %= _MAX_SEED  # clients send any 64-bit number, also negative ones
        if num_logprobs is not None:
            given["num_logprobs"] = num_logprobs
        return given


class UnusedFields(RequestFields):
    """Fields that OpenAI's clients send and that change no answer, here or there."""

    user: str | None = Field(None, description="without effect")
    metadata: dict[str, str] | None = Field(None, description="without effect")
    safety_identifier: str | None = Field(None, description="without effect")
    prompt_cache_key: str | None = Field(None, description="without effect: always cached")
    service_tier: Literal["auto", "default"] | None = Field(None, description="without effect")


class StreamOptions(RequestFields):
    """How a stream is written."""

    include_usage: bool = Field(False, description="whether the last chunk counts the tokens")
    include_obfuscation: Literal[False] | None = Field(None, description="never done")


class JsonSchemaFormat(RequestFields):
    """A named schema."""

    name: str = Field(description="without effect")
    schema_: dict[str, Any] = Field(alias="schema", description="JSON schema, draft 2020-12")
    description: str | None = Field(None, description="without effect")
    strict: bool | None = Field(None, description="without effect: schemas are always kept to")


Parsed = TypeVar("Parsed", bound=RequestFields)


def read_request(kind: type[Parsed], body: object) -> Parsed:
    """Return a request, checked.

    Args:
        kind: What it is to be.
        body: JSON data.

    Raises:
        UsageError: It names every field that is wrong, up to three of them; `param` is the first.
    """
    if not isinstance(body, dict):
        raise UsageError(
            f"The body is a JSON {_json_type(body)}; expected an object.",
            'send an object like {"model": …, "messages": [...]}',
        )
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        told = [_describe(problem, kind) for problem in problems[:_MAX_SHOWN_PROBLEMS]]
        more = len(problems) - len(told)
        told += [f"{more} more fields are wrong."] if more > 0 else []
        raise UsageError(
            " ".join(told),
            "see /docs for the fields and their types",
            param=_join(problems[0]["loc"]),
        ) from error


def read_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the texts that end an answer.

    Raises:
        UsageError: There are too many.
    """
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(texts) > _MAX_STOP_TEXTS:
        raise UsageError(
            f"stop has {len(texts):,} texts; the limit is {_MAX_STOP_TEXTS}.",
            "leave some out",
            param="stop",
        )
    return texts


def read_thinking(
    effort: Effort | None, think: bool | Effort | None, enable: bool | None, budget: int | None
) -> AnswerOptions:
    """Return how the model is to think, from the names that clients have for it.

    Args:
        effort: `reasoning_effort`.
        think: Ollama's name; a switch or an effort.
        enable: `chat_template_kwargs.enable_thinking`.
        budget: `thinking_budget`.

    Raises:
        UsageError: Two of them contradict each other.
    """
    wishes: dict[str, bool] = {}
    efforts: dict[str, Effort] = {}
    if enable is not None:
        wishes["chat_template_kwargs.enable_thinking"] = enable
    if isinstance(think, bool):
        wishes["think"] = think
    elif think is not None:
        efforts["think"] = think
    if effort is not None:
        efforts["reasoning_effort"] = effort
    wishes |= {name: value != "none" for name, value in efforts.items()}
    if len(set(wishes.values())) > 1 or len(set(efforts.values())) > 1:
        shown = ", ".join(sorted(wishes))
        raise UsageError(
            f"{shown} contradict each other.", "give one of them", param=next(iter(wishes))
        )
    options: AnswerOptions = {}
    if wishes:
        options["thinking"] = next(iter(wishes.values()))
    limits = [EFFORT_BUDGETS.get(value) for value in efforts.values()]
    if budget is None:
        budget = next(iter(limits), None)
    if budget is not None:
        options["thinking_budget"] = budget
    return options


def read_schema_format(kind: str, schema: Mapping[str, Any] | None) -> OutputFormat | None:
    """Return the form of an answer.

    Args:
        kind: "text", "json_object" or "json_schema".
        schema: Of the latter; with "json_object", as llama.cpp has it, too.

    Raises:
        GrammarError: The schema is none.
    """
    if kind == "text":
        return None
    if schema is None:
        return OutputFormat.json_object()
    return OutputFormat.json_schema(schema)


def _read_logit_bias(given: Mapping[str, float]) -> dict[int, float]:
    bias = {}
    for key, value in given.items():
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise UsageError(
                f"logit_bias has the key {key!r:.60}; expected a token id, such as '42'.",
                "give ids of this model's tokens",
                param="logit_bias",
            )
        bias[int(key)] = value
    return bias


_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "missing": "a value",
    "model_type": "an object",
    "string_type": "a text",
}


def _describe(problem: Mapping[str, Any], kind: type[RequestFields]) -> str:
    """Return what is wrong with one field."""
    where = _join(problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in kind.model_fields.items()]
        name = str(problem["loc"][-1])
        hint = did_you_mean(name, known) if len(problem["loc"]) == 1 else ""
        return f"The field {where!r} is not supported.{hint}"
    if problem["type"] == "missing":
        return f"The field {where!r} is missing."
    given = problem["input"]
    shown = f"{given!r:.60}" if isinstance(given, str | int | float | bool) else _json_type(given)
    limits = problem.get("ctx", {})
    if problem["type"] in ("too_short", "too_long"):
        edge = "at least" if problem["type"] == "too_short" else "at most"
        limit = limits.get("min_length", limits.get("max_length"))
        return f"{where} has {limits['actual_length']:,} items; expected {edge} {limit:,}."
    expected = _EXPECTED.get(problem["type"]) or _lower(problem["msg"])
    return f"{where} is {shown}; expected {expected}."


def _lower(message: str) -> str:
    """Return pydantic's own words as the end of a sentence."""
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _join(location: Sequence[str | int]) -> str:
    """Return the path of a field, without the names that a choice of types adds to it."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and not part[0].isupper() and part not in _TYPE_NAMES:
            text += f".{part}" if text else part
    return text or "the body"


_TYPE_NAMES = ("str", "bool", "int", "float", "list", "dict")


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
