"""What storing each matrix in each format costs, in KL of the model's predictions.

A layer's loss is measured: it is compressed alone, and what it then gives goes through the exact
layers behind it. Among its matrices the loss is shared out by how far each alone moves what the
layer gives, and among formats by what each costs the matrix's own output, on texts that the
rounding did not see. All layers are done in one pass, with one layer in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_edge.export.array_weights import ArrayWeights
from qwen_edge.export.balance import Balance
from qwen_edge.export.calibrated.activations import LayerRun
from qwen_edge.export.calibrated.balance import balance_layer
from qwen_edge.export.calibrated.moments import SITES, Moments, Site
from qwen_edge.export.calibrated.rounding import round_with_gptq, round_with_scales
from qwen_edge.export.calibration_texts import spread_evenly
from qwen_edge.export.checkpoint import Checkpoint
from qwen_edge.export.compress import dequantise, fit_format, mode_of
from qwen_edge.export.decoder import DecoderSpec, layer_prefix
from qwen_edge.export.quality.layerwise import (
    CheckpointWeights,
    Hidden,
    embed_texts,
    iterate_logits,
)
from qwen_edge.export.quality.statistics import compare_logits
from qwen_edge.export.quantise import Quantised, quantise
from qwen_edge.profiles.matrix_format import FOUR_BITS, MatrixFormat
from qwen_edge.profiles.recipe import Recipe

PROBE_TOKENS = 1_024
"""Tokens whose predictions are compared; each goes through half of all layers for every layer."""
MOMENT_TOKENS = 8_192
"""Tokens that rounding, and judging it, sees: half of them each."""
STEP = "measure sensitivity"
_SAMPLED_ROWS = 128
_GPTQ_WIDTH = 4_096  # wider ones take its factor from the layer's others: 6 s each otherwise

Matrix = npt.NDArray[np.float32]
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MatrixCost:
    """One matrix and what its formats cost.

    Args:
        name: Tensor name.
        shape: (out, in).
        kl: Format -> expected mean KL, in nats, of a model where only this matrix is so stored.
    """

    name: str
    shape: tuple[int, int]
    kl: Mapping[MatrixFormat, float]


@dataclass(frozen=True)
class _LayerShares:
    """What one layer's matrices cost, up to the layer's own loss.

    Args:
        shares: Tensor name -> its share of the layer's loss, all together 1.
        costs: Tensor name -> format -> cost by that of the form that was measured.
    """

    shares: dict[str, float]
    costs: dict[str, dict[MatrixFormat, float]]


def measure_sensitivity(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    recipe: Recipe,
    candidates: Sequence[MatrixFormat],
    samples: Sequence[Sequence[int]],
    report: Report,
) -> tuple[MatrixCost, ...]:
    """Measure what each format costs each matrix of the layers.

    Args:
        spec: The architecture.
        checkpoint: Its tensors.
        recipe: Its methods; its layer format is the one that is measured in full.
        candidates: Formats to be compared.
        samples: Calibration text as token ids.
        report: Told of every layer.

    Raises:
        CheckpointError: A layer gives no numbers.
        DeviceError: The CPU refuses a layer.
    """
    texts, num_probes = _choose_texts(samples)
    exact = embed_texts(checkpoint, texts)
    moved: list[list[Hidden]] = []
    layers = []
    for layer_index in range(spec.num_layers):
        report(STEP, layer_index, spec.num_layers + 1)
        before = exact[:num_probes]
        weights = CheckpointWeights(checkpoint)
        layer = LayerRun(spec, weights, layer_index, SITES)
        halves = [_make_moments(spec, layer_index, recipe, candidates) for _ in range(2)]
        exact = [_run_and_sum(layer, rows, halves[i % 2]) for i, rows in enumerate(exact)]
        moved = [[layer.run(rows)[0] for rows in stream] for stream in moved]
        del layer
        weights.release()
        for summed in (*halves[0].values(), *halves[1].values()):
            summed.close()
        work = _LayerWork(spec, checkpoint, layer_index, recipe, halves[0], halves[1])
        layers.append(work.compare(candidates, before, exact[:num_probes]))
        moved.append(work.after)
    report(STEP, spec.num_layers, spec.num_layers + 1)
    losses = _measure_losses(spec, checkpoint, exact[:num_probes], moved)
    report(STEP, spec.num_layers + 1, spec.num_layers + 1)
    shapes = spec.tensor_shapes()
    found = []
    for loss, layer_shares in zip(losses, layers, strict=True):
        for name, share in layer_shares.shares.items():
            kl = {one: loss * share * cost for one, cost in layer_shares.costs[name].items()}
            found.append(MatrixCost(name, (shapes[name][0], shapes[name][1]), kl))
    return tuple(found)


class _LayerWork:
    """One layer's matrices, balanced and rounded in several ways.

    State:
        `after` is what the layer gives when all of it is compressed, once `compare` was called.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        checkpoint: Checkpoint,
        layer_index: int,
        recipe: Recipe,
        seen: Mapping[Site, Moments],
        unseen: Mapping[Site, Moments],
    ) -> None:
        self._spec = spec
        self._layer_index = layer_index
        self._recipe = recipe
        self._seen = seen
        self._unseen = unseen
        self._arrays = {name: checkpoint.float32(name) for name in spec.layer_shapes(layer_index)}
        self._names = list(spec.linear_shapes(layer_index))
        self._balance = self._make_balance()
        for factors in (self._balance.norms, self._balance.rows):
            for name, values in factors.items():
                array = self._arrays[name]
                array *= values if array.ndim == 1 else values[:, None]
        for name, values in self._balance.columns.items():
            self._arrays[name] *= values
        for site, values in self._balance.sites.items():
            self._seen[site].divide(values)
        self.after: list[Hidden] = []

    def _make_balance(self) -> Balance:
        if not self._recipe.awq:
            return Balance()
        sizes = {}
        for name in self._names:
            found = fit_format(self._recipe.layer_format, self._arrays[name].shape[1])
            sizes[name] = found.group_size
        weights = {name: self._arrays[name] for name in self._names}
        return balance_layer(self._spec, self._layer_index, weights, self._seen, sizes)

    def compare(
        self, candidates: Sequence[MatrixFormat], before: Sequence[Hidden], exact: Sequence[Hidden]
    ) -> _LayerShares:
        """Return what the matrices cost, relative to the layer's loss.

        Args:
            candidates: Formats.
            before: What the layer reads of the probes.
            exact: What it gives to them.
        """
        base = {}
        for name in self._names:
            found = fit_format(self._recipe.layer_format, self._arrays[name].shape[1])
            base[name] = self._round(name, self._arrays[name], found, searches=True)
        self.after = self._run(base, before)
        moved = {name: _distance(self._run({name: base[name]}, before), exact) for name in base}
        total = sum(moved.values())
        shares = {name: value / total if total else 0.0 for name, value in moved.items()}
        costs = {name: self._compare_formats(name, base[name], candidates) for name in base}
        return _LayerShares(shares, self._with_gptq(costs))

    def _compare_formats(
        self, name: str, base: Matrix, candidates: Sequence[MatrixFormat]
    ) -> dict[MatrixFormat, tuple[float, float | None]]:
        """Return costs by that of `base`: without GPTQ, and with it where it was tried."""
        weights = self._arrays[name]
        rows = _spread(len(weights))
        measured = self._cost(name, rows, base[rows])
        costs: dict[MatrixFormat, tuple[float, float | None]] = {}
        for wanted in candidates:
            found = fit_format(wanted, weights.shape[1])
            plain = self._cost(name, rows, self._round(name, weights[rows], found, searches=True))
            with_gptq = None
            if self._uses_gptq(name) and found.weights == "int4":
                rounded = self._round(name, weights[rows], found, searches=False)
                with_gptq = self._cost(name, rows, rounded) / measured if measured else 0.0
            costs[wanted] = (plain / measured if measured else 0.0, with_gptq)
        return costs

    def _with_gptq(
        self, costs: Mapping[str, Mapping[MatrixFormat, tuple[float, float | None]]]
    ) -> dict[str, dict[MatrixFormat, float]]:
        """Return costs as the recipe's method has them; wide matrices gain what others do."""
        found: dict[str, dict[MatrixFormat, float]] = {name: {} for name in costs}
        for wanted in next(iter(costs.values())):
            pairs = [costs[name][wanted] for name in costs]
            gains = [b / a for a, b in pairs if b is not None and a]
            gain = float(np.mean(gains)) if gains else 1.0
            for name in costs:
                plain, with_gptq = costs[name][wanted]
                is_coarse = self._recipe.gptq and wanted.weights == "int4"
                estimated = plain * gain if is_coarse else plain
                found[name][wanted] = estimated if with_gptq is None else with_gptq
        return found

    def _uses_gptq(self, name: str) -> bool:
        return self._recipe.gptq and self._arrays[name].shape[1] <= _GPTQ_WIDTH

    def _round(self, name: str, rows: Matrix, found: MatrixFormat, *, searches: bool) -> Matrix:
        """Return what rows become; by scales alone where `searches`, else by GPTQ."""
        size, symmetric = found.group_size, found.symmetric
        if found.weights == "fp16":
            return rows.astype(np.float16).astype(np.float32)
        has_method = self._recipe.scale_estimation or self._recipe.gptq
        if found.weights != "int4" or not has_method:
            done = quantise(rows, "F32", mode_of(found), size)
        else:
            moments = _find(self._seen, name)
            if searches:
                products = moments.products_of(size)
                done = round_with_scales(rows, products, size, symmetric=symmetric)
            else:
                products = moments.products[0]
                done = round_with_gptq(rows, products, size, symmetric=symmetric)
        return _values(done, found)

    def _cost(self, name: str, rows: npt.NDArray[np.intp], rounded: Matrix) -> float:
        """Return what rounding some rows costs the matrix's output on unseen texts."""
        errors = self._arrays[name][rows] - rounded
        if (columns := self._balance.columns.get(name)) is not None:
            errors /= columns
        if (factors := self._balance.rows.get(name)) is not None:
            errors /= factors[rows][:, None]
        moments = _find(self._unseen, name)
        parts = errors.reshape(len(rows), -1, moments.block).transpose(1, 0, 2)
        return float((np.matmul(parts, moments.products) * parts).sum(dtype=np.float64))

    def _run(self, changed: Mapping[str, Matrix], hidden: Sequence[Hidden]) -> list[Hidden]:
        """Return what the layer gives with some matrices in the place of its own."""
        weights = ArrayWeights(self._arrays | dict(changed))
        layer = LayerRun(self._spec, weights, self._layer_index)
        return [layer.run(rows)[0] for rows in hidden]


def _run_and_sum(layer: LayerRun, rows: Hidden, moments: Mapping[Site, Moments]) -> Hidden:
    after, values = layer.run(rows)
    for site, found in values.items():
        moments[site].add(found)
    return after


def _make_moments(
    spec: DecoderSpec, layer_index: int, recipe: Recipe, candidates: Sequence[MatrixFormat]
) -> dict[Site, Moments]:
    shapes = spec.linear_shapes(layer_index)
    moments = {}
    for site in SITES:
        width = shapes[f"{layer_prefix(layer_index)}{site.readers[0]}.weight"][1]
        found = [fit_format(one, width) for one in (*candidates, recipe.layer_format)]
        groups = [one.group_size for one in found if one.weights in FOUR_BITS]
        is_full = recipe.gptq and width <= _GPTQ_WIDTH
        moments[site] = Moments(width, width if is_full else max(*groups, 1))
    return moments


def _find(moments: Mapping[Site, Moments], name: str) -> Moments:
    return next(
        found
        for site, found in moments.items()
        if name.removesuffix(".weight").endswith(site.readers)
    )


def _values(done: Quantised, found: MatrixFormat) -> Matrix:
    parts = {"values": done.values, "scale": done.scale}
    if done.zero_point is not None:
        parts["zero_point"] = done.zero_point
    return dequantise(parts, found.weights)


def _measure_losses(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    exact: Sequence[Hidden],
    moved: Sequence[Sequence[Hidden]],
) -> list[float]:
    """Return each layer's mean KL, in nats."""
    sums, count = np.zeros(len(moved)), 0
    for index, rows in enumerate(exact):
        streams = [iterate_logits(spec, checkpoint, stream[index]) for stream in moved]
        for expected in iterate_logits(spec, checkpoint, rows):
            following = [None] * len(expected)
            for layer_index, stream in enumerate(streams):
                scores = compare_logits(expected, next(stream), following)
                sums[layer_index] += scores.kl.sum()
            count += len(expected)
    return [float(value) for value in sums / count]


def _distance(found: Sequence[Hidden], exact: Sequence[Hidden]) -> float:
    return sum(float(np.square(a - b).sum()) for a, b in zip(found, exact, strict=True))


def _choose_texts(samples: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], int]:
    """Return texts spread over all samples, the probes first, and how many of them are probes."""
    mean = sum(map(len, samples)) / len(samples)
    texts = spread_evenly(samples, max(2, round(MOMENT_TOKENS / mean)))
    probes = spread_evenly(range(len(texts)), max(1, round(PROBE_TOKENS / mean)))
    rest = [index for index in range(len(texts)) if index not in set(probes)]
    return [texts[index] for index in (*probes, *rest)], len(probes)


def _spread(num_rows: int) -> npt.NDArray[np.intp]:
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, _SAMPLED_ROWS)).astype(np.intp))
