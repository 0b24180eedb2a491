"""The frontier of a recipe search as a short table: what a person chooses a budget by.

Sizes, losses and bytes a token only: how fast a machine reads these bytes is measured by whoever
shows the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.packed_size import embedding_bytes
from qwen_edge.export.recipe_search.frontier import Point
from qwen_edge.export.recipe_search.search import SearchResult

_NUM_LINES = 10


@dataclass(frozen=True)
class FrontierLine:
    """One model that could be had.

    Args:
        weights_bytes: Of all weights.
        kl: Expected, in nats.
        bytes_per_token: Read for every new token.
        is_chosen: It is the one that the budget or the ratio comes to.
    """

    weights_bytes: int
    kl: float
    bytes_per_token: int
    is_chosen: bool


@dataclass(frozen=True)
class FrontierTable:
    """Lines over the whole frontier, from the smallest model.

    Args:
        recipe: Name of the recipe that was found.
        lines: About ten, the chosen one among them.
        num_tokens: About how many of the calibration text, which the losses are expected from.
    """

    recipe: str
    lines: tuple[FrontierLine, ...]
    num_tokens: int

    @property
    def chosen(self) -> FrontierLine:
        """The line of the recipe that was found."""
        return next(line for line in self.lines if line.is_chosen)

    @property
    def sizes(self) -> list[str]:
        """The size of each line, all in one unit."""
        return format_sizes([line.weights_bytes for line in self.lines])


def make_table(search: SearchResult, spec: DecoderSpec) -> FrontierTable:
    """Return a search's frontier as a table.

    Args:
        search: A search.
        spec: The decoder it was made for.
    """
    unread = unread_bytes(search, spec)
    sample = [point for point in search.frontier.sample(_NUM_LINES) if point != search.point]
    points = sorted([*sample, search.point], key=lambda point: point.num_bytes)
    return FrontierTable(
        search.recipe.name,
        tuple(_line(point, unread, is_chosen=point == search.point) for point in points),
        search.num_tokens,
    )


def unread_bytes(search: SearchResult, spec: DecoderSpec) -> int:
    """Return the bytes of which a token reads one row: an embedding that is not the head."""
    embedded, head = embedding_bytes(search.recipe, spec)
    return embedded if head else 0


def _line(point: Point, unread: int, *, is_chosen: bool) -> FrontierLine:
    return FrontierLine(point.num_bytes, point.kl, point.num_bytes - unread, is_chosen)


def format_sizes(sizes: Sequence[int]) -> list[str]:
    """Return sizes in MB, or in GB where the largest has one, with digits enough to differ.

    Args:
        sizes: At least one, in bytes.
    """
    if max(sizes) >= 10**9:
        return [f"{size / 1e9:,.3f} GB" for size in sizes]
    return [f"{size / 1e6:,.2f} MB" for size in sizes]
