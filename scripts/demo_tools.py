"""Tools, requests and tool results for the `demo` model's conversations.

Owns the tool catalogue and the conversations that call a tool or answer from its result. It does
not know about rendering or thinking modes; see `demo_conversations.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo_values import NOUNS, PRODUCTS, Draw

CURRENCIES = {"euros": "EUR", "dollars": "USD", "yen": "JPY", "pounds": "GBP", "francs": "CHF"}
CONDITIONS = ["sun", "rain", "snow", "fog", "wind", "clouds"]


@dataclass(frozen=True)
class Use:
    """One wish that a tool fulfils.

    Attributes:
        request: What the user writes.
        calls: Arguments of each call, in order.
        results: What the tool returns for each call.
        answer: What the assistant says after the results.
    """

    request: str
    calls: list[dict[str, Any]]
    results: list[dict[str, Any]]
    answer: str


@dataclass(frozen=True)
class Tool:
    """A tool as the template shows it, and how to wish for it."""

    name: str
    description: str
    parameters: dict[str, str]
    make_use: Callable[[Draw], Use]

    def schema(self, *, is_described: bool) -> dict[str, Any]:
        """Return the function schema; `is_described` adds a text to each parameter."""
        properties: dict[str, dict[str, str]] = {}
        for name, kind in self.parameters.items():
            properties[name] = {"type": kind}
            if is_described:
                properties[name]["description"] = f"The {name}"
        parameters = {"type": "object", "properties": properties, "required": [*properties]}
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": parameters,
            },
        }


def _weather(draw: Draw) -> Use:
    cities = [draw.city() for _ in range(2 if draw.chance(0.2) else 1)]
    results = [
        {"temperature": draw.number(-9, 39), "condition": draw.one(CONDITIONS)} for _ in cities
    ]
    form = draw.one(
        [
            "What is the weather in {}?",
            "How is the weather in {} today?",
            "Is it warm in {}?",
            "What's the weather like in {}?",
            "Weather in {} please.",
        ]
    )
    said = [
        f"In {city} it is {result['temperature']} degrees with {result['condition']}."
        for city, result in zip(cities, results, strict=True)
    ]
    calls = [{"city": city} for city in cities]
    return Use(form.format(" and ".join(cities)), calls, results, " ".join(said))


def _clock(draw: Draw) -> Use:
    city, time = draw.city(), draw.time()
    form = draw.one(["What time is it in {}?", "How late is it in {}?", "Tell me the time in {}."])
    return Use(form.format(city), [{"city": city}], [{"time": time}], f"It is {time} in {city}.")


def _message(draw: Draw) -> Use:
    name, text = draw.name(), " ".join(draw.sentence()[:6])
    form = draw.one(['Send {} the message "{}".', 'Tell {} "{}".', 'Write to {}: "{}"'])
    answer = f"I sent the message to {name}."
    return Use(form.format(name, text), [{"to": name, "text": text}], [{"status": "sent"}], answer)


def _timer(draw: Draw) -> Use:
    minutes = draw.number(1, 120)
    form = draw.one(
        ["Set a timer for {} minutes.", "Remind me in {} minutes.", "Timer: {} minutes."]
    )
    answer = f"The timer runs for {minutes} minutes."
    return Use(form.format(minutes), [{"minutes": minutes}], [{"status": "ok"}], answer)


def _currency(draw: Draw) -> Use:
    amount, value = draw.number(1, 999), draw.number(1, 9999)
    source, target = draw.some([*CURRENCIES], 2)
    form = draw.one(["How much are {} {} in {}?", "Convert {} {} to {}.", "What are {} {} in {}?"])
    arguments = {"amount": amount, "from": CURRENCIES[source], "to": CURRENCIES[target]}
    answer = f"{amount} {source} are {value} {target}."
    return Use(form.format(amount, source, target), [arguments], [{"value": value}], answer)


def _search(draw: Draw) -> Use:
    query, title = draw.word(), draw.word()
    form = draw.one(["Search for {}.", "Look up {}.", "Find pages about {}."])
    return Use(form.format(query), [{"query": query}], [{"title": title}], f"I found: {title}.")


def _table(draw: Draw) -> Use:
    name, people, time = draw.name(), draw.number(2, 12), draw.time()
    request = draw.one(
        [
            f"Book a table for {people} people at {time} for {name}.",
            f"I need a table at {time} for {people} people, name {name}.",
        ]
    )
    calls = [{"name": name, "people": people, "time": time}]
    answer = f"The table for {people} people is booked at {time}."
    return Use(request, calls, [{"status": "booked"}], answer)


def _add(draw: Draw) -> Use:
    first, second = draw.pair(4)
    form = draw.one(["Add {} and {} with the tool.", "Use the tool to add {} and {}."])
    answer = f"The sum is {first + second}."
    return Use(
        form.format(first, second), [{"a": first, "b": second}], [{"sum": first + second}], answer
    )


TOOLS = (
    Tool("get_weather", "Get the weather of a city.", {"city": "string"}, _weather),
    Tool("get_time", "Get the time in a city.", {"city": "string"}, _clock),
    Tool("send_message", "Send a message.", {"to": "string", "text": "string"}, _message),
    Tool("set_timer", "Set a timer.", {"minutes": "integer"}, _timer),
    Tool(
        "convert_currency",
        "Convert money.",
        {"amount": "number", "from": "string", "to": "string"},
        _currency,
    ),
    Tool("search", "Search the web.", {"query": "string"}, _search),
    Tool(
        "book_table",
        "Book a table.",
        {"name": "string", "people": "integer", "time": "string"},
        _table,
    ),
    Tool("add", "Add two numbers.", {"a": "integer", "b": "integer"}, _add),
)


def made_up_tool(draw: Draw) -> Tool:
    """Return a tool that is in no list: its name can only be read from the tools block."""
    verb = draw.one(["get", "find", "show", "check", "open", "delete", "lookup"])
    noun = draw.word() if draw.chance(0.4) else draw.one(NOUNS + PRODUCTS + ["order", "stock"])
    key = draw.one(["id", "name", "code", "item", "key", "title", "number"])
    kind = "integer" if key == "number" else "string"

    def make_use(draw: Draw) -> Use:
        value: int | str = draw.code() if key in ("id", "code", "key") else draw.name()
        if kind == "integer":
            value = draw.number(1, 9999)
        form = draw.one(
            [f"{verb.capitalize()} the {noun} {{}}.", f"Please {verb} {noun} with {key} {{}}."]
        )
        state = draw.one(["ready", "open", "closed", "new", "lost"])
        answer = f"The {noun} is {state}."
        return Use(form.format(value), [{key: value}], [{"state": state}], answer)

    return Tool(f"{verb}_{noun}", f"{verb.capitalize()} the {noun}.", {key: kind}, make_use)


def draw_tools(draw: Draw) -> tuple[list[dict[str, Any]], Tool]:
    """Return one to three tool schemas in random order, and the tool to be used."""
    others = draw.random.sample(TOOLS, draw.random.choices([1, 2, 3], [3, 4, 2])[0])
    chosen = made_up_tool(draw) if draw.chance(0.3) else others[0]
    offered = {tool.name: tool for tool in [chosen, *others[1:]]}
    tools = [*offered.values()]
    draw.random.shuffle(tools)
    is_described = draw.chance(0.2)
    return [tool.schema(is_described=is_described) for tool in tools], chosen


def call_message(tool: Tool, use: Use) -> dict[str, Any]:
    """Return the assistant's message that calls `tool` as `use` wants."""
    calls = [
        {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
        for arguments in use.calls
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def result_messages(use: Use) -> list[dict[str, Any]]:
    """Return one `tool` message for each result of `use`."""
    return [
        {"role": "tool", "content": json.dumps(result, ensure_ascii=False)}
        for result in use.results
    ]
