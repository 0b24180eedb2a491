"""Compare a package with Transformers on the checkpoint it was made from. Last line: JSON.

    python scripts/check_parity.py CHECKPOINT PACKAGE [--tokens 40]

Both compute in float32. A package of the recipe `fp16` must agree to 1e-3; for a compressed one
the figure tells how far compression moved the logits. Every format of the package is compared; of
the IR it also counts what the CPU plugin fused.
Needs torch, and the memory to hold the checkpoint in float32.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from check_formats import open_onnx

from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES
from qwen_edge.runtime.manifest import MODEL_XML
from qwen_edge.runtime.package import read_manifest

FUSED = ("ScaledDotProductAttention", "FullyConnected", "RMS", "RoPE", "Softmax")


def reference_logits(checkpoint: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return Transformers' logits of one prompt, float32 [1, length, vocab]."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor(ids)).logits.numpy()
    return logits


def package_logits(
    package: Path, ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], dict[str, int]]:
    """Return the package's logits, float32 [1, length, vocab], and its fused operations."""
    compiled: Any = compile_model(read_ir(package / MODEL_XML), "CPU", GOLDEN_PROPERTIES)
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    logits = compiled.create_infer_request().infer(inputs)[0]
    kinds = Counter(
        op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()
    )
    return logits, {kind: kinds[kind] for kind in FUSED}


def onnx_logits(package: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the ONNX form's logits, float32 [1, length, vocab], read token by token."""
    backend = open_onnx(package, ids.shape[1])
    try:
        rows = [backend.forward([token_id]) for token_id in ids[0].tolist()]
    finally:
        backend.close()
    return np.stack(rows)[None]


def compare(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> dict[str, float]:
    """Return how far two sets of logits are apart."""
    return {
        "max_abs_difference": float(np.abs(actual - expected).max()),
        "top1_agreement": float((actual.argmax(-1) == expected.argmax(-1)).mean()),
    }


def main() -> None:
    """Compute both and print how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("--tokens", type=int, default=40)
    arguments = parser.parse_args()
    vocab_size = json.loads((arguments.checkpoint / "config.json").read_bytes())["vocab_size"]
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocab_size, (1, arguments.tokens), dtype=np.int64)
    formats = read_manifest(arguments.package).formats
    result: dict[str, Any] = {"tokens": arguments.tokens}
    found = {}
    if "openvino" in formats:
        found["openvino"], result["fused"] = package_logits(arguments.package, ids)
    if "onnx" in formats:
        found["onnx"] = onnx_logits(arguments.package, ids)
    expected = reference_logits(arguments.checkpoint, ids)
    result["max_abs_logit"] = float(np.abs(expected).max())
    result |= {name: compare(logits, expected) for name, logits in found.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
