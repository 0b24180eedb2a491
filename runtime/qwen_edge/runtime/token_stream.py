"""The tokens of one answer on a model's cache: route, reuse, prefill, then token by token.

What `Model.generate` and `Session` have in common. It holds no lock, knows no text and remembers no
conversation; read `decoding/generation.py` for the loop itself.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from qwen_edge.errors import ContextFullError
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import NewToken, TokenPicker

if TYPE_CHECKING:
    from qwen_edge.runtime.decoding.drafting import Drafter
    from qwen_edge.runtime.model import Model

_LOGGER = logging.getLogger(__name__)


def stream_tokens(
    model: "Model",
    prompt_ids: Sequence[int],
    *,
    picker: TokenPicker,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    drafter: "Drafter | None",
    is_cancelled: Callable[[], bool],
    owner: object,
    asked_tokens: int | None = None,
    on_begin: Callable[[int], None] = lambda _: None,
) -> Generator[NewToken, None, None]:
    """Yield the tokens of an answer; the caller holds the model's cache.

    Args:
        model: Whose cache it is.
        prompt_ids: The whole prompt, checked.
        picker: Chooses the tokens; belongs to this answer.
        max_new_tokens: Most tokens.
        stop_token_ids: Ids that end the answer.
        drafter: Guesses ahead, or None.
        is_cancelled: Asked around every step.
        owner: As for `PrefixCache.begin`.
        asked_tokens: How long the answer may get, where that was said.
        on_begin: Called with the number of prompt tokens that need not be computed.

    Raises:
        ContextFullError: No device takes the prompt.
        EdgeError: As `generate_tokens`. Where a device has less room than was planned with, since
            the one that was meant is gone, the answer just ends there.
    """
    num_reused = model.prepare_cache(prompt_ids, owner=owner, asked_tokens=asked_tokens)
    on_begin(num_reused)
    if drafter is not None:
        drafter.begin(prompt_ids)
    tokens = generate_tokens(
        model.backend,
        prompt_ids[num_reused:],
        picker=picker,
        max_new_tokens=max_new_tokens,
        stop_token_ids=tuple(stop_token_ids),
        drafter=drafter,
        prefill_chunk_tokens=model.prefill_chunk_tokens,
        is_cancelled=is_cancelled,
    )
    num_given = 0
    # Closed here and now: what it does at its end is to this answer's cache.
    with closing(tokens):
        try:
            for token in tokens:
                num_given += 1
                model.prefix_cache.append(token.token_id)
                yield token
        except ContextFullError as error:
            if num_given == 0:
                raise
            _LOGGER.warning("The answer ends here: %s", error.problem)
