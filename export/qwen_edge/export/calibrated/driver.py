"""Calibration from the embedding to the last layer: run a layer, compress it, go on to the next.

A layer reads what the checkpoint's layers before it give, not what compressed ones do: one pass
over the texts serves for both, and on the demo model the other way gains 2 % of KL for twice the
time. In memory are one layer and its sums, whatever the model's size.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from qwen_edge.errors import CheckpointError
from qwen_edge.export.calibrated.activations import read_layer
from qwen_edge.export.calibrated.calibration import Calibration, remove_work_folder
from qwen_edge.export.calibrated.compressor import CalibratedCompressor
from qwen_edge.export.calibrated.layer_record import LayerRecord
from qwen_edge.export.calibrated.moments import Moments
from qwen_edge.export.calibrated.work_folder import WorkFolder, open_work_folder
from qwen_edge.export.checkpoint import Checkpoint
from qwen_edge.export.compress import TensorReport, TensorStore
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.free_memory import return_free_memory
from qwen_edge.export.quality.layerwise import CheckpointWeights, Hidden, embed_texts
from qwen_edge.profiles.recipe import Recipe

Report = Callable[[str, int, int], None]
STEP = "calibrate and compress"


def compress_calibrated(
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    store: TensorStore,
    calibration: Calibration,
    report: Report,
) -> tuple[TensorReport, ...]:
    """Put a checkpoint's tensors into a store, by a calibrated recipe.

    Args:
        checkpoint: Checked against `spec` already.
        spec: The decoder.
        store: Receives every tensor.
        calibration: The recipe, the texts, and where to keep work that is done.
        report: Told about every sample.

    Returns:
        What became of every matrix.

    Raises:
        CheckpointError: A value is NaN, infinite, or too large for float16; in a weight, or in
            what a layer gives.
        DeviceError: The CPU refuses a layer.
        OutputFolderError: Something that is not ours lies where work is kept.

    State:
        `calibration.folder` holds what is done, also after an interruption; who publishes the
        package removes it.
    """
    recipe = calibration.recipe
    compressor = CalibratedCompressor(checkpoint, spec, recipe, store)
    compressor.compress_embeddings()
    reports = list(compressor.reports)
    work = open_work_folder(spec, calibration)
    first = work.find_next_layer(spec.num_layers)
    if first is None:
        for _ in work.write_hidden(0, embed_texts(checkpoint, calibration.text.samples)):
            pass
        first = 0
    # Before hours of work: a finished layer that cannot be read means to start again.
    reports += _replay(work, range(first), store)
    total = spec.num_layers * len(calibration.text.samples)
    for layer_index in range(first, spec.num_layers):
        done = layer_index * len(calibration.text.samples)

        def report_sample(count: int, done: int = done) -> None:
            report(STEP, done + count - 1, total)

        report_sample(1)
        _compress_layer(checkpoint, spec, recipe, work, layer_index, report_sample)
    report(STEP, total, total)
    reports += _replay(work, range(first, spec.num_layers), store)
    return tuple(reports)


def _replay(work: WorkFolder, layers: Iterable[int], store: TensorStore) -> list[TensorReport]:
    """Put finished layers into the store, and remove what an interruption left of them."""
    reports = []
    for layer_index in layers:
        record = work.read_layer(layer_index)
        if record is None:
            raise _damaged(work.path)
        record.replay(store)
        reports += record.reports
        work.drop_hidden(layer_index)
    return reports


def _compress_layer(
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    recipe: Recipe,
    work: WorkFolder,
    layer_index: int,
    report: Callable[[int], None],
) -> None:
    """Run one layer on all texts, keep what it gives and what becomes of it."""
    record = LayerRecord()
    compressor = CalibratedCompressor(checkpoint, spec, recipe, record)
    moments = compressor.make_moments(layer_index)
    weights = CheckpointWeights(checkpoint)
    before = work.read_hidden(layer_index)
    hidden = _refuse_infinite(read_layer(spec, weights, layer_index, before, moments), layer_index)
    if layer_index + 1 < spec.num_layers:
        for count in work.write_hidden(layer_index + 1, hidden):
            report(count)
    else:
        for count, _ in enumerate(hidden, 1):
            report(count)
    weights.release()
    return_free_memory()  # what running the layer took
    for site, summed in moments.items():
        _check_finite(summed, layer_index, site.name)
    compressor.compress_with(layer_index, moments)
    record.reports = compressor.reports
    work.write_layer(layer_index, record)
    work.drop_hidden(layer_index)


def _refuse_infinite(hidden: Iterable[Hidden], layer_index: int) -> Iterator[Hidden]:
    """Pass on what a layer gives; as soon as it is no number, refuse it."""
    for rows in hidden:
        if not np.isfinite(rows).all():
            raise _not_finite(layer_index, "its output")
        yield rows


def _check_finite(moments: Moments, layer_index: int, site: str) -> None:
    if not np.isfinite(moments.products).all():
        raise _not_finite(layer_index, f"{site}, squared")


def _not_finite(layer_index: int, place: str) -> CheckpointError:
    return CheckpointError(
        f"Layer {layer_index} of the checkpoint gives values that are NaN or infinite ({place}), "
        "computed in float32, so nothing can be calibrated on them.",
        "fetch the checkpoint again, or export an earlier step of the fine-tune",
        layer=layer_index,
    )


def _damaged(folder: Path) -> CheckpointError:
    remove_work_folder(folder)
    return CheckpointError(
        "Work of an interrupted calibration was damaged on the disk, and has been removed.",
        "start the same export again",
        folder=str(folder),
    )
