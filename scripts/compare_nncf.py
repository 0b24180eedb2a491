"""Compress a whole model with NNCF and calibration texts, as a second opinion. Last line: JSON.

    python scripts/compare_nncf.py CHECKPOINT [PACKAGE ...] [--methods awq scale gptq] [--ratio 0.8]

NNCF gets our own full-precision graph, the samples that our recipes read and the same formats, so
what differs is the arithmetic: all layers at once there, one layer at a time here. Its model and
the packages are run exactly, in float32 with an exact cache, and compared with the checkpoint by
the measure of `qwen-edge quality`: what is printed is the loss by weights alone. Needs nncf, and
memory for the whole model several times over.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwen_edge.export.calibration_texts import CalibrationText, read_calibration
from qwen_edge.export.checkpoint import Checkpoint, open_checkpoint
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.export.quality.layerwise import (
    EXACT_PROPERTIES,
    CheckpointWeights,
    Hidden,
    iterate_logits,
    run_checkpoint,
)
from qwen_edge.export.quality.measure import Loss, sum_up
from qwen_edge.export.quality.statistics import compare_logits, join_scores
from qwen_edge.export.quality.texts import QualityText, read_built_in, read_own
from qwen_edge.export.text_files import PackageText, write_text_files
from qwen_edge.runtime.backends.checks import check_finite
from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.manifest import MODEL_XML

if TYPE_CHECKING:
    import openvino as ov
else:
    ov = import_openvino()

METHODS = ("awq", "scale", "gptq")
MODES = ("int4_sym", "int4_asym", "int8_sym", "int8_asym", "nf4")
_WHOLE_EXACT = {**EXACT_PROPERTIES, "KV_CACHE_PRECISION": "f32"}


def read_text_of(checkpoint: Path, vocab_size: int) -> PackageText:
    """Return tokenizer and chat template as an export reads them."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return write_text_files(checkpoint, Path(folder), vocab_size=vocab_size, for_openvino=False)


def make_inputs(token_ids: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs of one text, read in one go from an empty cache."""
    count = len(token_ids)
    return {
        "input_ids": np.array([token_ids], np.int64),
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


def compress_whole(
    spec: DecoderSpec,
    weights: CheckpointWeights,
    samples: Sequence[Sequence[int]],
    arguments: argparse.Namespace,
) -> ov.Model:
    """Return our full-precision graph as NNCF compresses it.

    Args:
        spec: The architecture.
        weights: The checkpoint's in float32; the graph shares their memory.
        samples: Calibration texts as tokens.
        arguments: Of the command line.
    """
    os.environ["NNCF_CI"] = "1"  # it reports to its makers otherwise
    import nncf

    nncf.set_log_level("ERROR")
    methods = arguments.methods
    is_int8 = arguments.mode.startswith("int8")
    # It refuses options of four bits for eight, and methods by data without any.
    options: dict[str, Any] = (
        {}
        if is_int8
        else {
            "group_size": arguments.group_size,
            "ratio": arguments.ratio,
            "awq": "awq" in methods,
            "scale_estimation": "scale" in methods,
            "gptq": "gptq" in methods,
            "dataset": nncf.Dataset([make_inputs(sample) for sample in samples]),
            "subset_size": len(samples),
        }
    )
    model = build_decoder(spec, weights)
    # Left as they are: embedding and head in int8 with a zero point, as in our recipes.
    mode = nncf.CompressWeightsMode(arguments.mode)
    return nncf.compress_weights(model, mode=mode, **options)


def measure_whole(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    model: ov.Model,
    texts: Sequence[QualityText],
    expected: Sequence[Hidden],
) -> Loss:
    """Return what a whole model loses, run exactly.

    Args:
        spec: The architecture of both.
        checkpoint: What it is compared with.
        model: With the inputs and the cache of our graphs.
        texts: What both read.
        expected: What the checkpoint's head reads of each text.
    """
    request = compile_model(model, "CPU", _WHOLE_EXACT).create_infer_request()
    scores = []
    for text, hidden in zip(texts, expected, strict=True):
        request.reset_state()
        found = request.infer(make_inputs(text.token_ids))["logits"][0]
        check_finite(found, "CPU")
        following = [*text.token_ids[1:], None]
        parts, start = [], 0
        for logits in iterate_logits(spec, checkpoint, hidden):
            stop = start + len(logits)
            parts.append(compare_logits(logits, found[start:stop], following[start:stop]))
            start = stop
        scores.append(join_scores(parts))
    return sum_up(texts, scores)


def describe(loss: Loss) -> dict[str, Any]:
    """Return a loss for JSON; each figure with its interval."""

    def show(estimate: Any) -> list[float] | None:
        return None if estimate is None else [estimate.value, estimate.low, estimate.high]

    total = loss.total
    return {
        "kl": show(total.mean_kl),
        "kl_p99": show(total.upper_kl),
        "top1": show(total.top1),
        "top5": show(total.top5),
        "perplexity": show(total.found_perplexity),
        "perplexity_of_checkpoint": show(total.expected_perplexity),
        "kl_by_kind": {kind: figures.mean_kl.value for kind, figures in loss.by_kind.items()},
    }


def read_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("packages", type=Path, nargs="*", metavar="PACKAGE")
    parser.add_argument("--mode", choices=MODES, default="int4_sym")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=["awq", "scale"])
    parser.add_argument("--group-size", type=int, default=128, help="-1 for a whole row")
    parser.add_argument("--ratio", type=float, default=1.0, help="share of weights in four bits")
    parser.add_argument("--calibration", type=Path, help="text or conversations; else built in")
    parser.add_argument("--calibration-samples", type=int, default=128)
    parser.add_argument("--text", type=Path, help="what quality is measured on; else built in")
    parser.add_argument("--out", type=Path, help="a folder to write NNCF's model into")
    parser.add_argument("--skip-nncf", action="store_true", help="measure the packages alone")
    return parser.parse_args()


def main() -> None:
    """Compress, measure, and print what came of it."""
    arguments = read_arguments()
    folder = arguments.checkpoint
    spec = read_spec(json.loads((folder / "config.json").read_bytes()))
    checkpoint = open_checkpoint(folder)
    text = read_text_of(folder, spec.vocab_size)
    template, thinking = text.chat_template, text.chat.thinking
    calibration: CalibrationText = read_calibration(
        arguments.calibration,
        text.tokenizer,
        template,
        thinking,
        max_samples=arguments.calibration_samples,
    )
    texts = (
        read_built_in(text.tokenizer, template, thinking)
        if arguments.text is None
        else read_own(arguments.text, text.tokenizer)
    )
    print("running the checkpoint", file=sys.stderr)
    expected = run_checkpoint(spec, checkpoint, [one.token_ids for one in texts])
    result: dict[str, Any] = {
        "checkpoint": folder.name,
        "mode": arguments.mode,
        "methods": arguments.methods,
        "group_size": arguments.group_size,
        "ratio": arguments.ratio,
        "calibration": {
            "source": calibration.source,
            "samples": len(calibration.samples),
            "tokens": calibration.num_tokens,
        },
        "quality_tokens": sum(len(one.token_ids) for one in texts),
    }
    if not arguments.skip_nncf:
        print("compressing with nncf", file=sys.stderr)
        start = time.perf_counter()
        weights = CheckpointWeights(checkpoint)
        model = compress_whole(spec, weights, calibration.samples, arguments)
        result["nncf_s"] = round(time.perf_counter() - start, 1)
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            ov.save_model(model, arguments.out / MODEL_XML, compress_to_fp16=False)
        result["nncf"] = describe(measure_whole(spec, checkpoint, model, texts, expected))
        del model
        weights.release()
    result["packages"] = {}
    for package in arguments.packages:
        print(f"measuring {package.name}", file=sys.stderr)
        model = read_ir(package / MODEL_XML)
        loss = measure_whole(spec, checkpoint, model, texts, expected)
        result["packages"][str(package)] = describe(loss)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
