"""A model without files or engine, for tests and examples: it gives the answers it was given.

Everything but the network is real: a byte-level tokenizer with Qwen3's control tokens, a
small chat template that thinks or does not, the session, the sampler and the events.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_edge.errors import UsageError
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.detokenizer import byte_of_character
from qwen_edge.runtime.manifest import ChatFacts, GenerationFacts
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.text_tokenizer import TextTokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LAYOUT_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
THINK_TOKENS = ("<think>", "</think>")

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


@dataclass(frozen=True)
class FakeCard:
    """The facts of a fake model; see `ModelCard`."""

    name: str
    generation: GenerationFacts
    chat: ChatFacts


def make_fake_tokenizer() -> TextTokenizer:
    """Return a tokenizer with one id per byte and Qwen3's control tokens after them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=byte_of_character(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
        + [AddedToken(text, normalized=False) for text in (*LAYOUT_TOKENS, *THINK_TOKENS)]
    )
    return TextTokenizer(tokenizer, origin="fake tokenizer")


def make_fake_model(answers: Sequence[str], *, max_context_tokens: int = 4096) -> Model:
    """Return a model that gives `answers[n]` as the answer to the n-th user message.

    Args:
        answers: At least one; the last one is repeated. `<think>` and `</think>` in them are
            the control tokens, so an answer may begin with reasoning.
        max_context_tokens: Most tokens of prompt and answer; one token is one UTF-8 byte.

    Raises:
        UsageError: There are no answers.
    """
    if not answers:
        raise UsageError("answers is empty; expected at least one text.", "pass one answer")
    tokenizer = make_fake_tokenizer()
    control = tokenizer.added_tokens
    backend = FakeBackend(
        make_script(tokenizer, answers),
        vocab_size=tokenizer.vocab_size,
        max_context_tokens=max_context_tokens,
    )
    generation = GenerationFacts(
        do_sample=False,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        min_p=0.0,
        eos_token_ids=(control["<|im_end|>"], control["<|endoftext|>"]),
        max_new_tokens=max_context_tokens,
    )
    chat = ChatFacts(
        thinking="switchable",
        think_open_id=control["<think>"],
        think_close_id=control["</think>"],
    )
    card = FakeCard(name="fake", generation=generation, chat=chat)
    return Model(backend, tokenizer, CHAT_TEMPLATE, card)


def make_script(tokenizer: TextTokenizer, answers: Sequence[str]) -> Callable[[Sequence[int]], int]:
    """Return a function from the ids so far to the next id of the scripted answer.

    The number of assistant headers tells which answer it is, the ids after the last header
    how far it has come. So the script does not depend on what was cached or trimmed.
    """
    header = tokenizer.encode("<|im_start|>assistant\n", allow_special=True)
    begin = tokenizer.added_tokens["<|im_start|>"]
    no_thinking = tokenizer.encode("<think>\n\n</think>\n\n", allow_special=True)
    scripts = [tokenizer.encode(f"{text}<|im_end|>", allow_special=True) for text in answers]

    def next_token(token_ids: Sequence[int]) -> int:
        starts = [
            index + len(header)
            for index, token_id in enumerate(token_ids)
            if token_id == begin and list(token_ids[index : index + len(header)]) == header
        ]
        script = scripts[min(max(len(starts) - 1, 0), len(scripts) - 1)]
        given = list(token_ids[starts[-1] :]) if starts else []
        if given[: len(no_thinking)] == no_thinking:
            given = given[len(no_thinking) :]
        return script[min(len(given), len(script) - 1)]

    return next_token
