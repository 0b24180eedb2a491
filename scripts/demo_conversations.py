"""Synthetic conversations that teach the `demo` model its tasks, in Qwen3's chat format.

Owns the mix of tasks, thinking modes and histories, and the rendering to a prompt and the text
the model has to write. Everything follows from a seed. It does not know the tokenizer or the
network. Read `demo_tasks.py` for the tasks and `demo_values.py` for what is held out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from demo_long_tasks import form, repeat
from demo_tasks import (
    Exchange,
    Message,
    edit,
    extraction,
    fillers,
    greeting,
    recall,
    sums,
    talk,
    tool_answer,
    tool_call,
    user,
)
from demo_values import SYSTEMS, Draw, is_held_out
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NO_THINK = " /no_think"  # Qwen3's soft switch, at the end of a user message
_HISTORY_ANSWER = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """A finished conversation; the last message is the answer to learn."""

    task: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    is_thinking: bool


@dataclass(frozen=True)
class Sample:
    """A rendered conversation.

    Attributes:
        task: Name of the task.
        prompt: Text given to the model, up to its turn.
        expected: Text it writes, with the end-of-turn token.
        history: Start and end in `prompt` of earlier answers worth learning too.
    """

    task: str
    prompt: str
    expected: str
    history: tuple[tuple[int, int], ...]


TASKS: dict[str, tuple[float, Callable[..., Exchange]]] = {
    "extraction": (1.0, extraction),
    "tool_call": (0.9, tool_call),
    "tool_answer": (0.3, tool_answer),
    "sums": (2.0, sums),
    "recall": (1.0, recall),
    "edit": (1.6, edit),
    "form": (1.5, form),
    "repeat": (1.2, repeat),
    "greeting": (0.4, greeting),
    "talk": (0.8, talk),
}


def make_conversation(draw: Draw, task: str | None = None) -> Conversation:
    """Return one conversation of `task`, or of a random one.

    Args:
        draw: Source of values; its side decides whether the result is held out.
        task: A key of `TASKS`.
    """
    if task is None:
        weights = [weight for weight, _ in TASKS.values()]
        task = draw.random.choices([*TASKS], weights)[0]
    mode = draw.random.choices(["off", "on", "switched off"], [6, 4, 0.5])[0]
    exchange = TASKS[task][1](draw, thinks=mode == "on")
    history = exchange.messages
    if task != "recall" and draw.chance(0.2):
        history = fillers(draw, draw.random.choices([1, 2, 5], [6, 3, 1])[0]) + history
    system = exchange.system
    if system is None and draw.chance(0.35):
        system = draw.one(SYSTEMS)
    messages = [{"role": "system", "content": system}] if system else []
    messages += history
    if mode == "switched off" and messages[-1]["role"] == "user":
        messages[-1] = user(messages[-1]["content"] + NO_THINK)
    answer = dict(exchange.answer)
    answer["reasoning_content"] = exchange.reasoning if mode == "on" else ""
    is_thinking = mode == "on" or messages[-1]["content"].endswith(NO_THINK)
    return Conversation(exchange.task, [*messages, answer], exchange.tools, is_thinking)


def iter_conversations(
    seed: int, *, held_out: bool, task: str | None = None
) -> Iterator[Conversation]:
    """Yield conversations without end; the same seed gives the same ones.

    Args:
        seed: Start of the random generator.
        held_out: Which side. Checked values and whole questions lie on one side only.
        task: A key of `TASKS`, or None for the training mix.
    """
    draw = Draw(seed, held_out=held_out)
    while True:
        conversation = make_conversation(draw, task)
        asked = json.dumps([conversation.messages[:-1], conversation.tools])
        if is_held_out(asked) == held_out:
            yield conversation


@lru_cache(maxsize=4)
def _compiled(chat_template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(chat_template)


def render(conversation: Conversation, chat_template: str) -> Sample:
    """Render a conversation as the runtime would send it and the model has to answer it.

    Args:
        conversation: Its last message is the answer.
        chat_template: Qwen3's own, from `tokenizer_config.json`.

    Source:
        transformers 5.5, `utils/chat_template_utils.py`: same environment and `tojson`.
    """
    template = _compiled(chat_template)
    given = {"messages": conversation.messages, "tools": conversation.tools}
    whole = template.render(**given, add_generation_prompt=False).removesuffix("\n")
    given["messages"] = conversation.messages[:-1]
    prompt = template.render(
        **given, add_generation_prompt=True, enable_thinking=conversation.is_thinking
    )
    assert whole.startswith(prompt), "the template must continue its own prompt"
    history: list[tuple[int, int]] = []
    if not conversation.is_thinking:
        history = [match.span(1) for match in _HISTORY_ANSWER.finditer(prompt)]
    return Sample(conversation.task, prompt, whole[len(prompt) :], tuple(history))
