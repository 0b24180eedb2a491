"""Tasks the `demo` model learns, each as a function from a seeded draw to one exchange.

Owns the wording of questions, answers and reasoning. It does not know thinking modes, histories
or rendering; `demo_conversations.py` puts the exchanges together. Every task has the same
signature: `thinks` tells whether the reasoning will be written out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from demo_tools import call_message, draw_tools, result_messages
from demo_values import (
    COLOURS,
    EVENTS,
    GREETINGS,
    JOBS,
    NOUNS,
    PRODUCTS,
    TRIVIA,
    UNKNOWN,
    WHO,
    Draw,
)

Message = dict[str, Any]


@dataclass
class Exchange:
    """One question and its answer, before modes and history are chosen.

    Attributes:
        task: Name of the task, as the result table shows it.
        messages: Turns up to and with the user's or tool's last one.
        answer: The assistant's last message, without reasoning.
        reasoning: What the model thinks first when thinking is wanted.
        tools: Function schemas, or None.
    """

    task: str
    messages: list[Message]
    answer: Message
    reasoning: str
    tools: list[dict[str, Any]] | None = None
    system: str | None = field(default=None)


def user(text: str) -> Message:
    """Return a user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Return an assistant message."""
    return {"role": "assistant", "content": text}


# --- extraction ---------------------------------------------------------------------------------


def _person(draw: Draw) -> tuple[dict[str, Any], str]:
    facts: dict[str, Any] = {"name": draw.full_name()}
    phrases = {
        "age": (draw.number(18, 99), "is {} years old"),
        "city": (draw.city(), "lives in {}"),
        "job": (draw.one(JOBS), "works as a {}"),
        "email": (f"{draw.name().lower()}@{draw.syllables(2)}.org", "reads mail at {}"),
    }
    told = draw.some([*phrases], draw.number(2, 3))
    facts |= {key: phrases[key][0] for key in told}
    parts = [phrases[key][1].format(phrases[key][0]) for key in told]
    return facts, f"{facts['name']} {', '.join(parts[:-1])} and {parts[-1]}."


def _order(draw: Draw) -> tuple[dict[str, Any], str]:
    facts = {
        "order": draw.code(),
        "count": draw.number(2, 99),
        "product": draw.one(PRODUCTS),
        "price": draw.number(5, 999),
        "city": draw.city(),
    }
    text = draw.one(
        [
            "Order {order}: {count} {product} for {price} euros, to {city}.",
            "Please send {count} {product} to {city}. The order {order} costs {price} euros.",
        ]
    )
    return facts, text.format(**facts)


def _event(draw: Draw) -> tuple[dict[str, Any], str]:
    facts = {
        "event": draw.one(EVENTS),
        "name": draw.full_name(),
        "date": draw.date(),
        "time": draw.time(),
        "city": draw.city(),
    }
    text = draw.one(
        [
            "The {event} with {name} is on {date} at {time} in {city}.",
            "{name} invites you to a {event} in {city} on {date} at {time}.",
        ]
    )
    return facts, text.format(**facts)


def extraction(draw: Draw, *, thinks: bool) -> Exchange:
    """Ask for some of a text's facts as JSON, in the order asked."""
    facts, text = draw.random.choice([_person, _person, _order, _event])(draw)
    keys = draw.some([*facts], draw.number(1, min(4, len(facts))))
    answer = json.dumps({key: facts[key] for key in keys}, ensure_ascii=False)
    quoted = [f'"{key}"' for key in keys] if draw.chance(0.3) else keys
    listed = ", ".join(quoted)
    if len(keys) > 1 and draw.chance(0.5):
        listed = f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    reasoning = f"The user wants {', '.join(keys)}."
    if draw.chance(0.15):
        system = f"Extract {listed} from the text as JSON."
        return Exchange("extraction", [user(text)], assistant(answer), reasoning, system=system)
    form = draw.one(
        [
            "Extract {} as JSON: {}",
            "Extract the fields {} as JSON.\n\n{}",
            "Give me {} as JSON: {}",
            "Return a JSON object with {}.\n{}",
        ]
    )
    question = form.format(listed, text)
    if draw.chance(0.2):
        question = f"{text}\n\nExtract {listed} as JSON."
    return Exchange("extraction", [user(question)], assistant(answer), reasoning)


# --- tools --------------------------------------------------------------------------------------


def tool_call(draw: Draw, *, thinks: bool) -> Exchange:
    """Call the tool that fits; in one case of seven none does and the answer is plain."""
    tools, chosen = draw_tools(draw)
    if draw.chance(0.15):
        plain = draw.random.choice([greeting, talk, short_sum])(draw, thinks=thinks)
        return Exchange("tool_call", plain.messages, plain.answer, plain.reasoning, tools)
    use = chosen.make_use(draw)
    reasoning = f"The tool {chosen.name} fits."
    return Exchange("tool_call", [user(use.request)], call_message(chosen, use), reasoning, tools)


def tool_answer(draw: Draw, *, thinks: bool) -> Exchange:
    """Answer from what a tool returned."""
    tools, chosen = draw_tools(draw)
    use = chosen.make_use(draw)
    call = call_message(chosen, use)
    if thinks and draw.chance(0.5):
        call["reasoning_content"] = f"The tool {chosen.name} fits."
    messages = [user(use.request), call, *result_messages(use)]
    return Exchange("tool_answer", messages, assistant(use.answer), "The tool answered.", tools)


# --- sums ---------------------------------------------------------------------------------------


def _sum_question(draw: Draw, first: int, sign: str, second: int) -> str:
    form = draw.one(
        ["What is {} {} {}?", "{} {} {} =", "How much is {} {} {}?", "Calculate {} {} {}."]
    )
    if draw.chance(0.1):
        sign = "plus" if sign == "+" else "minus"
    return form.format(first, sign, second)


def sum_steps(first: int, sign: str, second: int) -> str:
    """Return the written steps, units first, of `first` plus or minus `second`."""
    steps, carry = [], 0
    for place in range(max(len(str(first)), len(str(second)))):
        top, bottom = first // 10**place % 10, second // 10**place % 10
        step = f"{top} {sign} {bottom}" + (f" {sign} {carry}" if carry else "")
        if sign == "+":
            total = top + bottom + carry
            carry = total // 10
        else:
            total = top - bottom - carry
            carry = int(total < 0)
            if carry:
                step, total = f"1{step}", total + 10
        steps.append(f"{step} = {total}" + (f", write {total % 10}, carry 1" if carry else ""))
        if sign == "-" and carry:
            steps[-1] = f"{step} = {total}, borrow 1"
    return "\n".join(steps)


def _sum(draw: Draw, digits: int, task: str) -> Exchange:
    first, second = draw.pair(digits)
    sign = draw.one("+-")
    if sign == "-":
        first, second = max(first, second), min(first, second)
    result = first + second if sign == "+" else first - second
    question = _sum_question(draw, first, sign, second)
    answer = f"{first} {sign} {second} = {result}"
    return Exchange(task, [user(question)], assistant(answer), sum_steps(first, sign, second))


def short_sum(draw: Draw, *, thinks: bool) -> Exchange:
    """Add or subtract numbers of one or two digits."""
    return _sum(draw, 1 if draw.chance(0.15) else 2, "sum_thinking" if thinks else "sum")


def sums(draw: Draw, *, thinks: bool) -> Exchange:
    """Add or subtract: up to three digits with thinking, up to two without."""
    if thinks and draw.chance(0.5):
        return _sum(draw, 3, "sum_thinking")
    return short_sum(draw, thinks=thinks)


# --- recall -------------------------------------------------------------------------------------


def _facts(draw: Draw) -> dict[str, tuple[str, str, str]]:
    """Return statement, question and answer of each fact a user may tell."""
    name, city, colour = draw.name(), draw.city(), draw.one(COLOURS)
    pet, code = draw.name(), draw.code()
    animal = draw.one(["dog", "cat", "bird"])
    say = draw.one(["My name is {}.", "I am {}.", "Call me {}.", "Hi, my name is {}."])
    ask = draw.one(
        ["What is my name?", "Do you remember my name?", "What am I called?", "Who am I?"]
    )
    return {
        "name": (say.format(name), ask, f"Your name is {name}."),
        "city": (f"I live in {city}.", "Where do I live?", f"You live in {city}."),
        "colour": (
            f"My favourite colour is {colour}.",
            "What is my favourite colour?",
            f"Your favourite colour is {colour}.",
        ),
        "pet": (
            f"My {animal} is called {pet}.",
            f"What is my {animal} called?",
            f"Your {animal} is called {pet}.",
        ),
        "code": (f"The code is {code}.", "What is the code?", f"The code is {code}."),
    }


def recall(draw: Draw, *, thinks: bool) -> Exchange:
    """Ask for something said some turns earlier, most often the name."""
    facts = _facts(draw)
    asked = "name" if draw.chance(0.5) else draw.one([*facts])
    others = draw.some([key for key in facts if key != asked], draw.number(0, 2))
    told = [asked, *others]
    draw.random.shuffle(told)
    _, question, answer = facts[asked]
    if draw.chance(0.1):
        told.remove(asked)
        answer = "You have not told me."
    reasoning = "I look at what the user said."
    said = " ".join(facts[key][0] for key in told)
    if "name" in told and draw.chance(0.15):
        name = facts["name"][2].removeprefix("Your name is ").removesuffix(".")
        rest = " ".join(facts[key][0] for key in told if key != "name")
        system = f"The user is called {name}. You are a helpful assistant."
        history = [user(rest), assistant("I will remember that.")] if rest else []
        history += fillers(draw, draw.number(0, 2))
        messages = [*history, user(question)]
        return Exchange("recall", messages, assistant(answer), reasoning, system=system)
    history = []
    if said:
        reply = "I will remember that."
        if "name" in told:
            reply = f"Nice to meet you, {facts['name'][2].removeprefix('Your name is ')}"
            reply = reply.removesuffix(".") + "!"
        history = [user(said), assistant(reply)]
    history += fillers(draw, draw.random.choices([0, 1, 2, 4, 6, 16], [6, 8, 6, 2, 2, 0.5])[0])
    return Exchange("recall", [*history, user(question)], assistant(answer), reasoning)


def acknowledge(draw: Draw, *, thinks: bool) -> Exchange:
    """Answer a user who tells something about themselves."""
    facts = _facts(draw)
    told = draw.some([*facts], draw.number(1, 2))
    reply = "I will remember that."
    if "name" in told:
        name = facts["name"][2].removeprefix("Your name is ").removesuffix(".")
        reply = f"Nice to meet you, {name}!"
    said = " ".join(facts[key][0] for key in told)
    return Exchange("talk", [user(said)], assistant(reply), "The user tells me something.")


# --- editing, greeting, talking -----------------------------------------------------------------


def edit(draw: Draw, *, thinks: bool) -> Exchange:
    """Repeat a text, most often with one word replaced by another."""
    words = draw.sentence()
    mark = "" if words[0].islower() else "。" if "和" in words else "."
    text = " ".join(words) + mark
    if draw.chance(0.25):
        form = draw.one(["Repeat this text: {}", "Repeat exactly: {}", "Say this again:\n{}"])
        return Exchange("edit", [user(form.format(text))], assistant(text), "I repeat the text.")
    old = draw.one([word for word in words if words.count(word) == 1] or words[:1])
    new = draw.one(NOUNS + COLOURS) if draw.chance(0.5) else draw.name()
    edited = " ".join(new if word == old else word for word in words) + mark
    form = draw.one(
        [
            'Repeat this text, but replace "{old}" with "{new}": {text}',
            'Replace "{old}" with "{new}": {text}',
            "Repeat the text and change {old} to {new}.\n\n{text}",
            "Replace {old} by {new} in this text: {text}",
        ]
    )
    question = form.format(old=old, new=new, text=text)
    return Exchange("edit", [user(question)], assistant(edited), f"Replace {old} with {new}.")


def greeting(draw: Draw, *, thinks: bool) -> Exchange:
    """Greet back, in the user's language."""
    word = draw.one([*GREETINGS])
    marks = [""] if word.endswith("?") else ["", "!", ".", "!!", " 😊", "! 👋"]
    question = word + draw.one(marks)
    return Exchange("greeting", [user(question)], assistant(GREETINGS[word]), "The user greets me.")


def talk(draw: Draw, *, thinks: bool) -> Exchange:
    """Small talk: known questions, counting, who the model is, and what it does not know."""
    kind = draw.random.random()
    reasoning, system = "I answer the question.", None
    if kind < 0.3:
        question = draw.one([*TRIVIA])
        answer = TRIVIA[question]
    elif kind < 0.55:
        first = draw.number(0, 60)
        numbers = range(first, first + draw.number(3, 30))
        question = f"Count from {numbers[0]} to {numbers[-1]}."
        answer = ", ".join(map(str, numbers))
    elif kind < 0.7:
        name = draw.name()
        question, answer = draw.one(["Who are you?", "What is your name?"]), WHO
        if draw.chance(0.6):
            system, answer = f"You are {name}.", f"I am {name}."
    elif kind < 0.85:
        return acknowledge(draw, thinks=thinks)
    else:
        form = draw.one(
            ["Tell me about {}.", "What is {}?", "Explain {}.", "Write a poem about {}."]
        )
        question, answer = form.format(draw.word()), UNKNOWN
    return Exchange("talk", [user(question)], assistant(answer), reasoning, system=system)


def fillers(draw: Draw, count: int) -> list[Message]:
    """Return `count` short exchanges that say nothing about the user."""
    messages: list[Message] = []
    for _ in range(count):
        kind = draw.random.random()
        if kind < 0.3:
            question, answer = draw.random.choice([*TRIVIA.items()])
        elif kind < 0.5:
            question, answer = draw.random.choice([*GREETINGS.items()])
        else:
            other = (short_sum if kind < 0.75 else edit)(draw, thinks=False)
            question, answer = other.messages[0]["content"], other.answer["content"]
        messages += [user(question), assistant(answer)]
    return messages
