"""Settings that the makers of Qwen3 recommend, and which of them a package gets.

A package brings the settings of its checkpoint, and these win. The presets fill the one gap: a
package holds one set, and a model whose thinking can be switched needs two. They also say what
to try against loops and how long answers may get. Facts come from `manifest.py`.
"""

from dataclasses import dataclass

from qwen_edge.errors import UsageError, did_you_mean
from qwen_edge.profiles.choose import Choice
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.manifest import ChatFacts, GenerationFacts

THINKING_PRESET = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, min_p=0.0)
ANSWER_PRESET = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, min_p=0.0)


@dataclass(frozen=True)
class Preset:
    """What the makers of a model recommend for one way of using it.

    Args:
        name: How it is called here.
        sampling: How to choose tokens.
        loop_presence_penalty: The presence penalty to try when answers repeat themselves
            without end. The makers allow 0 to 2; larger ones may mix languages.
        max_answer_tokens: Enough for most answers, reasoning included.
        max_hard_answer_tokens: Enough for competition mathematics and code.
        source: Where this is recommended.
    """

    name: str
    sampling: SamplingParams
    loop_presence_penalty: float
    max_answer_tokens: int
    max_hard_answer_tokens: int
    source: str


QWEN3_THINKING = Preset(
    "qwen3-thinking",
    THINKING_PRESET,
    loop_presence_penalty=1.5,  # "for quantized models": cards of Qwen3-4B-AWQ and -GGUF
    max_answer_tokens=32_768,
    max_hard_answer_tokens=38_912,
    source='model card of Qwen/Qwen3-4B, "Best Practices", enable_thinking=True',
)
QWEN3_ANSWER = Preset(
    "qwen3-answer",
    ANSWER_PRESET,
    loop_presence_penalty=1.5,
    max_answer_tokens=32_768,
    max_hard_answer_tokens=38_912,
    source='model card of Qwen/Qwen3-4B, "Best Practices", enable_thinking=False',
)
QWEN3_THINKING_2507 = Preset(
    "qwen3-thinking-2507",
    THINKING_PRESET,
    loop_presence_penalty=1.5,  # the cards of 2507 give the range only
    max_answer_tokens=32_768,
    max_hard_answer_tokens=81_920,
    source='model card of Qwen/Qwen3-4B-Thinking-2507, "Best Practices"',
)
QWEN3_INSTRUCT_2507 = Preset(
    "qwen3-instruct-2507",
    ANSWER_PRESET,
    loop_presence_penalty=1.5,
    max_answer_tokens=16_384,
    max_hard_answer_tokens=16_384,
    source='model card of Qwen/Qwen3-4B-Instruct-2507, "Best Practices"',
)
PRESETS = (QWEN3_THINKING, QWEN3_ANSWER, QWEN3_THINKING_2507, QWEN3_INSTRUCT_2507)


def find_preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        UsageError: There is none of this name.
    """
    names = [preset.name for preset in PRESETS]
    if name not in names:
        raise UsageError(
            f"There is no preset {name!r}.{did_you_mean(name, names)}",
            f"use one of: {', '.join(names)}",
            preset=name,
        )
    return PRESETS[names.index(name)]


def choose_preset(chat: ChatFacts, thinking: bool | None) -> Choice[Preset]:
    """Return what is recommended for a model, and why.

    Args:
        chat: Whether and how the model thinks.
        thinking: Whether it will; None counts as its default, and is all there is for a model
            that cannot switch.
    """
    if chat.thinking == "always":
        return Choice(QWEN3_THINKING_2507, "The model always thinks.")
    if chat.thinking == "never":
        return Choice(QWEN3_INSTRUCT_2507, "The model never thinks.")
    if thinking is False:
        return Choice(QWEN3_ANSWER, "The model can think, and thinking is off.")
    return Choice(QWEN3_THINKING, "The model can think, and thinking is on.")


def choose_sampling(
    generation: GenerationFacts, chat: ChatFacts, thinking: bool | None
) -> Choice[SamplingParams]:
    """Return the settings used when a caller gives none, and why.

    These are the package's own. One exception: a package holds one set, and that of Qwen3 is
    for thinking; where it is exactly that and thinking is off, the preset for plain answers is
    taken.

    Args:
        generation: The package's own settings.
        chat: Whether and how the model thinks.
        thinking: Whether it will; None counts as its default.
    """
    if not generation.do_sample:
        greedy = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
        return Choice(greedy, "The package takes the likeliest token each time.")
    own = SamplingParams(
        temperature=generation.temperature,
        top_k=generation.top_k,
        top_p=generation.top_p,
        min_p=generation.min_p,
    )
    preset = choose_preset(chat, thinking)
    if preset.value is QWEN3_ANSWER and own == QWEN3_THINKING.sampling:
        return Choice(preset.value.sampling, f"{preset.reason} Preset {preset.value.name}.")
    return Choice(own, "The package's own settings.")
