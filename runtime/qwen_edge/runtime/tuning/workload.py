"""What a person does with a model, as tokens read and tokens written.

The fastest settings for reading long prompts are not those for writing long answers, so tuning
needs to know which is the case. Only the ratio of the two counts; the lengths say how long the
measured prompts are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qwen_edge.errors import UsageError, did_you_mean

_RATIO = re.compile(r"(\d{1,6}(?:\.\d{1,3})?):(\d{1,6}(?:\.\d{1,3})?)", re.ASCII)
_RATIO_TOKENS = 640  # of prompt and answer together; what an agent's step has
_MOST_MEASURED_TOKENS = 1024  # two calls of the usual size; more of them run at much the same speed


@dataclass(frozen=True)
class Workload:
    """Tokens that are computed for one answer.

    Args:
        name: As a person chose it.
        prompt_tokens: New tokens read: what is in the cache already does not count.
        answer_tokens: Tokens written.
    """

    name: str
    prompt_tokens: int
    answer_tokens: int

    def measured_prompt_tokens(self, max_context_tokens: int) -> int:
        """Return the length of the prompts that are measured."""
        return min(self.prompt_tokens, _MOST_MEASURED_TOKENS, max_context_tokens // 2)

    def seconds(self, prefill_token_s: float, decode_token_s: float) -> float:
        """Return how long one answer takes, from the time of a token of each kind."""
        return self.prompt_tokens * prefill_token_s + self.answer_tokens * decode_token_s


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        # A question and its answer; the conversation before it is in the cache.
        "chat": Workload("chat", 128, 256),
        # Passages that were looked up, and a short answer from them.
        "rag": Workload("rag", 2048, 128),
        # What a tool returned, and the next call.
        "agent": Workload("agent", 512, 128),
    }
)
DEFAULT_WORKLOAD = "chat"


def find_workload(name: str | None = None, ratio: str | None = None) -> Workload:
    """Return the workload of a name, or of a ratio of prompt to answer.

    Args:
        name: "chat", "rag" or "agent"; None for chat where there is no ratio either.
        ratio: Such as "4:1".

    Raises:
        UsageError: The name is unknown, the ratio is none, or both are given.
    """
    if ratio is not None:
        if name is not None:
            raise UsageError(
                f"Both a workload ({name!r}) and a ratio ({ratio!r}) are given.",
                "give one of --for and --ratio",
            )
        return _read_ratio(ratio)
    name = DEFAULT_WORKLOAD if name is None else name
    if name not in WORKLOADS:
        raise UsageError(
            f"There is no workload {name!r}.{did_you_mean(name, WORKLOADS)}",
            f"use one of: {', '.join(WORKLOADS)}; or --ratio PROMPT:ANSWER",
            workload=name,
        )
    return WORKLOADS[name]


def _read_ratio(text: str) -> Workload:
    match = _RATIO.fullmatch(text.strip())
    prompt, answer = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not prompt or not answer:
        raise UsageError(
            f"The ratio is {text!r:.80}; expected prompt tokens to answer tokens, both above 0.",
            "for example --ratio 4:1",
            ratio=text,
        )
    num_prompt = round(_RATIO_TOKENS * prompt / (prompt + answer))
    num_prompt = min(max(num_prompt, 1), _RATIO_TOKENS - 1)
    return Workload(text.strip(), num_prompt, _RATIO_TOKENS - num_prompt)
