"""Where a layer's projections read, and the sums over what they read there.

Plain arithmetic: `activations.py` runs the layer.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ROWS_AT_ONCE = 8_192  # summed in one product: a third of the time of 2,048, 319 MB


@dataclass(frozen=True)
class Site:
    """One place of a layer whose values are multiplied with weights.

    Args:
        name: In words.
        node: The operation that gives the values, behind the layer's prefix.
        readers: Projections that read it, behind the layer's prefix.
    """

    name: str
    node: str
    readers: tuple[str, ...]


ATTENTION_INPUT = Site(
    "attention input",
    ".input_layernorm",
    (".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.v_proj"),
)
ATTENTION_OUTPUT = Site("attention output", ".self_attn/output", (".self_attn.o_proj",))
MLP_INPUT = Site("MLP input", ".post_attention_layernorm", (".mlp.gate_proj", ".mlp.up_proj"))
MLP_OUTPUT = Site("MLP output", ".mlp", (".mlp.down_proj",))
SITES = (ATTENTION_INPUT, ATTENTION_OUTPUT, MLP_INPUT, MLP_OUTPUT)


class Moments:
    """Sums over everything that one site gave.

    Args:
        width: Channels.
        block: Channels whose products are summed together, a divisor of `width`; `width` for all
            of them, 1 for squares only.

    State:
        `add` while the layer runs, `close` once; the rest afterwards. `divide` is for good: at
        full size there is no room for a second matrix.
    """

    def __init__(self, width: int, block: int) -> None:
        self.width = width
        self.block = block
        self.num_rows = 0
        self.magnitude = np.zeros(width, np.float32)
        """Mean magnitude of each channel, float32 [width]."""
        self.products = np.zeros((width // block, block, block), np.float32)
        """Mean products of channels, float32 [width / block, block, block]."""
        self._sum = np.zeros(width, np.float64)
        self._waiting = np.empty((0, width), np.float32)
        self._num_waiting = 0

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Take in float32 [rows, width]."""
        if not len(self._waiting):
            self._waiting = np.empty((_ROWS_AT_ONCE, self.width), np.float32)
        start = 0
        while start < len(rows):
            part = rows[start : start + _ROWS_AT_ONCE - self._num_waiting]
            self._waiting[self._num_waiting : self._num_waiting + len(part)] = part
            self._num_waiting += len(part)
            start += len(part)
            if self._num_waiting == _ROWS_AT_ONCE:
                self._sum_up()

    def _sum_up(self) -> None:
        rows = self._waiting[: self._num_waiting]
        self.num_rows += len(rows)
        self._sum += np.abs(rows).sum(axis=0, dtype=np.float64)
        self._num_waiting = 0
        # Who reads the sums refuses what is no number.
        with np.errstate(over="ignore", invalid="ignore"):
            if self.block == self.width:
                self.products[0] += rows.T @ rows
                return
            parts = rows.reshape(len(rows), -1, self.block).transpose(1, 2, 0)
            self.products += np.matmul(parts, parts.transpose(0, 2, 1))

    def close(self) -> None:
        """Turn sums into means."""
        if self._num_waiting:
            self._sum_up()
        self._waiting = np.empty((0, self.width), np.float32)
        count = max(self.num_rows, 1)
        self.magnitude = (self._sum / count).astype(np.float32)
        self.products /= np.float32(count)

    def divide(self, factors: npt.NDArray[np.float32]) -> None:
        """Become what they are when every channel is divided by its factor, float32 [width]."""
        self.magnitude /= factors
        parts = factors.reshape(len(self.products), -1)
        self.products /= parts[:, :, None]
        self.products /= parts[:, None, :]

    def products_of(self, group_size: int) -> npt.NDArray[np.float32]:
        """Return mean products within smaller blocks.

        Args:
            group_size: A divisor of `block`; -1 for squares only.

        Returns:
            float32 [width / group, group, group], or [width, 1, 1].
        """
        group = 1 if group_size == -1 else group_size
        count = self.block // group
        parts = self.products.reshape(-1, count, group, count, group)
        same = np.arange(count)
        return parts[:, same, :, same, :].transpose(1, 0, 2, 3).reshape(-1, group, group)
