"""Names for blocks of a cache: equal names, bit for bit equal contents.

A block holds the keys and values of some tokens. They depend on all tokens before them, and,
in their last bits, on how they were computed: engines use one kernel for a token alone and
another for several. So a name is a digest of the name before it, of the tokens, and of the calls
that computed them. It knows no memory; `block_pool.py` keeps what the names stand for.

Prompts are cut into calls at blocks' ends only, and a last token beyond the last whole block is
fed alone, so that the name does not depend on where a prompt was cut.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

BlockKey = bytes
_DIGEST_BYTES = 16
_ALONE = 0  # how a call of one token is written; others by how many tokens of the block it fed


class KeyChain:
    """The names of one sequence's blocks, as its tokens come in.

    Args:
        block_tokens: Tokens per block.
        tells_calls: Whether how tokens were computed is part of the names. Without it blocks
            of an answer are found by a prompt that holds the same text, and the logits after
            them are equal within rounding only.

    State:
        Follows the sequence.
    """

    def __init__(self, block_tokens: int, *, tells_calls: bool = True) -> None:
        self._block_tokens = block_tokens
        self._tells_calls = tells_calls
        self._last_key: BlockKey = b""
        self._token_ids: list[int] = []  # of the block that is not full
        self._calls: list[int] = []

    @property
    def is_at_block_end(self) -> bool:
        """Whether no block is partly filled."""
        return not self._token_ids

    def feed(self, token_ids: Sequence[int]) -> list[BlockKey]:
        """Take note of one call; return the names of the blocks that it filled."""
        keys = []
        start = 0
        while start < len(token_ids):
            room = self._block_tokens - len(self._token_ids)
            piece = token_ids[start : start + room]
            start += len(piece)
            self._token_ids.extend(piece)
            self._calls.append(_ALONE if len(token_ids) == 1 else len(piece))
            if len(self._token_ids) == self._block_tokens:
                keys.append(self._close_block())
        return keys

    def jump(self, key: BlockKey) -> None:
        """Go on after a whole block of this name."""
        self._last_key = key

    def copy(self) -> "KeyChain":
        """Return a chain that goes on from here on its own."""
        twin = KeyChain(self._block_tokens, tells_calls=self._tells_calls)
        twin._last_key = self._last_key
        twin._token_ids = list(self._token_ids)
        twin._calls = list(self._calls)
        return twin

    def _close_block(self) -> BlockKey:
        calls = self._calls if self._tells_calls else []
        digest = hashlib.blake2b(self._last_key, digest_size=_DIGEST_BYTES)
        digest.update(np.array([*self._token_ids, *calls], dtype=np.int64).tobytes())
        self._last_key = digest.digest()
        self._token_ids.clear()
        self._calls.clear()
        return self._last_key


def cut_prompt(start: int, num_tokens: int, *, block_tokens: int, budget: int) -> int:
    """Return where the next call of a prompt ends.

    Args:
        start: Tokens already fed: none, whole blocks, or all but the last token.
        num_tokens: Length of the prompt, more than `start`.
        block_tokens: Tokens per block.
        budget: About as many tokens as the call should have; at least a block is fed.

    Returns:
        The end of a whole block, or the end of the prompt.
    """
    tail = num_tokens % block_tokens
    whole = num_tokens - tail
    if start >= whole:
        return num_tokens
    end = min(whole, start + max(budget // block_tokens, 1) * block_tokens)
    if end == whole and tail > 1 and num_tokens - start <= budget:
        return num_tokens
    return end


def prompt_calls(prompt_ids: Sequence[int], block_tokens: int) -> Iterable[Sequence[int]]:
    """Yield a prompt in the smallest calls that it may be cut into."""
    start = 0
    while start < len(prompt_ids):
        end = cut_prompt(start, len(prompt_ids), block_tokens=block_tokens, budget=0)
        yield prompt_ids[start:end]
        start = end


def name_blocks(
    prompt_ids: Sequence[int],
    later_calls: Iterable[Sequence[int]],
    block_tokens: int,
    *,
    tells_calls: bool,
) -> list[tuple[BlockKey, bool]]:
    """Return the names of a sequence's whole blocks.

    Args:
        prompt_ids: What it begins with.
        later_calls: What was fed after the prompt, call by call.
        block_tokens: Tokens per block.
        tells_calls: As for `KeyChain`.

    Returns:
        `(name, is_call_end)` per block: whether a call ended with it, so that feeding can go
        on after it with the calls that are left.
    """
    keys = KeyChain(block_tokens, tells_calls=tells_calls)
    named: list[tuple[BlockKey, bool]] = []
    for call in chain(prompt_calls(prompt_ids, block_tokens), later_calls):
        filled = keys.feed(call)
        named.extend((key, False) for key in filled[:-1])
        named.extend((key, keys.is_at_block_end) for key in filled[-1:])
    return named
