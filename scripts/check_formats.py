"""Compare the two formats of a package, both in float32. Last line: JSON.

    python scripts/check_formats.py PACKAGE [--tokens 64]

PACKAGE is one that `qwen-edge export --format both` made. Each format reads the golden prompt and
answers greedily; at every step the logits are compared, and so are the tokens. ONNX Runtime has
no float32 kernel for 8-bit matrices and widens the whole head at every token: a full-size head
costs it seconds a token and 1.5 GB.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen_edge.profiles.providers import choose_provider
from qwen_edge.runtime.backends.backend import Backend, Logits
from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.backends.onnx import OnnxBackend
from qwen_edge.runtime.backends.onnx_file import read_onnx
from qwen_edge.runtime.backends.onnx_session import CPU_PROVIDER, create_session
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES
from qwen_edge.runtime.manifest import MODEL_XML
from qwen_edge.runtime.package import check_sizes, read_manifest

FLOAT32_LEVEL = 1


def open_openvino(package: Path, context: int) -> Backend:
    """Open the IR with float32 arithmetic and cache."""
    model = read_ir(package / MODEL_XML)
    keep_last_logits(model)
    compiled = compile_model(model, "CPU", GOLDEN_PROPERTIES)
    return OpenVinoBackend(
        compiled, device="CPU", max_context_tokens=context, prefill_chunk_tokens=context
    )


def open_onnx(package: Path, context: int) -> Backend:
    """Open the ONNX model with float32 arithmetic in every matrix product."""
    model = read_onnx(package, accuracy_level=FLOAT32_LEVEL)
    provider = choose_provider([CPU_PROVIDER], CPU_PROVIDER, is_portable=model.is_portable).value
    return OnnxBackend(
        create_session(model, provider, accuracy_level=FLOAT32_LEVEL),
        model=model,
        device="CPU",
        max_context_tokens=context,
        prefill_chunk_tokens=context,
    )


def answer(backend: Backend, prompt_ids: tuple[int, ...], num_tokens: int) -> Iterator[Logits]:
    """Yield the logits of every greedy step."""
    logits = backend.forward(prompt_ids)
    for number in range(num_tokens):
        yield logits
        if number + 1 < num_tokens:
            logits = backend.forward([int(logits.argmax())])


def main() -> None:
    """Compare and print; leave with 1 when a token differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.package)
    check_sizes(arguments.package, manifest)
    prompt_ids = manifest.golden.prompt_ids
    context = len(prompt_ids) + arguments.tokens
    rows = {}
    for name, opener in (("openvino", open_openvino), ("onnx", open_onnx)):
        backend = opener(arguments.package, context)
        rows[name] = np.stack(list(answer(backend, prompt_ids, arguments.tokens)))
        backend.close()
    tokens = {name: logits.argmax(-1) for name, logits in rows.items()}
    same = int((tokens["openvino"] == tokens["onnx"]).sum())
    result = {
        "model": manifest.name,
        "max_abs_difference": float(np.abs(rows["openvino"] - rows["onnx"]).max()),
        "max_abs_logit": float(np.abs(rows["openvino"]).max()),
        "equal_tokens": same,
        "tokens": arguments.tokens,
    }
    print(json.dumps(result))
    sys.exit(0 if same == arguments.tokens else 1)


if __name__ == "__main__":
    main()
