"""AWQ's factors, chosen by what the projections read: no node is added to the graph.

A channel that carries much must not be rounded as coarsely as one that carries little. Columns of
a weight are multiplied by a factor each, and what they read is divided by it where it is made: in
the norm before, in `v_proj` before `o_proj`, in `up_proj` before `down_proj`. The function stays.
Which factors are best is tried out on some rows of each weight.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qwen_edge.export.balance import Balance, apply_factors, make_factors, share_heads
from qwen_edge.export.calibrated.moments import SITES, Moments, Site
from qwen_edge.export.calibrated.rounding import fit_grid
from qwen_edge.export.decoder import DecoderSpec, layer_prefix

Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]

_STRENGTHS = tuple(step / 10 for step in range(11))
_SAMPLED_ROWS = 128  # of each weight, evenly spaced, on which factors are tried


def balance_layer(
    spec: DecoderSpec,
    layer_index: int,
    weights: Mapping[str, Matrix],
    moments: Mapping[Site, Moments],
    group_sizes: Mapping[str, int],
) -> Balance:
    """Choose the factors of one layer.

    Args:
        spec: The architecture.
        layer_index: From 0.
        weights: The layer's projections by name, float32 [out, in].
        moments: Of its four sites.
        group_sizes: Of the weights that will be int4 in groups; those that will not are absent,
            and have no say.
    """
    prefix = layer_prefix(layer_index)
    balance = Balance()
    # From the last: rows that a later site scales are those whose columns an earlier one does.
    for site in reversed([site for site in SITES if site in moments]):
        names = [f"{prefix}{reader}.weight" for reader in site.readers]
        coarse = {name: weights[name] for name in names if name in group_sizes}
        if not coarse:
            continue
        sizes = {name: group_sizes[name] for name in coarse}
        strength, factors = _choose(spec, site, coarse, moments[site], sizes, balance.rows)
        balance.strengths[site.name] = strength
        if factors is not None:
            apply_factors(spec, layer_index, site, factors, balance)
    return balance


# Weights too large for any scale are refused when they are stored.
@np.errstate(over="ignore", invalid="ignore")
def _choose(
    spec: DecoderSpec,
    site: Site,
    weights: Mapping[str, Matrix],
    moments: Moments,
    group_sizes: Mapping[str, int],
    row_factors: Mapping[str, Vector],
) -> tuple[float | None, Vector | None]:
    """Return the strength that costs the output least, and its factors.

    Args:
        spec: The architecture.
        site: What the weights read.
        weights: All that read the site and are rounded coarsely.
        moments: Of the site.
        group_sizes: Of each of them.
        row_factors: What rows of some of them will be multiplied by.
    """
    carried = moments.magnitude
    scaled = {name: row_factors.get(name, _ones(weight)) for name, weight in weights.items()}
    sizes = np.mean(
        [scaled[name] @ np.abs(weight) / len(weight) for name, weight in weights.items()], axis=0
    )
    carried, sizes = (share_heads(spec, site, values) for values in (carried, sizes))
    if not carried.any() or not sizes.any():
        return None, None
    samples = {}
    for name, weight in weights.items():
        picked = _spread(len(weight))
        samples[name] = weight[picked] * scaled[name][picked, None]

    def cost(factors: Vector | None) -> float:
        return sum(
            _rounding_cost(rows, factors, moments, group_sizes[name])
            for name, rows in samples.items()
        )

    best: tuple[float | None, Vector | None] = (None, None)
    lowest = cost(None)
    for strength in _STRENGTHS:
        factors = make_factors(carried, sizes, strength)
        found = cost(factors)
        if found < lowest:
            best, lowest = (strength, factors), found
    return best


def _rounding_cost(
    rows: Matrix, factors: Vector | None, moments: Moments, group_size: int
) -> float:
    """Return what rounding some rows to nearest costs the output, with factors on the columns."""
    width = rows.shape[1]
    group = width if group_size == -1 else group_size
    scaled = rows if factors is None else rows * factors
    columns = scaled.reshape(len(rows), -1, group).transpose(2, 0, 1).reshape(group, -1)
    grid = fit_grid(columns, np.empty(0, np.float32), symmetric=True, searches=False)
    errors = columns - grid.nearest(columns) * grid.scale
    by_row = errors.reshape(group, len(rows), -1).transpose(1, 2, 0).reshape(len(rows), width)
    if factors is not None:
        by_row = by_row / factors
    parts = by_row.reshape(len(rows), -1, moments.block).transpose(1, 0, 2)
    return float((np.matmul(parts, moments.products) * parts).sum(dtype=np.float64))


def _ones(weight: Matrix) -> Vector:
    return np.ones(len(weight), np.float32)


def _spread(num_rows: int) -> npt.NDArray[np.intp]:
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, _SAMPLED_ROWS)).astype(np.intp))
