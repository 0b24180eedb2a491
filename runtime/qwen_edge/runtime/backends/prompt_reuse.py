"""What the NPU plugin says of its prompt model, and the agreement on rows it may keep of it.

A prompt is read in chunks of a fixed size. With NPUW_LLM_ENABLE_CONTINUOUS_PREFILL the caller
proposes how many tokens of what the plugin holds begin the next prompt too; the plugin grants a
whole number of chunks, and takes the rest from there. It counts rows of prompts only, not those
of answers, and grants nothing before one token was decoded after a prompt. It knows no tokens;
`openvino_static.py` does.

Source:
    openvinotoolkit/openvino@0f5437a, src/plugins/intel_npu/src/plugin/npuw/llm_continuation.hpp
    (rule and states), pull requests 37147 and 37148; behaviour measured on 2026.4.1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_edge.runtime.engine import import_openvino

STORED_TOKENS_STATE = "npuw_stored_tokens_state"


@dataclass(frozen=True)
class PromptShape:
    """How a compiled model reads prompts.

    Args:
        chunk_tokens: Tokens that one run of the prompt model takes, used or not.
        can_continue: Whether a prompt may begin in the middle.
    """

    chunk_tokens: int
    can_continue: bool


def read_prompt_shape(compiled: Any, max_prompt_tokens: int) -> PromptShape:
    """Ask a compiled model how it reads prompts.

    Args:
        compiled: What `compile_model` returned for device NPU.
        max_prompt_tokens: Most tokens of a prompt: one chunk where the model is not cut.
    """
    hint = str(_read_property(compiled, "NPUW_LLM_PREFILL_HINT", "STATIC"))
    chunk = int(_read_property(compiled, "NPUW_LLM_PREFILL_CHUNK_SIZE", 0))
    is_chunked = hint == "DYNAMIC" and 0 < chunk < max_prompt_tokens
    can_continue = _read_property(compiled, "NPUW_LLM_CONTINUOUS_PREFILL_SUPPORTED", False)
    return PromptShape(chunk if is_chunked else max_prompt_tokens, can_continue is True)


class PromptReuse:
    """Agrees with the plugin on how much of its cache the next prompt begins with.

    Args:
        state: The request's variable state of that name.

    State:
        After `propose` the next run must be the rest of the prompt, from the granted row on;
        after `start_anew`, or a grant of 0, a whole prompt.
    """

    def __init__(self, state: Any) -> None:
        self._state = state
        self._tensor = import_openvino().Tensor

    def propose(self, num_tokens: int) -> int:
        """Propose a common beginning; returns the tokens granted, at most as many.

        Raises:
            RuntimeError: The plugin holds fewer tokens, or waits for a prompt.
        """
        self._state.state = self._tensor(np.array([num_tokens], dtype=np.int64))
        return int(self._state.state.data[0])

    def start_anew(self) -> None:
        """Announce a whole prompt; also the only way on after a run that failed."""
        self._state.reset()


def _read_property(compiled: Any, name: str, default: object) -> Any:
    """Return a property; older plugins, and other devices, do not know all of them."""
    try:
        return compiled.get_property(name)
    except (RuntimeError, TypeError, ValueError):
        return default
