"""Writes what Transformers says about templates, token ids and sampling filters.

Run it with torch and Transformers installed; the tests read the files without either:

    python tests/data/make_text_goldens.py           # writes the two golden files
    python tests/data/make_text_goldens.py --check   # says whether they still hold

Source: transformers 5.5.4, torch 2.13.
"""

import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent
CHAT_GOLDENS = DATA / "chat_goldens.json"
SAMPLING_GOLDENS = DATA / "sampling_goldens.json"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather in a city, e.g. “Köln” or 北京.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces\tand\ttabs \n\n\n line breaks \r\n end ",
    "Grüße aus Köln: äöü ÄÖÜ ß",
    "你好，世界！こんにちは 안녕하세요",
    "مرحبا بالعالم שלום עולם",
    "👋🏽 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 n\u0303 \u1112\u1161\u11ab",
    "def f(x):\n    return {'a': [1, 2.50, -3e10]}  # комментарий",
    "nul \x00 bom \ufeff zero\u200bwidth \ufffd \U0010ffff",
    "It's we've I'LL 1234567890 ½ ² Ⅷ",
    "a" * 300 + " " * 200 + "\n" * 100,
]


def user(text: str) -> dict[str, Any]:
    """Return a user message."""
    return {"role": "user", "content": text}


def assistant(text: str, **fields: Any) -> dict[str, Any]:
    """Return an assistant message."""
    return {"role": "assistant", "content": text, **fields}


def call(name: str, arguments: object) -> dict[str, Any]:
    """Return a tool call as Transformers takes it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def conversations() -> dict[str, dict[str, Any]]:
    """Return the corpus by name: messages, and tools where there are any."""
    system = {"role": "system", "content": "You are brief.\n\nAnd “exact”."}
    thought = "<think>\nLet me see.\n\n2 + 2\n</think>\n\nFour."
    calls = [call("get_weather", {"city": "Köln", "days": 2})]
    both = [*calls, {"name": "get_weather", "arguments": '{"city": "北京"}'}]
    result = {"role": "tool", "content": '{"sky": "clear", "t": 21.5}'}
    asked = [system, user("Weather in Köln?"), assistant("", tool_calls=calls)]
    return {
        **{f"text-{i}": {"messages": [user(text)]} for i, text in enumerate(TEXTS)},
        "system": {"messages": [system, user("Hi")]},
        "turns": {"messages": [user("Hi"), assistant("Hello!"), user("And now?")]},
        "late-system": {"messages": [user("Hi"), system, user("And now?")]},
        "think-inline": {"messages": [user("2+2?"), assistant(thought), user("Sure?")]},
        "think-field": {
            "messages": [
                user("2+2?"),
                assistant("\n\nFour.", reasoning_content="\nLet me see.\n"),
                user("Sure?"),
            ]
        },
        "think-last": {"messages": [user("2+2?"), assistant(thought)]},
        "think-field-last": {
            "messages": [user("2+2?"), assistant("Four.", reasoning_content="Let me see.")]
        },
        "think-unclosed": {"messages": [user("2+2?"), assistant("<think>\nhm"), user("Well?")]},
        "think-none": {"messages": [user("a"), assistant("b", reasoning_content=None), user("c")]},
        "tools": {"messages": [user("Weather in Köln?")], "tools": [WEATHER]},
        "tools-system": {"messages": [system, user("Weather?")], "tools": [WEATHER, WEATHER]},
        "tools-empty": {"messages": [system, user("Hi")], "tools": []},
        "tool-call": {"messages": [*asked, result], "tools": [WEATHER]},
        "tool-calls-text": {
            "messages": [
                user("Weather?"),
                assistant("I look it up.", tool_calls=both, reasoning_content="Two cities."),
                result,
                result,
                assistant("Clear in both."),
                user("Thanks <b>&amp; bye</b>"),
            ],
            "tools": [WEATHER],
        },
        "tool-think": {
            "messages": [*asked, result, assistant("Clear.", reasoning_content="It says so.")],
            "tools": [WEATHER],
        },
        "tool-response-as-user": {
            "messages": [user("Q"), assistant("A"), user("<tool_response>\nx\n</tool_response>")]
        },
    }


def make_chat_goldens() -> list[dict[str, Any]]:
    """Return rendered texts and ids for every conversation and thinking mode."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        source = DATA / "qwen3_tokenizer"
        packed = (source / "tokenizer.json.xz").read_bytes()
        (Path(folder) / "tokenizer.json").write_bytes(lzma.decompress(packed))
        config = (source / "tokenizer_config.json").read_bytes()
        (Path(folder) / "tokenizer_config.json").write_bytes(config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    goldens = []
    for name, conversation in conversations().items():
        for thinking in (None, True, False):
            options = {} if thinking is None else {"enable_thinking": thinking}
            text = tokenizer.apply_chat_template(
                conversation["messages"],
                tools=conversation.get("tools"),
                add_generation_prompt=True,
                tokenize=False,
                **options,
            )
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            goldens.append(
                {"name": name, **conversation, "thinking": thinking, "text": text, "ids": ids}
            )
    return goldens


def make_sampling_goldens() -> list[dict[str, Any]]:
    """Return kept ids and probabilities after Transformers' warpers."""
    import torch
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    settings = [
        (temperature, top_k, top_p, min_p)
        for temperature in (0.6, 1.0, 2.5)
        for top_k in (0, 1, 20)
        for top_p in (0.05, 0.8, 0.95, 1.0)
        for min_p in (0.0, 0.1, 1.0)
    ]
    generator = torch.Generator().manual_seed(7)
    goldens = []
    for temperature, top_k, top_p, min_p in settings:
        logits = (3 * torch.randn(48, generator=generator)).to(torch.float32)
        logits[5] = logits[11]  # ties are treated alike, unless a limit falls between them
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        if top_k:
            warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            warpers.append(TopPLogitsWarper(top_p))
        if min_p > 0.0:
            warpers.append(MinPLogitsWarper(min_p))
        scores = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0]
        kept = torch.nonzero(torch.isfinite(scores)).flatten().tolist()
        probabilities = torch.softmax(scores.double(), dim=0)[kept].tolist()
        goldens.append(
            {
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "logits": [round(value, 9) for value in logits.tolist()],
                "kept_ids": kept,
                "probabilities": [round(value, 9) for value in probabilities],
            }
        )
    return goldens


def render(goldens: list[dict[str, Any]]) -> str:
    """Return goldens as JSON with one of them per line."""
    # Keys keep their order: templates print tools as they come.
    lines = (json.dumps(golden, ensure_ascii=True) for golden in goldens)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main() -> int:
    """Write or check both files; return the exit code."""
    made = {
        CHAT_GOLDENS: render(make_chat_goldens()),
        SAMPLING_GOLDENS: render(make_sampling_goldens()),
    }
    stale = [
        path.name
        for path, text in made.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv:
        print(f"differ: {', '.join(stale)}" if stale else "both golden files hold")
        return 1 if stale else 0
    for path, text in made.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    print(f"written: {', '.join(stale) or 'nothing new'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
