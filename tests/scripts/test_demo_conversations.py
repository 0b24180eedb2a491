"""The demo model's conversations: deterministic, held out, rendered and labelled as promised.

Also checks the shipped tokenizer and weights. Nothing here needs torch.
"""

from __future__ import annotations

import importlib
import json
import struct
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
FOLDER = ROOT / "export" / "qwen_edge" / "export" / "demo"
TASKS = (
    "extraction",
    "tool_call",
    "tool_answer",
    "sums",
    "recall",
    "edit",
    "form",
    "repeat",
    "greeting",
    "talk",
)
MAX_WEIGHTS_BYTES = 8_000_000  # limit of the embedded default model


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path() -> Iterator[None]:
    """Let the scripts import each other, as they do when one is run."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def conversations() -> ModuleType:
    """The generator under test."""
    return importlib.import_module("demo_conversations")


@pytest.fixture(scope="module")
def chat_template() -> str:
    """Qwen3's chat template as shipped."""
    config = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    return str(config["chat_template"])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The shipped tokenizer."""
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def draw(conversations: ModuleType, count: int, seed: int, **options: Any) -> list[Any]:
    """Return `count` conversations."""
    return list(islice(conversations.iter_conversations(seed, **options), count))


def question(conversation: Any) -> str:
    """Return all that precedes the answer, as one comparable text."""
    return json.dumps([conversation.messages[:-1], conversation.tools])


def test_same_seed_gives_same_conversations(conversations: ModuleType) -> None:
    first = draw(conversations, 50, 5, held_out=False)
    assert first == draw(conversations, 50, 5, held_out=False)
    assert first != draw(conversations, 50, 6, held_out=False)


def test_first_conversation_is_the_same_on_every_machine(conversations: ModuleType) -> None:
    """The random generator, the checksum and the lists are part of the training recipe."""
    (first,) = draw(conversations, 1, 0, held_out=True, task="sums")
    said = [(message["role"], message["content"]) for message in first.messages]
    assert said == [("user", "Calculate 51 + 90."), ("assistant", "51 + 90 = 141")]


@pytest.mark.parametrize("task", TASKS)
def test_training_never_sees_a_held_out_question(conversations: ModuleType, task: str) -> None:
    trained = {question(c) for c in draw(conversations, 300, 1, held_out=False, task=task)}
    held_out = {question(c) for c in draw(conversations, 60, 1, held_out=True, task=task)}
    assert trained & held_out == set()


def test_held_out_sums_use_numbers_never_trained_together(conversations: ModuleType) -> None:
    values = importlib.import_module("demo_values")
    held_out = values.Draw(1, held_out=True)
    trained = values.Draw(1, held_out=False)
    pairs = {held_out.pair(2) for _ in range(200)}
    assert pairs & {trained.pair(2) for _ in range(2000)} == set()
    assert all(values.is_held_out(f"{first}+{second}") for first, second in pairs)


@pytest.mark.parametrize(
    ("first", "sign", "second", "steps"),
    [
        (27, "+", 48, "7 + 8 = 15, write 5, carry 1\n2 + 4 + 1 = 7"),
        (52, "-", 7, "12 - 7 = 5, borrow 1\n5 - 0 - 1 = 4"),
        (999, "+", 1, "9 + 1 = 10, write 0, carry 1\n9 + 0 + 1 = 10, write 0, carry 1\n"
         "9 + 0 + 1 = 10, write 0, carry 1"),
    ],
    ids=["carry", "borrow", "carry-through"],
)  # fmt: skip
def test_sum_steps(first: int, sign: str, second: int, steps: str) -> None:
    tasks = importlib.import_module("demo_tasks")
    assert tasks.sum_steps(first, sign, second) == steps


def test_render_equals_transformers(conversations: ModuleType, chat_template: str) -> None:
    utils = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="compares with transformers' renderer"
    )
    for conversation in draw(conversations, 200, 3, held_out=False):
        sample = conversations.render(conversation, chat_template)
        options = {"tools": conversation.tools, "chat_template": chat_template}
        rendered, _ = utils.render_jinja_template(
            [conversation.messages[:-1]],
            add_generation_prompt=True,
            enable_thinking=conversation.is_thinking,
            **options,
        )
        assert sample.prompt == rendered[0]
        rendered, _ = utils.render_jinja_template([conversation.messages], **options)
        assert sample.prompt + sample.expected + "\n" == rendered[0]


def test_thinking_mode_decides_who_writes_the_block(
    conversations: ModuleType, chat_template: str
) -> None:
    for conversation in draw(conversations, 100, 4, held_out=False):
        sample = conversations.render(conversation, chat_template)
        is_in_prompt = sample.prompt.endswith("<think>\n\n</think>\n\n")
        assert is_in_prompt is not conversation.is_thinking
        assert sample.expected.startswith("<think>\n") is conversation.is_thinking
        assert sample.expected.endswith("<|im_end|>")


def test_labels_cover_answers_only(
    conversations: ModuleType, chat_template: str, tokenizer: Tokenizer
) -> None:
    encoding = importlib.import_module("demo_tokenizer")
    for conversation in draw(conversations, 200, 7, held_out=False):
        sample = conversations.render(conversation, chat_template)
        encoded = encoding.encode(tokenizer, sample)
        text = sample.prompt + sample.expected
        assert encoded.token_ids == tokenizer.encode(text).ids
        learned = [label for label in encoded.labels if label != encoding.IGNORED_LABEL]
        expected = tokenizer.encode(sample.expected).ids
        assert learned[-len(expected) :] == expected
        earlier = [
            tokenizer.encode(sample.prompt[begin:end]).ids[1:] for begin, end in sample.history
        ]
        assert learned[: -len(expected)] == [one for answer in earlier for one in answer]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world 123!",
        "Grüß dich, Öl und Ähre",
        "你好！我能帮你什么？😊👩‍💻",
        "<|im_start|>user\n<tool_call>\n{\"a\": 1}\n</tool_call><|im_end|>\n",
        "  spaces \n\n\ttabs\r\n",
    ],
    ids=["ascii", "umlauts", "chinese-emoji", "special", "space"],
)  # fmt: skip
def test_shipped_tokenizer_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_shipped_tokenizer_has_qwen3_form(tokenizer: Tokenizer) -> None:
    config = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {int(key): value["content"] for key, value in config["added_tokens_decoder"].items()}
    assert tokenizer.get_vocab_size() == 1024
    assert [tokenizer.token_to_id(content) for content in added.values()] == [*added]
    assert [*added] == list(range(998, 1024))
    assert len(tokenizer.encode("2025").ids) == 4, "digits stand alone"


def test_shipped_weights_are_small_and_match_the_configuration() -> None:
    weights, config = FOLDER / "model.safetensors", FOLDER / "config.json"
    assert weights.stat().st_size <= MAX_WEIGHTS_BYTES
    with weights.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__")
    shape = json.loads(config.read_text(encoding="utf-8"))
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    embedding = header["model.embed_tokens.weight"]["shape"]
    assert embedding == [shape["vocab_size"], shape["hidden_size"]]
    assert len(header) == 2 + 11 * shape["num_hidden_layers"]
    assert "/" not in config.read_text(encoding="utf-8"), "no paths of any machine"
