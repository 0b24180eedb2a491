"""Plots as SVG text: the same bytes for the same numbers, no fonts fetched, light or dark.

Colours are CSS variables of the page that a plot stands in, so it follows the page. Numbers have
one decimal of a unit, so that nothing depends on how a machine prints floats.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 440.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 10.0, 12.0, 40.0
_GRID_LEFT, _CELL = 70.0, 20.0  # of a map: room for its rows' names, largest side of a cell
_NUM_STEPS = 5
_NICE = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0)  # a fifth of each is short
_MAX_MARKED = 48  # points; of more a line alone can be told apart


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        name: For the legend.
        colour: A CSS colour, such as "var(--first)".
        values: From left to right; as many in all lines of a plot.
        is_dashed: So that lines can be told apart without colours.
    """

    name: str
    colour: str
    values: Sequence[float]
    is_dashed: bool = False


def plot_lines(lines: Sequence[Line], *, title: str, x_name: str, unit: str = "") -> str:
    """Return a plot of lines over 0, 1, 2, … as an SVG element.

    Args:
        lines: At least one, each with a value at least; finite and not negative.
        title: What a reader who cannot see it is told.
        x_name: Under the axis.
        unit: After the numbers at the other axis.

    Raises:
        ValueError: There is nothing to draw, or lines have different lengths.
    """
    count = len(lines[0].values) if lines else 0
    if not count or any(len(line.values) != count for line in lines):
        raise ValueError("a plot needs lines of the same length, of a value at least")
    top = _round_up(max(max(line.values) for line in lines))
    parts = [
        *_begin(title),
        *_grid(top, unit),
        *_ticks(count, x_name),
    ]
    for line in lines:
        points = [(_x(i, count), _y(value / top)) for i, value in enumerate(line.values)]
        parts += _line(line, points)
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True)
class Curve:
    """A falling curve with some of its points marked.

    Args:
        points: (x, y) from left to right; x may be any number, y is 0 or more.
        marks: Points that get a dot.
        chosen: The one that gets a ring.
    """

    points: Sequence[tuple[float, float]]
    marks: Sequence[tuple[float, float]]
    chosen: tuple[float, float]


def plot_curve(curve: Curve, *, title: str, x_name: str) -> str:
    """Return a plot of a curve as an SVG element, with a logarithmic axis for y.

    Args:
        curve: At least one point; a y of 0 lies on the floor.
        title: What a reader who cannot see it is told.
        x_name: Under the axis.

    Raises:
        ValueError: There is nothing to draw.
    """
    if not curve.points:
        raise ValueError("a plot needs a point at least")
    every = [*curve.points, *curve.marks, curve.chosen]
    steps_x = _linear_steps(min(x for x, _ in every), max(x for x, _ in every))
    steps_y = _log_steps([y for _, y in every if y > 0])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        low, high = math.log(steps_y[0]), math.log(steps_y[-1])
        value = math.log(max(point[1], steps_y[0]))
        share = (point[0] - steps_x[0]) / (steps_x[-1] - steps_x[0])
        return _x_of(share), _y((value - low) / (high - low))

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, curve.points))
    x, y = place(curve.chosen)
    return "\n".join(
        [
            *_begin(title),
            *(part for step in steps_y for part in _rule(place((0, step))[1], f"{step:g}")),
            *(_tick(place((step, 1))[0], f"{step:.4g}") for step in steps_x),
            _axis_name(x_name),
            f'<polyline points="{path}" fill="none" stroke="var(--first)" stroke-width="2"/>',
            *(
                f'<circle cx="{mark_x:.1f}" cy="{mark_y:.1f}" r="2.5" fill="var(--first)"/>'
                for mark_x, mark_y in map(place, curve.marks)
            ),
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="var(--second)" '
            'stroke-width="2.5"/>',
            "</svg>",
        ]
    )


def plot_grid(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, title: str, x_name: str
) -> str:
    """Return a map of cells as an SVG element.

    Args:
        rows: A name and cells, each a CSS colour and an opacity; as many cells in all rows.
        title: What a reader who cannot see it is told.
        x_name: Under the axis, whose numbers count from 0.

    Raises:
        ValueError: There is nothing to draw, or rows have different lengths.
    """
    count = len(rows[0][1]) if rows else 0
    if not count or any(len(cells) != count for _, cells in rows):
        raise ValueError("a map needs rows of the same length, of a cell at least")
    width = min((_WIDTH - _GRID_LEFT - _RIGHT) / count, _CELL)
    bottom = _TOP + _CELL * len(rows)
    parts = _begin(title, bottom + _BOTTOM)
    for index, (name, cells) in enumerate(rows):
        y = _TOP + _CELL * index
        parts.append(
            f'<text x="{_GRID_LEFT - 6:g}" y="{y + 14:.1f}" text-anchor="end">{_text(name)}</text>'
        )
        for column, (colour, opacity) in enumerate(cells):
            parts.append(
                f'<rect x="{_GRID_LEFT + width * column:.1f}" y="{y:.1f}" width="{width - 1:.1f}" '
                f'height="{_CELL - 1:.1f}" fill="{colour}" fill-opacity="{opacity:g}"/>'
            )
    every = max(1, math.ceil(count / 12))
    parts += [
        f'<text x="{_GRID_LEFT + width * (index + 0.5):.1f}" y="{bottom + 16:.1f}" '
        f'text-anchor="middle">{index}</text>'
        for index in range(0, count, every)
    ]
    parts.append(
        f'<text x="{_GRID_LEFT + width * count / 2:.1f}" y="{bottom + 34:.1f}" '
        f'text-anchor="middle">{_text(x_name)}</text>'
    )
    return "\n".join([*parts, "</svg>"])


def _begin(title: str, height: float = _HEIGHT) -> list[str]:
    return [
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{_text(title)}">',
        f"<title>{_text(title)}</title>",
    ]


def _line(line: Line, points: Sequence[tuple[float, float]]) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 3"' if line.is_dashed else ""
    parts = [
        f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>'
    ]
    if len(points) <= _MAX_MARKED:
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{line.colour}"/>' for x, y in points
        ]
    return parts


def _grid(top: float, unit: str) -> list[str]:
    parts = []
    for step in range(_NUM_STEPS + 1):
        label = f"{top * step / _NUM_STEPS:.4g}{unit}"
        parts += _rule(_y(step / _NUM_STEPS), label)
    return parts


def _rule(y: float, label: str) -> list[str]:
    """Return a line across the plot and the number beside it."""
    return [
        f'<line x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}" '
        'stroke="var(--rule)"/>',
        f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{_text(label)}</text>',
    ]


def _tick(x: float, label: str) -> str:
    """Return a number under the plot."""
    return (
        f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16:.1f}" '
        f'text-anchor="middle">{_text(label)}</text>'
    )


def _axis_name(name: str) -> str:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return f'<text x="{middle:.1f}" y="{_HEIGHT - 6:.1f}" text-anchor="middle">{_text(name)}</text>'


def _ticks(count: int, x_name: str) -> list[str]:
    every = max(1, math.ceil(count / 12))
    parts = [_tick(_x(index, count), f"{index}") for index in range(0, count, every)]
    return [*parts, _axis_name(x_name)]


def _linear_steps(low: float, high: float) -> list[float]:
    """Return round numbers from below `low` to above `high`."""
    span = high - low if high > low else abs(high) or 1.0
    step = _round_up(span / _NUM_STEPS)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [step * index for index in range(first, last + 1)]


def _log_steps(values: Sequence[float]) -> list[float]:
    """Return powers of ten around numbers, and between few of them 2 and 5."""
    low = math.floor(math.log10(min(values, default=1.0)))
    high = math.ceil(math.log10(max(values, default=1.0)))
    high = max(high, low + 1)
    every = max(1, math.ceil((high - low) / 8))
    inner = (1, 2, 5) if high - low <= 2 else (1,)
    steps = [digit * 10.0**power for power in range(low, high, every) for digit in inner]
    return [*steps, 10.0 ** (low + every * math.ceil((high - low) / every))]


def _x(index: int, count: int) -> float:
    return _x_of(index / (count - 1) if count > 1 else 0.5)


def _x_of(share: float) -> float:
    return _LEFT + 6 + (_WIDTH - _LEFT - _RIGHT - 12) * share


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _round_up(value: float) -> float:
    """Return a round number that is no smaller, so that steps of the axis are round as well."""
    if value <= 0:
        return 1.0
    value = max(value, 1e-30)  # the smallest floats have no power of ten below them
    power = 10.0 ** math.floor(math.log10(value))
    return next(nice * power for nice in (*_NICE, 20.0) if nice * power >= value)


def _text(text: str) -> str:
    return html.escape(text, quote=True)
