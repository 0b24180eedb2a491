"""Answer the demo model's JSON and tool tasks freely and kept to their form. Last line: JSON.

    python scripts/check_demo_tasks.py PACKAGE [--samples 300]

Each held-out task is answered greedily twice: as the model likes, and with the schema of the
expected answer, or with the tools' own grammar. Kept to it, every answer must be well-formed, and
no fewer may be right.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from demo_tasks import Exchange, extraction, tool_call
from demo_values import Draw

from qwen_edge.runtime import Answer, OutputFormat, load
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.model import Model

CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def make_schema(expected: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that knows the fields and their types, and nothing of the values."""
    kinds = {
        key: "integer" if isinstance(value, int) else "string" for key, value in expected.items()
    }
    return {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in kinds.items()},
        "required": [*kinds],
        "additionalProperties": False,
    }


def ask(model: Model, exchange: Exchange, **options: Any) -> Answer:
    """Return the answer to a task from an empty conversation, without thinking."""
    sampling = SamplingParams(temperature=0.0)
    with model.session(system=exchange.system, sampling=sampling, thinking=False) as chat:
        return chat.ask(exchange.messages, max_new_tokens=200, **options)


def judge_json(answer: Answer, expected: dict[str, Any]) -> tuple[bool, bool]:
    """Return whether an answer is a JSON object with the expected fields, and whether right."""
    try:
        found = json.loads(answer.text)
    except json.JSONDecodeError:
        return False, False
    return isinstance(found, dict) and [*found] == [*expected], found == expected


def split(answer: Answer) -> tuple[str, list[dict[str, Any]]]:
    """Return an answer's text and its calls."""
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in answer.tool_calls]
    return answer.text, calls


def ask_freely(model: Model, exchange: Exchange) -> tuple[str, list[dict[str, Any]]]:
    """Return the text and the calls of an answer that nothing kept to a form."""
    messages: list[Any] = list(exchange.messages)
    if exchange.system:
        messages = [{"role": "system", "content": exchange.system}, *messages]
    prompt_ids = model.chat_template.encode(messages, tools=exchange.tools, thinking=False)
    greedy = SamplingParams(temperature=0.0)
    ids = model.generate(prompt_ids, sampling=greedy, max_new_tokens=200, speculate=False)
    text = model.tokenizer.decode(ids)
    calls = []
    for call in CALL.findall(text):
        try:
            calls.append(json.loads(call))
        except json.JSONDecodeError:
            return text, []
    return CALL.sub("", text).strip("\n"), calls


def judge_calls(
    text: str, calls: list[dict[str, Any]], expected: dict[str, Any]
) -> tuple[bool, bool]:
    """Return whether an answer is calls or text without a broken one, and whether it is right."""
    wanted = [call["function"] for call in expected.get("tool_calls", [])]
    is_formed = "tool_call>" not in text
    return is_formed, calls == wanted and text == expected["content"]


def main() -> None:
    """Run the tasks and print counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--samples", type=int, default=300)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    with load(arguments.package) as model:
        for number in range(arguments.samples):
            exchange = extraction(Draw(number, held_out=True), thinks=False)
            expected = json.loads(exchange.answer["content"])
            output = OutputFormat.json_schema(make_schema(expected))
            for way, options in (("free", {}), ("kept", {"output": output})):
                answer = ask(model, exchange, **options)
                for what, value in zip(
                    ("formed", "right"), judge_json(answer, expected), strict=True
                ):
                    counts[f"json_{way}_{what}"] += value
            exchange = tool_call(Draw(number, held_out=True), thinks=False)
            for way, (text, calls) in (
                ("free", ask_freely(model, exchange)),
                ("kept", split(ask(model, exchange, tools=exchange.tools))),
            ):
                judged = judge_calls(text, calls, exchange.answer)
                for what, value in zip(("formed", "right"), judged, strict=True):
                    counts[f"tools_{way}_{what}"] += value
    print(json.dumps({"samples": arguments.samples, **counts}))


if __name__ == "__main__":
    main()
