"""From what each matrix costs in each format to the best choice for any size.

Losses of matrices are taken to add up. Then the best choices lie on a line that is walked from the
smallest model up, always storing better the matrix that gains most KL for a byte. Every stop of
the walk is the best model of its size.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwen_edge.export.packed_size import matrix_bytes
from qwen_edge.export.recipe_search.sensitivity import MatrixCost
from qwen_edge.profiles.matrix_format import MatrixFormat


@dataclass(frozen=True)
class _Step:
    """Storing one matrix better.

    Args:
        name: Tensor name.
        format: What it gets.
        num_bytes: More of them.
        gain: Of KL.
    """

    name: str
    format: MatrixFormat
    num_bytes: int
    gain: float


@dataclass(frozen=True)
class Point:
    """One model on the frontier.

    Args:
        num_steps: Steps that lead to it.
        num_bytes: Of all weights.
        kl: Expected, in nats.
        extra: Later steps that a size still has room for, by their place in the walk.
    """

    num_steps: int
    num_bytes: int
    kl: float
    extra: tuple[int, ...] = ()


class Frontier:
    """The best models of all sizes.

    Args:
        costs: Of every matrix of the layers; each has the same formats.
        other_bytes: Of all that is stored in one way only.
    """

    def __init__(self, costs: Sequence[MatrixCost], other_bytes: int) -> None:
        self._first: dict[str, MatrixFormat] = {}
        steps: list[_Step] = []
        num_bytes, kl = other_bytes, 0.0
        for cost in costs:
            first, *better = _hull(cost)
            self._first[cost.name] = first[0]
            num_bytes += first[1]
            kl += first[2]
            for before, after in zip([first, *better], better, strict=False):
                steps.append(_Step(cost.name, after[0], after[1] - before[1], before[2] - after[2]))
        # Within a matrix gains per byte fall, so its steps stay in order.
        self._steps = sorted(steps, key=lambda step: -step.gain / step.num_bytes)
        self.points = [Point(0, num_bytes, kl)]
        for index, step in enumerate(self._steps, 1):
            num_bytes, kl = num_bytes + step.num_bytes, kl - step.gain
            self.points.append(Point(index, num_bytes, max(kl, 0.0)))

    def formats(self, point: Point) -> dict[str, MatrixFormat]:
        """Return the format of every matrix, by tensor name."""
        taken = [*self._steps[: point.num_steps], *(self._steps[index] for index in point.extra)]
        return self._first | {step.name: step.format for step in taken}

    def within_bytes(self, num_bytes: int) -> Point | None:
        """Return a model that is no larger; None where the smallest is.

        It is the last stop of the walk before the size, and what later steps there is room for.
        """
        index = bisect_right(self.points, num_bytes, key=lambda point: point.num_bytes)
        if not index:
            return None
        point = self.points[index - 1]
        room, kl = num_bytes - point.num_bytes, point.kl
        extra, left_out = [], set()
        for place, step in enumerate(self._steps[point.num_steps :], point.num_steps):
            if step.name in left_out:
                continue
            if step.num_bytes > room:
                left_out.add(step.name)  # its next step builds on this one
                continue
            extra.append(place)
            room, kl = room - step.num_bytes, kl - step.gain
        if not extra:
            return point
        return Point(point.num_steps, num_bytes - room, max(kl, 0.0), tuple(extra))

    def within_kl(self, kl: float) -> Point | None:
        """Return the smallest model that loses no more; None where the largest does."""
        return next((point for point in self.points if point.kl <= kl), None)

    def sample(self, count: int) -> list[Point]:
        """Return points evenly spread over the sizes, the ends among them."""
        low, high = self.points[0].num_bytes, self.points[-1].num_bytes
        wanted = (low + (high - low) * index // (count - 1) for index in range(count))
        found = dict.fromkeys(self.within_bytes(num_bytes) for num_bytes in wanted)
        return [point for point in found if point is not None]


def _hull(cost: MatrixCost) -> list[tuple[MatrixFormat, int, float]]:
    """Return the formats worth choosing, from the smallest: each gains less for a byte."""
    sizes: Mapping[MatrixFormat, int] = {one: matrix_bytes(one, *cost.shape) for one in cost.kl}
    options = sorted((sizes[one], kl, str(one), one) for one, kl in cost.kl.items())
    hull: list[tuple[MatrixFormat, int, float]] = []
    for num_bytes, kl, _, one in options:
        if hull and kl >= hull[-1][2]:
            continue  # no smaller and no better
        while len(hull) >= 2 and _gain(hull[-2], (one, num_bytes, kl)) >= _gain(*hull[-2:]):
            hull.pop()
        if hull and hull[-1][1] == num_bytes:
            hull.pop()
        hull.append((one, num_bytes, kl))
    return hull


def _gain(before: tuple[MatrixFormat, int, float], after: tuple[MatrixFormat, int, float]) -> float:
    return (before[2] - after[2]) / (after[1] - before[1])
