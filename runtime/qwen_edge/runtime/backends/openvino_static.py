"""The backend for NPU: the plugin has a prompt model and a one-token model of fixed shapes.

The plugin takes a call for a whole prompt when it has two tokens or more and starts at position
0; any other call must bring one token, for the next position. Forgetting is asked for by a
smaller position. Three things it gets wrong without a word are kept from it here, see `_step`
and `trim`. `decoder_request.py` talks to the engine.

Source:
    openvinotoolkit/openvino@002caac, src/plugins/intel_npu/src/plugin/npuw/
    llm_infer_request.cpp: infer, infer_generate, trim_kvcache_for_speculative_decoding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen_edge.runtime.backends.backend import CacheSnapshot, Logits, LogitsRows
from qwen_edge.runtime.backends.checks import (
    check_num_scored,
    check_room,
    check_snapshot,
    check_token_ids,
    check_trim,
)
from qwen_edge.runtime.backends.decoder_request import DecoderRequest

# A step reads all weights once, and so does a whole prompt: below this many new tokens steps
# are not slower by much, above it the conversation is read again from its start.
MAX_STEPPED_TOKENS = 16
_KIND = "openvino-static"


class StaticOpenVinoBackend:
    """One sequence on a decoder compiled for fixed prompt and cache lengths.

    Args:
        compiled: What `compile_model` returned for device NPU.
        device: For messages.
        max_prompt_tokens: Most tokens the prompt model takes.
        max_context_tokens: Rows of the one-token model's cache, its current token included.

    State:
        `ids` are the tokens of the sequence. `high_row` is the number of rows of the one-token
        model's cache that may hold old values or old ones in its mask.
    """

    def __init__(
        self, compiled: Any, *, device: str, max_prompt_tokens: int, max_context_tokens: int
    ) -> None:
        self._request = DecoderRequest(compiled, device)
        self._max_prompt_tokens = max_prompt_tokens
        # The plugin keeps one row for the token being computed and does not store it there.
        self._max_context_tokens = max_context_tokens - 1
        self._mask = np.zeros((1, max_context_tokens), dtype=np.int64)
        self._ids: list[int] = []
        self._high_row = 0
        self._must_prefill = False
        self._is_after_prefill = False

    @property
    def cached_tokens(self) -> int:
        """Tokens of the sequence."""
        return len(self._ids)

    @property
    def max_context_tokens(self) -> int:
        """Most tokens that `cached_tokens` may reach."""
        return self._max_context_tokens

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._request.vocab_size

    def forward(self, token_ids: Sequence[int]) -> Logits:
        """Append tokens; return the logits after the last, float32 [vocab_size], a copy.

        Raises:
            ContextFullError: The cache would exceed `max_context_tokens`. Nothing changed.
            DeviceError: The engine refused; the sequence is empty now.
            ParityError: The logits are not finite; the sequence is empty now.
            UsageError: The backend is closed.
            ValueError: No ids, or ids outside the vocabulary. Nothing changed.
        """
        check_token_ids(token_ids, self._request.vocab_size)
        check_room(len(self._ids), len(token_ids), self._max_context_tokens)
        try:
            self._append(token_ids)
            logits: Logits = self._request.read_logits()[0]
            return logits
        except BaseException:
            self.reset()
            raise

    @property
    def max_scored_tokens(self) -> int:
        """1: the plugin cuts its models to the last position, and steps are of one token."""
        return 1

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        """Append tokens; return the logits after each of the last ones, a copy.

        Raises:
            ValueError: `num_scored` is out of range. Nothing changed.
            EdgeError: As `forward`.
        """
        check_num_scored(num_scored, len(token_ids), self.max_scored_tokens)
        return self.forward(token_ids)[None]

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens.

        Raises:
            ValueError: `num_tokens` is negative or more than `cached_tokens`.

        State:
            Right after a prompt the plugin would keep the last rows instead of the first: the
            prompt is then read again at the next `forward`. Later it costs nothing.
        """
        check_trim(num_tokens, len(self._ids))
        if num_tokens:
            del self._ids[len(self._ids) - num_tokens :]
            self._must_prefill = self._is_after_prefill or self._must_prefill

    def reset(self) -> None:
        """Forget everything."""
        self._ids.clear()
        self._must_prefill = False

    def snapshot(self) -> CacheSnapshot:
        """Return the tokens: the plugin gives its cache to nobody.

        Raises:
            UsageError: The backend is closed.
        """
        self._request.check_open()
        return CacheSnapshot(_KIND, self.vocab_size, tuple(self._ids))

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Go on after the snapshot's tokens; where they are not there any more, read them again.

        Raises:
            UsageError: Another kind of backend or another model took it, or the backend is
                closed. Nothing changed.
            ContextFullError: It is longer than `max_context_tokens`. Nothing changed.

        State:
            Tokens that are read again are so at the next `forward`, as one prompt: the logits
            then differ as those of a prompt and of single steps do.
        """
        self._request.check_open()
        limit = self._max_context_tokens
        check_snapshot(snapshot, _KIND, vocab_size=self.vocab_size, max_context_tokens=limit)
        ids = list(snapshot.token_ids)
        if self._ids[: len(ids)] == ids:
            self.trim(len(self._ids) - len(ids))
        else:
            self._ids = ids
            self._must_prefill = True

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        self.reset()
        self._request.close()

    def _append(self, token_ids: Sequence[int]) -> None:
        """Feed tokens one by one, or all there are as a prompt, whichever is right or faster."""
        everything = [*self._ids, *token_ids]
        is_long = len(token_ids) > MAX_STEPPED_TOKENS and len(everything) <= self._max_prompt_tokens
        if not self._ids or self._must_prefill or is_long:
            prompt = everything[: self._max_prompt_tokens]
            self._ids.clear()
            self._must_prefill = False
            if len(prompt) > 1:
                self._prefill(prompt)
        for token_id in everything[len(self._ids) :]:
            self._step(token_id)

    def _prefill(self, prompt: list[int]) -> None:
        self._mask[0, : len(prompt)] = 1
        self._request.run(prompt, self._mask[:, : len(prompt)], 0)
        self._ids = list(prompt)
        self._high_row = len(prompt)
        self._is_after_prefill = True

    def _step(self, token_id: int) -> None:
        """Feed one token for the next position.

        The plugin copies only as much of the mask as it is given, and leaves the rest of its
        own as it was: rows that were forgotten would be seen again. So zeros are written over
        all rows that ever held something since the last prompt.
        """
        num_rows = len(self._ids)
        end = max(num_rows, self._high_row)
        self._mask[0, :num_rows] = 1
        self._mask[0, num_rows:end] = 0
        self._mask[0, end] = 1
        self._request.run([token_id], self._mask[:, : end + 1], num_rows)
        self._ids.append(token_id)
        self._high_row = max(end, len(self._ids))
        self._is_after_prefill = False
