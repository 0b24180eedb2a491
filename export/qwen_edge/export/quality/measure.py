"""Read the texts with a checkpoint and with a package of it, and compare what they predict.

Three readings go side by side: the checkpoint in float32; the package's weights in float32, which
is what compression alone costs; and the package as it runs here, with activations and cache rounded
as its settings say. The first two go layer by layer, so the whole never has to fit in memory.
"""

from collections.abc import Callable, Sequence
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
        weights: By its weights alone, everything else exact.
        as_run: As it runs with its settings; None where it was not run.
        layers: By the weights of each layer.
        num_tokens: Tokens that were read.
    """

    weights: Loss
    as_run: Loss | None
    layers: tuple[LayerLoss, ...]
    num_tokens: int


Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many parts are."""


def measure_quality(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    weights: WeightSource,
    texts: Sequence[QualityText],
    *,
    backend: Backend | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Quality:
    """Compare a package with its checkpoint.

    Args:
        spec: The architecture of both.
        checkpoint: Its tensors.
        weights: The package's.
        texts: At least one; as the checkpoint's tokenizer cuts them.
        backend: The package as it runs; its cache is emptied and filled. None to leave that out.
        progress: Told of each layer and text.

    Raises:
        CheckpointError: The checkpoint itself gives logits that are no finite numbers.
        DeviceError: The CPU refuses a layer, or the backend stopped.
        PackageError: The package lacks a tensor.
        ParityError: The package gives logits that are no finite numbers.
        ValueError: There are no texts.
    """
    if not texts:
        raise ValueError("there are no texts to measure with")
    expected, found, layers = _run_layers(spec, checkpoint, weights, texts, progress)
    by_weights: list[PositionScores] = []
    by_run: list[PositionScores] = []
    head = compile_model(build_head_model(spec, weights), "CPU", EXACT_PROPERTIES)
    request = head.create_infer_request()
    for index, text in enumerate(texts):
        progress("comparing texts", index, len(texts))
        following = [*text.token_ids[1:], None]
        weight_parts, run_parts, start = [], [], 0
        if backend is not None:
            backend.reset()
        for logits in iterate_logits(spec, checkpoint, expected[index]):
            stop = start + len(logits)
            _check_reference(logits, text)
            rows = request.infer([found[index][None, start:stop]])[0][0]
            check_finite(rows, "CPU")
            weight_parts.append(compare_logits(logits, rows, following[start:stop]))
            if backend is not None:
                rows = _read(backend, text.token_ids[start:stop])
                run_parts.append(compare_logits(logits, rows, following[start:stop]))
            start = stop
        by_weights.append(join_scores(weight_parts))
        if run_parts:
            by_run.append(join_scores(run_parts))
    progress("comparing texts", len(texts), len(texts))
    return Quality(
        weights=sum_up(texts, by_weights),
        as_run=sum_up(texts, by_run) if by_run else None,
        layers=layers,
        num_tokens=sum(len(text.token_ids) for text in texts),
    )


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
    layers = []
    for index in range(spec.num_layers):
        progress("running layers", index, spec.num_layers)
        exact = CheckpointWeights(checkpoint)
        after = run_layer(spec, exact, index, expected)
        exact.release()
        # Both in one go, so that the layer is compiled once.
        both = run_layer(spec, weights, index, [*expected, *found])
        alone, found = both[: len(ids)], both[len(ids) :]
        layers.append(LayerLoss(_distance(alone, after), _distance(found, after)))
        expected = after
    progress("running layers", spec.num_layers, spec.num_layers)
    return expected, found, tuple(layers)


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
