"""Qwen3's soft switches: `/think` and `/no_think` in a message turn thinking on and off.

The model reads them itself; this module only finds out what it will do, so that the sampling
settings can follow. It knows nothing of templates; the hard switch is `chat.py`'s.

Source: model card of Qwen/Qwen3-4B, "Advanced Usage: Switching Between Thinking and Non-Thinking
Modes via User Input": in user and system messages, the most recent one counts; without effect
where the template switches thinking off. The 2507 models have no switch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from qwen_edge.runtime.chat import Message, Thinking

_ROLES = ("user", "system", "developer")
# A word of its own: not part of a path, but a sentence may end after it.
_SWITCH = re.compile(r"(?<!\S)/(no_)?think(?=[.,;:!?]*(?:\s|\Z))")


def find_soft_switch(messages: Sequence[Message]) -> bool | None:
    """Return what the newest switch in a conversation asks for.

    Args:
        messages: Oldest first. Content in parts is read part by part.

    Returns:
        True for `/think`, False for `/no_think`, None where there is neither.
    """
    for message in reversed(messages):
        if message.get("role") not in _ROLES:
            continue
        for text in reversed(list(_iter_texts(message.get("content")))):
            found = list(_SWITCH.finditer(text))
            if found:
                return found[-1].group(1) is None
    return None


def will_think(messages: Sequence[Message], *, thinking: bool | None, mode: Thinking) -> bool:
    """Return whether the model is about to think.

    Args:
        messages: The conversation so far.
        thinking: The hard switch: what the template is told; None leaves it to the template,
            which then lets the model think.
        mode: What the model can do.
    """
    if mode != "switchable":
        return mode == "always"
    if thinking is False:
        return False
    return find_soft_switch(messages) is not False


def _iter_texts(content: object) -> Iterator[str]:
    """Yield the texts of a message's content."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Sequence):
        for part in content:
            text = part.get("text") if isinstance(part, Mapping) else None
            if isinstance(text, str):
                yield text
