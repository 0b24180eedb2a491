"""Read the texts with a checkpoint and with a package of it, and compare what they predict.

The checkpoint is read in float32, and the package up to three times: its weights in float32, which
is what compression alone costs; with activations rounded as its settings say; and as it runs, with
the cache rounded as well. Checkpoint and weights go layer by layer, so the whole never has to fit
in memory; the runs come one after the other, so that no two models are in memory at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import CheckpointError
from qwen_edge.export.checkpoint import Checkpoint
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.openvino_graph import WeightSource, build_head_model
from qwen_edge.export.quality.layerwise import (
    EXACT_PROPERTIES,
    CheckpointWeights,
    Hidden,
    embed_texts,
    embed_with,
    iterate_logits,
    run_checkpoint,
    run_layer,
)
from qwen_edge.export.quality.statistics import (
    Figures,
    PositionScores,
    compare_logits,
    join_scores,
    select_scores,
    summarise,
)
from qwen_edge.export.quality.texts import QualityText
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.backends.checks import check_finite
from qwen_edge.runtime.backends.compiling import compile_model

POSITION_BANDS = ((0, 16), (16, 64), (64, 256), (256, 512))
# Enough for what a layer alone loses, which is a mean over numbers of all channels. With all tokens
# it would be a third of all the work.
_ALONE_TOKENS = 256


@dataclass(frozen=True)
class LayerLoss:
    """How far a layer's output is from the checkpoint's: norm of the difference by that of it.

    Args:
        alone: When it reads what the checkpoint's layer reads.
        carried: When it reads what the package's layers before it gave.
    """

    alone: float
    carried: float


@dataclass(frozen=True)
class Loss:
    """What one reading of the package lost.

    Args:
        total: Of all texts.
        by_kind: Of each kind of text.
        by_position: Of positions from the first number to below the second, where there are any.
    """

    total: Figures
    by_kind: dict[str, Figures]
    by_position: dict[tuple[int, int], Figures]


@dataclass(frozen=True)
class Quality:
    """What an export lost.

    Args:
        weights: By its weights alone, everything else exact; None where that was not measured.
        activations: With the device's arithmetic and an exact cache; None where it was not run so.
        as_run: As it runs with its settings; None where it was not run.
        layers: By the weights of each layer; none where they were not measured.
        num_tokens: Tokens that were read.
    """

    weights: Loss | None
    activations: Loss | None
    as_run: Loss | None
    layers: tuple[LayerLoss, ...]
    num_tokens: int


Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many parts are."""

Opener = Callable[[], Backend | None]
"""Opens the package to be run, with an empty cache; None where it cannot be run so."""

_Rows = Callable[[int, int, int], npt.NDArray[np.float32]]
"""Logits of a text from one position to below another; texts and positions come in order."""


def measure_quality(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    weights: WeightSource | None,
    texts: Sequence[QualityText],
    *,
    as_run: Opener | None = None,
    activations: Opener | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Quality:
    """Compare a package with its checkpoint.

    Args:
        spec: The architecture of both.
        checkpoint: Its tensors.
        weights: The package's; None to leave out what they alone cost.
        texts: At least one; as the checkpoint's tokenizer cuts them.
        as_run: Opens the package as it runs. It is closed before the next one is opened.
        activations: Opens it with an exact cache.
        progress: Told of each layer and text.

    Raises:
        CheckpointError: The checkpoint itself gives logits that are no finite numbers.
        DeviceError: The CPU refuses a layer, or a backend stopped.
        PackageError: The package lacks a tensor.
        ParityError: The package gives logits that are no finite numbers.
        ValueError: There are no texts.
    """
    if not texts:
        raise ValueError("there are no texts to measure with")
    layers: tuple[LayerLoss, ...] = ()
    by_weights = None
    if weights is None:
        expected = _run_reference(spec, checkpoint, texts, progress)
        comparison = _Comparison(spec, checkpoint, texts, expected, progress)
    else:
        expected, found, layers = _run_layers(spec, checkpoint, weights, texts, progress)
        comparison = _Comparison(spec, checkpoint, texts, expected, progress)
        by_weights = comparison.compare("comparing weights", _make_head(spec, weights, found))
        del found
    return Quality(
        weights=by_weights,
        as_run=comparison.run("running the package", as_run),
        activations=comparison.run("running it with an exact cache", activations),
        layers=layers,
        num_tokens=sum(len(text.token_ids) for text in texts),
    )


@dataclass(frozen=True)
class _Comparison:
    """The checkpoint's side of every reading."""

    spec: DecoderSpec
    checkpoint: Checkpoint
    texts: Sequence[QualityText]
    expected: Sequence[Hidden]
    progress: Progress

    def run(self, what: str, opener: Opener | None) -> Loss | None:
        """Open the package, compare what it says, and close it."""
        if opener is None:
            return None
        self.progress(what, 0, len(self.texts))
        backend = opener()
        if backend is None:
            return None
        try:
            return self.compare(what, lambda *place: self._read(backend, *place))
        finally:
            backend.close()

    def compare(self, what: str, rows_of: _Rows) -> Loss:
        """Return what a reading lost. The checkpoint's logits are computed again for each.

        They take seconds; kept for all positions they would take gigabytes.
        """
        scores = []
        for index, text in enumerate(self.texts):
            self.progress(what, index, len(self.texts))
            following = [*text.token_ids[1:], None]
            parts = []
            for start, logits in self._iterate(index):
                stop = start + len(logits)
                rows = rows_of(index, start, stop)
                parts.append(compare_logits(logits, rows, following[start:stop]))
            scores.append(join_scores(parts))
        self.progress(what, len(self.texts), len(self.texts))
        return sum_up(self.texts, scores)

    def _iterate(self, index: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        start = 0
        for logits in iterate_logits(self.spec, self.checkpoint, self.expected[index]):
            _check_reference(logits, self.texts[index])
            yield start, logits
            start += len(logits)

    def _read(self, backend: Backend, index: int, start: int, stop: int) -> npt.NDArray[np.float32]:
        if start == 0:
            backend.reset()
        return _read(backend, self.texts[index].token_ids[start:stop])


def _make_head(spec: DecoderSpec, weights: WeightSource, found: Sequence[Hidden]) -> _Rows:
    """Return what computes logits with the package's head."""
    head = compile_model(build_head_model(spec, weights), "CPU", EXACT_PROPERTIES)
    request = head.create_infer_request()

    def read(index: int, start: int, stop: int) -> npt.NDArray[np.float32]:
        rows: npt.NDArray[np.float32] = request.infer([found[index][None, start:stop]])[0][0]
        check_finite(rows, "CPU")
        return rows

    return read


def sum_up(texts: Sequence[QualityText], scores: Sequence[PositionScores]) -> Loss:
    """Return the figures of all texts, of each kind, and of beginnings and ends.

    Args:
        texts: What was read.
        scores: Of each of them.
    """
    kinds = dict.fromkeys(text.kind for text in texts)
    by_kind = {
        kind: summarise([one for text, one in zip(texts, scores, strict=True) if text.kind == kind])
        for kind in kinds
    }
    by_position = {}
    for first, end in POSITION_BANDS:
        parts = [_band(one, first, end) for one in scores if len(one) > first]
        if parts:
            by_position[first, end] = summarise(parts)
    return Loss(summarise(scores), by_kind, by_position)


def _band(scores: PositionScores, first: int, end: int) -> PositionScores:
    places = np.arange(len(scores))
    return select_scores(scores, (places >= first) & (places < end))


def _run_reference(
    spec: DecoderSpec, checkpoint: Checkpoint, texts: Sequence[QualityText], progress: Progress
) -> list[Hidden]:
    """Return what the checkpoint's head reads."""

    def tell(layer_index: int, hidden: Sequence[Hidden]) -> None:
        del hidden
        progress("running layers", layer_index + 1, spec.num_layers)

    progress("running layers", 0, spec.num_layers)
    return run_checkpoint(spec, checkpoint, [text.token_ids for text in texts], after_layer=tell)


def _run_layers(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    weights: WeightSource,
    texts: Sequence[QualityText],
    progress: Progress,
) -> tuple[list[Hidden], list[Hidden], tuple[LayerLoss, ...]]:
    """Return what both heads read, and what each layer lost."""
    ids = [text.token_ids for text in texts]
    expected = embed_texts(checkpoint, ids)
    found = embed_with(spec, weights, ids)
    num_alone = _count_alone(ids)
    layers = []
    for index in range(spec.num_layers):
        progress("running layers", index, spec.num_layers)
        exact = CheckpointWeights(checkpoint)
        after = run_layer(spec, exact, index, expected)
        exact.release()
        # Both in one go, so that the layer is compiled once.
        both = run_layer(spec, weights, index, [*expected[:num_alone], *found])
        alone, found = both[:num_alone], both[num_alone:]
        layers.append(LayerLoss(_distance(alone, after[:num_alone]), _distance(found, after)))
        expected = after
    progress("running layers", spec.num_layers, spec.num_layers)
    return expected, found, tuple(layers)


def _count_alone(ids: Sequence[Sequence[int]]) -> int:
    """Return how many texts, from the first, have enough tokens for a layer alone."""
    total = 0
    for count, text in enumerate(ids, 1):
        total += len(text)
        if total >= _ALONE_TOKENS:
            return count
    return len(ids)


def _distance(found: Sequence[Hidden], expected: Sequence[Hidden]) -> float:
    difference = sum(float(np.square(a - b).sum()) for a, b in zip(found, expected, strict=True))
    size = sum(float(np.square(rows).sum()) for rows in expected)
    return float(np.sqrt(difference / size)) if size else 0.0


def _check_reference(logits: npt.NDArray[np.float32], text: QualityText) -> None:
    if not np.isfinite(logits).all():
        raise CheckpointError(
            f"Computed in float32, the checkpoint gives logits for the text {text.name!r} that are "
            "NaN or infinite, so nothing can be compared with it.",
            "fetch the checkpoint again, or measure against an earlier step of the fine-tune",
            text=text.name,
        )


def _read(backend: Backend, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the logits after each token, fed as guesses and short calls are."""
    most = backend.max_scored_tokens
    parts = []
    for start in range(0, len(token_ids), most):
        group = token_ids[start : start + most]
        parts.append(backend.forward_scored(group, num_scored=len(group)))
    return np.concatenate(parts)
