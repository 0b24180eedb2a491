"""The backend for NPU: the plugin has a prompt model and a one-token model of fixed shapes.

A call for several tokens that starts at position 0 is a prompt; it may start later where the
plugin agreed to that, see `prompt_reuse.py`. Any other call must bring one token, for the next
position. Forgetting is asked for by a smaller position. What the plugin gets wrong without a word
is kept from it here, see `_step` and `_can_step`. `decoder_request.py` talks to the engine.

Source:
    openvinotoolkit/openvino@002caac, src/plugins/intel_npu/src/plugin/npuw/
    llm_infer_request.cpp: infer, infer_generate, trim_kvcache_for_speculative_decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends.backend import CacheSnapshot, Logits, LogitsRows
from qwen_edge.runtime.backends.checks import (
    check_num_scored,
    check_room,
    check_snapshot,
    check_token_ids,
    check_trim,
)
from qwen_edge.runtime.backends.decoder_request import DecoderRequest
from qwen_edge.runtime.backends.prompt_reuse import (
    STORED_TOKENS_STATE,
    PromptReuse,
    read_prompt_shape,
)
from qwen_edge.runtime.engine import first_line

# A step reads all weights once; a chunk of a prompt is arithmetic, used or not. Published for an
# NPU (Core Ultra 9 185H, Qwen3-8B int4, OpenArc issue 38): prompts 105 tokens/s, answers 9.6.
PROMPT_TOKENS_PER_STEP = 10
_KIND = "openvino-static"


@dataclass(frozen=True)
class _Way:
    """How the tokens wanted next can be had.

    Args:
        cost: In decode steps.
        num_kept: Rows of the engine's cache that are gone on from.
        num_prompt: Where the part that is read as a prompt ends; 0 for single steps only.
    """

    cost: float
    num_kept: int
    num_prompt: int = 0


class StaticOpenVinoBackend:
    """One sequence on a decoder compiled for fixed prompt and cache lengths.

    Args:
        compiled: What `compile_model` returned for device NPU.
        device: For messages.
        max_prompt_tokens: Most tokens the prompt model takes.
        max_context_tokens: Rows of the one-token model's cache, its current token included.

    State:
        `ids` are the tokens of the sequence, `held` those whose rows the engine has: the two are
        brought together by the next `forward`. `prompt_rows` of these were read as a prompt.
        `high_row` is the number of rows of the one-token model's cache that may hold old values or
        old ones in its mask.
    """

    def __init__(
        self, compiled: Any, *, device: str, max_prompt_tokens: int, max_context_tokens: int
    ) -> None:
        self._device = device
        self._request = DecoderRequest(compiled, device)
        self._max_prompt_tokens = max_prompt_tokens
        # The plugin keeps one row for the token being computed and does not store it there.
        self._max_context_tokens = max_context_tokens - 1
        shape = read_prompt_shape(compiled, max_prompt_tokens)
        self._chunk_tokens = shape.chunk_tokens
        state = self._request.find_state(STORED_TOKENS_STATE) if shape.can_continue else None
        self._reuse = None if state is None else PromptReuse(state)
        self._mask = np.zeros((1, max_context_tokens), dtype=np.int64)
        self._ids: list[int] = []
        self._held: list[int] = []
        self._prompt_rows = 0
        self._high_row = 0
        self._is_after_prompt = False

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
        self._request.check_open()
        try:
            self._append([*self._ids, *token_ids])
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
        """Forget the last tokens; the engine is told at the next `forward`.

        Raises:
            ValueError: `num_tokens` is negative or more than `cached_tokens`.
        """
        check_trim(num_tokens, len(self._ids))
        if num_tokens:
            del self._ids[len(self._ids) - num_tokens :]

    def reset(self) -> None:
        """Forget everything: the next tokens are read as if they were the first ever."""
        self._ids.clear()
        self._held.clear()

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
            Tokens that are read again are so at the next `forward`, as a prompt: the logits then
            differ as those of a prompt and of single steps do.
        """
        self._request.check_open()
        limit = self._max_context_tokens
        check_snapshot(snapshot, _KIND, vocab_size=self.vocab_size, max_context_tokens=limit)
        self._ids = list(snapshot.token_ids)

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        self.reset()
        self._reuse = None
        self._request.close()

    def _append(self, wanted: list[int]) -> None:
        """Have the engine hold all these tokens, the last one just computed."""
        num_common = self._count_common(wanted)
        way = min(self._find_ways(num_common, len(wanted)), key=lambda way: way.cost)
        if way.num_prompt:
            self._read_prompt(wanted[: way.num_prompt], num_common if way.num_kept else 0)
        else:
            del self._held[way.num_kept :]
        for token_id in wanted[len(self._held) :]:
            self._step(token_id)
        self._ids = wanted

    def _count_common(self, wanted: list[int]) -> int:
        """Return how many rows can stay, so that at least one token is left to feed."""
        most = min(len(self._held), len(wanted) - 1)
        if self._held[:most] == wanted[:most]:  # nearly always, and fast
            return most
        pairs = enumerate(zip(self._held, wanted, strict=False))
        return next(index for index, (held, token_id) in pairs if held != token_id)

    def _find_ways(self, num_common: int, num_wanted: int) -> list[_Way]:
        """Return every way that gives right logits; one at least.

        Args:
            num_common: Tokens at the beginning that the engine holds.
            num_wanted: All there shall be.
        """
        ways = []
        if self._can_step(num_common, num_wanted):
            ways.append(_Way(num_wanted - num_common, num_common))
        end = min(num_wanted, self._max_prompt_tokens)
        if end > 1 or self._reuse is not None:
            ways.append(_Way(self._prompt_cost(0, end, num_wanted), 0, end))
        chunk = self._chunk_tokens
        # What the plugin will grant; it never says without being bound by it.
        most = min(num_common, self._prompt_rows, self._max_prompt_tokens - chunk)
        granted = most // chunk * chunk
        if self._reuse is not None and granted > 0:
            cost = self._prompt_cost(granted, end, num_wanted) + self._is_after_prompt
            ways.append(_Way(cost, granted, end))
        return ways

    def _prompt_cost(self, begin: int, end: int, num_wanted: int) -> float:
        """Return the cost of reading rows `begin` to `end` as a prompt and stepping the rest."""
        num_chunks = -(-(end - begin) // self._chunk_tokens)
        return num_chunks * self._chunk_tokens / PROMPT_TOKENS_PER_STEP + num_wanted - end

    def _can_step(self, num_common: int, num_wanted: int) -> bool:
        """Return whether single steps may follow the first tokens of what the engine holds.

        Right after a prompt the plugin has its rows elsewhere and brings the last ones over
        instead of the first, should fewer be wanted. A lone first token is a step, but where
        prompts can be continued the plugin wants to be told of a new beginning.
        """
        if num_common == 0:
            return num_wanted == 1 and self._reuse is None
        return not self._is_after_prompt or num_common == len(self._held)

    def _read_prompt(self, prompt: list[int], num_common: int) -> None:
        """Feed tokens as a prompt, from the row on that the plugin agrees to.

        Args:
            prompt: From its first token.
            num_common: How many of them the plugin is asked to keep; 0 for none.
        """
        begin = 0
        if num_common:
            if self._is_after_prompt:
                # Brings the prompt's rows to where the plugin can go on from; any token does.
                self._step(0)
            begin = self._agree(num_common)
        elif self._reuse is not None:
            self._agree(0)
        end = len(prompt)
        self._held.clear()  # until it went well, nothing is known
        self._mask[0, :end] = 1
        self._request.run(prompt[begin:], self._mask[:, :end], begin)
        self._held = list(prompt)
        self._prompt_rows = end
        self._high_row = end
        self._is_after_prompt = True

    def _agree(self, num_common: int) -> int:
        """Tell the plugin what the next prompt begins with; return the rows it keeps of it."""
        assert self._reuse is not None
        try:
            if num_common:
                return self._reuse.propose(num_common)
            self._reuse.start_anew()
        except RuntimeError as error:
            raise DeviceError(
                f"Device {self._device!r} did not go on with the conversation: "
                f"{first_line(error)}.",
                "ask again; the conversation is then read from its start.",
                device=self._device,
                engine_message=str(error),
            ) from error
        return 0

    def _step(self, token_id: int) -> None:
        """Feed one token for the next position.

        The plugin copies only as much of the mask as it is given, and leaves the rest of its
        own as it was: rows that were forgotten would be seen again. So zeros are written over
        all rows that ever held something since the last prompt.
        """
        num_rows = len(self._held)
        end = max(num_rows, self._high_row)
        self._mask[0, :num_rows] = 1
        self._mask[0, num_rows:end] = 0
        self._mask[0, end] = 1
        self._request.run([token_id], self._mask[:, : end + 1], num_rows)
        self._held.append(token_id)
        self._prompt_rows = min(self._prompt_rows, num_rows)
        self._high_row = max(end, len(self._held))
        self._is_after_prompt = False
