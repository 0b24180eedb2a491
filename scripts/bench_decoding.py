"""What guessing ahead and forced tokens are worth: parts of `bench_runtime.py`.

Each part runs the same answer twice on one compiled model, through an infer request each: once
one token at a time, once with what is measured. Both run in turns of a few tokens, so that a slow
second of the machine weighs on both. Where the weights are random, what the model "says" comes
from a script: speed depends on how many guesses are right, not on why they are.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from demo_long_tasks import form, repeat
from demo_tasks import Exchange, edit, extraction
from demo_values import Draw

from qwen_edge.runtime.backends.backend import Logits
from qwen_edge.runtime.decoding.constraint import Bitmask, Constraint
from qwen_edge.runtime.decoding.drafting import Drafter
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import NewToken, TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.structured.output_format import OutputFormat

TURN_TOKENS = 16  # a second or two at full size
GREEDY = SamplingParams(temperature=0.0)
DEMO_TASKS: dict[str, Callable[..., Exchange]] = {
    "repeat": repeat,
    "form": partial(form, words=(20, 28)),
    "again": extraction,
    "extraction": extraction,
    "edit": edit,
}
# What an extraction of many fields looks like: most of the text is the schema's.
LONG_KEYS = {
    "type": "object",
    "properties": {
        f"{name}_of_the_registered_{part}": {"type": "integer", "minimum": 0, "maximum": 9}
        for part in ("delivery_address", "invoice_recipient", "contact_person")
        for name in ("customer_identification_number", "internal_reference_code", "status_flag")
    },
    "additionalProperties": False,
}
LONG_KEYS["required"] = list(LONG_KEYS["properties"])  # type: ignore[call-overload]


FORM = """Extract sender, recipient, subject, place of delivery and the complaint as JSON.

From: Northern Harbour Instruments and Measuring Devices Ltd., Dockside Road 114, Aberdeen
To: the customer service department of Halvorsen & Daughters Paper Mill, Trondheim
Subject: third reminder about the broken pressure gauges of the delivery of 14 September
Deliver to: warehouse 7, gate 3, behind the old railway bridge, Strandveien 20, 7042 Trondheim

Dear Sir or Madam, of the twelve gauges that arrived on Monday four had cracked glass and two
showed a constant pressure of 0.4 bar with nothing connected to them. Please collect them.

JSON:
"""
FORM_ANSWER = """{"sender": "Northern Harbour Instruments and Measuring Devices Ltd., \
Dockside Road 114, Aberdeen", "recipient": "the customer service department of Halvorsen & \
Daughters Paper Mill, Trondheim", "subject": "third reminder about the broken pressure gauges of \
the delivery of 14 September", "place_of_delivery": "warehouse 7, gate 3, behind the old railway \
bridge, Strandveien 20, 7042 Trondheim", "complaint": "of the twelve gauges that arrived on Monday \
four had cracked glass and two showed a constant pressure of 0.4 bar with nothing connected"}"""


class ScriptedPicker(TokenPicker):
    """Takes the tokens of a script whatever the logits say; they are computed all the same."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__(Sampler(GREEDY))
        self._script = script
        self._place = 0

    def pick(self, logits: Logits, remaining_tokens: int) -> NewToken:
        """Return the next token of the script."""
        del remaining_tokens
        int(logits.argmax())  # what a greedy choice costs
        self._place += 1
        return NewToken(self._script[self._place - 1])


class SampledConstraint:
    """A grammar whose forced tokens are sampled one by one, to compare with.

    A trained model would choose the same tokens; one of random weights would spell the keys in
    some way of its own, so that the two answers could not be compared.
    """

    def __init__(self, inner: Constraint) -> None:
        self._inner = inner

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        """Return what the grammar allows: where it is one token, that one as it would come."""
        mask = self._inner.mask(remaining_tokens)
        forced = self._inner.forced(remaining_tokens)
        if not forced or mask is None:
            return mask
        only = np.zeros_like(mask)
        only[forced[0] // 32] = np.uint32(1 << forced[0] % 32).astype(np.int32)
        return only

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        """Return none."""
        del remaining_tokens
        return ()

    def advance(self, token_id: int) -> None:
        """Go on."""
        self._inner.advance(token_id)

    def count_valid(self, token_ids: Sequence[int]) -> int:
        """Return how many could follow."""
        return self._inner.count_valid(token_ids)


@dataclass
class Runner:
    """One of two ways to the same answer, timed in turns."""

    tokens: Iterator[NewToken]
    ids: list[int]
    seconds: float = 0.0
    is_done: bool = False

    def take(self, num_tokens: int) -> None:
        """Take tokens and count the time, until the answer ends."""
        goal = len(self.ids) + num_tokens
        start = time.perf_counter()
        while len(self.ids) < goal:
            token = next(self.tokens, None)
            if token is None:
                self.is_done = True
                break
            self.ids.append(token.token_id)
        self.seconds += time.perf_counter() - start


def race(
    make_plain: Callable[[], Iterator[NewToken]],
    make_fast: Callable[[], Iterator[NewToken]],
    *,
    is_plain_first: bool,
) -> tuple[Runner, Runner]:
    """Run both to their end in turns; the first token, with the prompt, is not counted."""
    plain, fast = Runner(make_plain(), []), Runner(make_fast(), [])
    order = [plain, fast] if is_plain_first else [fast, plain]
    for runner in order:
        runner.take(1)
        runner.seconds = 0.0
    while not all(runner.is_done for runner in order):
        for runner in order:
            if not runner.is_done:
                runner.take(TURN_TOKENS)
        order.reverse()
    return plain, fast


def generate(
    model: Model,
    prompt_ids: Sequence[int],
    picker: TokenPicker,
    max_new_tokens: int,
    drafter: Drafter | None = None,
) -> Iterator[NewToken]:
    """Return the tokens of an answer to a prompt, from an empty cache."""
    model.backend.reset()
    if drafter is not None:
        drafter.begin(prompt_ids)
    return generate_tokens(
        model.backend,
        prompt_ids,
        picker=picker,
        max_new_tokens=max_new_tokens,
        stop_token_ids=model.generation.eos_token_ids,
        drafter=drafter,
        prefill_chunk_tokens=model.prefill_chunk_tokens,
    )


def summarise(name: str, pairs: Sequence[tuple[Runner, Runner]]) -> dict[str, Any]:
    """Return the median speeds and the median of the pairs' own ratios."""
    for plain, fast in pairs:
        if plain.ids != fast.ids:
            raise SystemExit(f"{name}: the two ways gave different answers")
    speeds = [[(len(runner.ids) - 1) / runner.seconds for runner in pair] for pair in pairs]
    result = {
        f"{name}_plain_tokens_per_s": round(median(plain for plain, _ in speeds), 2),
        f"{name}_tokens_per_s": round(median(fast for _, fast in speeds), 2),
        f"{name}_ratio": round(median(fast / plain for plain, fast in speeds), 3),
    }
    print(result, file=sys.stderr, flush=True)
    return result


def measure_scripts(models: tuple[Model, Model], rounds: int) -> dict[str, Any]:
    """Measure prompt lookup on answers that copy, a little or a lot, and on one that never does.

    The adversarial one repeats pairs and triples of tokens all the time, so that there always is
    something to guess from, and goes on differently each time.
    """
    plain_model, fast_model = models
    generator = np.random.default_rng(7)
    vocab_size = 50_000
    result: dict[str, Any] = {}
    text = generator.integers(1_000, vocab_size, 400).tolist()
    encode = plain_model.tokenizer.encode
    extract = (encode(FORM), encode(FORM_ANSWER))
    few = generator.integers(1_000, vocab_size, 12).tolist()
    adversarial = [few[index] for index in generator.integers(0, len(few), 512)]
    for name, prompt, script in (
        ("copy", text, [*text[40:200], *generator.integers(1_000, vocab_size, 8).tolist()]),
        ("extraction", *extract),
        ("adversarial", adversarial[:400], adversarial[400:512]),
    ):
        pairs = []
        for number in range(rounds):
            drafter = fast_model.drafter
            pairs.append(
                race(
                    partial(generate, plain_model, prompt, ScriptedPicker(script), len(script)),
                    partial(
                        generate, fast_model, prompt, ScriptedPicker(script), len(script), drafter
                    ),
                    is_plain_first=number % 2 == 0,
                )
            )
        result |= summarise(f"lookup_{name}", pairs)
    return result


def measure_forced(models: tuple[Model, Model], rounds: int) -> dict[str, Any]:
    """Measure JSON with long keys, its forced tokens fed in one call or sampled one by one."""
    plain_model, fast_model = models
    output = OutputFormat.json_schema(LONG_KEYS)
    prompt = plain_model.tokenizer.encode("Extract the fields of this form as JSON. " * 6)
    pairs = []
    for number in range(rounds):
        starts = [model.grammars.compile(output).start() for model in models]
        sampled = TokenPicker(Sampler(GREEDY), SampledConstraint(starts[0]))
        forced = TokenPicker(Sampler(GREEDY), starts[1])
        pairs.append(
            race(
                partial(generate, plain_model, prompt, sampled, 512),
                partial(generate, fast_model, prompt, forced, 512),
                is_plain_first=number % 2 == 0,
            )
        )
    return summarise("forced_json", pairs)


def measure_demo(models: tuple[Model, Model], num_prompts: int) -> dict[str, Any]:
    """Measure prompt lookup on a model that copies: its own tasks, answered greedily.

    `demo_repeat` repeats a long text; `demo_form` extracts lines of 18 to 22 words, longer than
    those of the training: shorter ones gain less (docs/LOG.md). `demo_again` asks a short question
    twice in one conversation, so that the second answer repeats the first; `demo_extraction` and
    `demo_edit` copy single values of a few tokens.
    """
    plain_model, fast_model = models
    result: dict[str, Any] = {}
    for name, task in DEMO_TASKS.items():
        pairs = []
        for number in range(num_prompts + 2):
            exchange = task(Draw(number, held_out=True), thinks=False)
            messages: list[Any] = list(exchange.messages)
            if name == "again":
                with plain_model.session(sampling=GREEDY, thinking=False) as chat:
                    messages += [chat.ask(messages, max_new_tokens=256).message, *exchange.messages]
            prompt = plain_model.chat_template.encode(messages, thinking=False)
            drafter = fast_model.drafter
            pairs.append(
                race(
                    partial(generate, plain_model, prompt, TokenPicker(Sampler(GREEDY)), 256),
                    partial(
                        generate, fast_model, prompt, TokenPicker(Sampler(GREEDY)), 256, drafter
                    ),
                    is_plain_first=number % 2 == 0,
                )
            )
        result |= summarise(f"demo_{name}", pairs[2:])  # each size of call is slow the first time
    return result
