"""Writes what Transformers says about templates, token ids and sampling.

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


def transform(
    settings: dict[str, Any], logits: list[float], prompt_ids: list[int]
) -> tuple[list[int], list[float]]:
    """Return the kept ids and their probabilities after Transformers' own list of processors.

    Args:
        settings: Fields of `SamplingParams` that Transformers knows; the rest is off.
        logits: One per token.
        prompt_ids: What came before.
    """
    import torch
    from transformers.generation.configuration_utils import GenerationConfig
    from transformers.generation.utils import GenerationMixin

    bias = settings.get("logit_bias", [])
    config = GenerationConfig(
        do_sample=True,
        temperature=settings.get("temperature", 1.0),
        top_k=settings.get("top_k", 0),
        top_p=settings.get("top_p", 1.0),
        min_p=settings.get("min_p") or None,
        typical_p=settings.get("typical_p", 1.0),
        repetition_penalty=float(settings.get("repetition_penalty", 1.0)),
        sequence_bias={(token_id,): float(value) for token_id, value in bias} or None,
        suppress_tokens=settings.get("banned_token_ids") or None,
    )
    # The method that `generate` calls; it decides what is used and in which order.
    processors = GenerationMixin()._get_logits_processor(config, len(prompt_ids), device="cpu")
    scores = processors(torch.tensor([prompt_ids]), torch.tensor([logits], dtype=torch.float32))[0]
    kept = torch.nonzero(torch.isfinite(scores)).flatten().tolist()
    return kept, torch.softmax(scores.double(), dim=0)[kept].tolist()


def sampling_settings() -> list[dict[str, Any]]:
    """Return the settings of the goldens."""
    filters = [
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        for temperature in (0.6, 1.0, 2.5)
        for top_k in (0, 1, 20)
        for top_p in (0.05, 0.8, 0.95, 1.0)
        for min_p in (0.0, 0.1, 1.0)
    ]
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    qwen = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0}
    single = [
        *({"typical_p": typical_p} for typical_p in (0.05, 0.2, 0.5, 0.9, 0.99)),
        *({"repetition_penalty": penalty} for penalty in (0.5, 1.1, 2.0)),
        {"logit_bias": [[3, 5.0], [17, -100.0], [40, 0.25]]},
        {"banned_token_ids": [0, 5, 47]},
    ]
    everything = {
        "typical_p": 0.9,
        "repetition_penalty": 1.3,
        "logit_bias": [[3, 5.0], [8, 2.5], [17, -3.0]],
        "banned_token_ids": [11, 30],
    }
    combined = [
        {**qwen, "typical_p": 0.8},
        {**qwen, "min_p": 0.05, **everything},
        {"temperature": 1.5, "top_k": 0, "top_p": 0.9, "min_p": 0.02, **everything},
        {"temperature": 2.0, "top_k": 30, "top_p": 0.99, "min_p": 0.0, **everything},
    ]
    return [*filters, *({**off, **fields} for fields in single), *combined]


def make_sampling_goldens() -> list[dict[str, Any]]:
    """Return kept ids and probabilities after Transformers' processors and warpers."""
    import torch

    generator = torch.Generator().manual_seed(7)
    goldens = []
    for settings in sampling_settings():
        logits = (3 * torch.randn(48, generator=generator)).to(torch.float32)
        logits[5] = logits[11]  # ties are treated alike, unless a limit falls between them
        prompt_ids = [3, 8, 8, 20, 21, 33, 3]
        kept, probabilities = transform(settings, logits.tolist(), prompt_ids)
        goldens.append(
            {
                **settings,
                "prompt_ids": prompt_ids,
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
