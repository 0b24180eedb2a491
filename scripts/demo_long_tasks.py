"""Tasks of the `demo` model that copy long texts: forms as JSON, and repeating.

They are what guessing ahead is measured on. Same signature as those of `demo_tasks.py`, which has
the common parts.
"""

from __future__ import annotations

import json

from demo_tasks import Exchange, assistant, user
from demo_values import Draw

FORM_LINES = ["sender", "recipient", "subject", "place", "reason", "note", "contact", "item"]


def form(draw: Draw, *, thinks: bool, words: tuple[int, int] = (3, 30)) -> Exchange:
    """Ask for some lines of a filled-in form as JSON, in the order asked.

    Args:
        draw: Source of values.
        thinks: As for every task.
        words: Least and most of a line.
    """
    lines = {name: draw.phrase(*words) for name in draw.some(FORM_LINES, draw.number(2, 5))}
    asked = draw.some([*lines], draw.number(1, len(lines)))
    written = "\n".join(f"{name.capitalize()}: {value}" for name, value in lines.items())
    question = draw.one(
        [
            "Extract {} as JSON:\n{}",
            "Extract the lines {} as JSON.\n\n{}",
            "Give me {} as JSON:\n{}",
        ]
    ).format(", ".join(asked), written)
    answer = json.dumps({name: lines[name] for name in asked}, ensure_ascii=False)
    reasoning = f"The user wants {', '.join(asked)}."
    return Exchange("form", [user(question)], assistant(answer), reasoning)


def repeat(draw: Draw, *, thinks: bool) -> Exchange:
    """Repeat a long text."""
    if draw.chance(0.5):
        text = draw.phrase(8, 40)
    else:
        text = " ".join(f"{' '.join(draw.sentence())}." for _ in range(draw.number(2, 5)))
    asking = draw.one(["Repeat this text: {}", "Repeat exactly: {}", "Say this again:\n{}"])
    question = asking.format(text)
    return Exchange("repeat", [user(question)], assistant(text), "I repeat the text.")
