"""Running a package's golden tokens: the shortest proof that it still answers as it was sealed.

Arithmetic is as near to float32 as each engine comes, with a float32 cache, so that little but
the order of sums is left to differ between machines and engines. The export uses this to make the
tokens, `qwen-edge verify` to compare them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.manifest import (
    MODEL_XML,
    FormatName,
    GoldenTokens,
    Manifest,
    PropertyValue,
)

GOLDEN_PROPERTIES: Mapping[str, PropertyValue] = MappingProxyType(
    {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
    }
)
# MatMulNBits' accuracy level by bits: 1 is float32, 4 rounds its input to int8 in blocks. For 8
# bits there is no float32 kernel: each call would widen the whole matrix, for the head of
# Qwen3-4B 4 s and 1.5 GB a token. In the portable form one level holds for all.
_GOLDEN_LEVELS = MappingProxyType({4: 1, 8: 4})
_PORTABLE_LEVEL = 4
GOLDEN_TOLERANCES: Mapping[FormatName, float] = MappingProxyType({"openvino": 1e-3, "onnx": 0.1})
"""For `follow_tokens`. Measured: rounding to int8 moves logits by up to 0.025 of that distance
(demo model, int8), a wrong token lies 0.3 to 1.3 below."""


def run_golden_tokens(
    folder: Path, manifest: Manifest, fmt: FormatName | None = None
) -> tuple[int, ...]:
    """Return what a package answers now, to be compared with `manifest.golden.token_ids`.

    Args:
        folder: The package folder; its files should have been checked.
        manifest: The folder's manifest.
        fmt: Which of the package's models to run; None for the one that is preferred.

    Returns:
        As `follow_tokens`.

    Raises:
        MissingExtraError: The format's engine is not installed.
        PackageError: The model's files cannot be read.
        DeviceError: The CPU refused the model.
        ParityError: The logits are not finite.
        ResourceError: Memory did not suffice.

    State:
        An ONNX model is tried in a process of its own first, unless that is on record.
    """
    fmt = fmt or manifest.formats[0]
    if fmt == "onnx":
        from qwen_edge.runtime.devices.onnx_opening import try_once

        try_once(folder)
    return answer_as_sealed(folder, manifest.golden, fmt)


def answer_as_sealed(folder: Path, golden: GoldenTokens, fmt: FormatName) -> tuple[int, ...]:
    """Run golden tokens in one format of a folder that needs no manifest.

    Args:
        folder: Holds the model files; trusted.
        golden: What it should answer.
        fmt: Which of the models in the folder.

    Returns:
        As `follow_tokens`.

    Raises:
        EdgeError: As `run_golden_tokens`.
    """
    context = len(golden.prompt_ids) + len(golden.token_ids)
    backend = _open(folder, context, golden.properties or GOLDEN_PROPERTIES, fmt)
    try:
        return follow_tokens(backend, golden.prompt_ids, golden.token_ids, GOLDEN_TOLERANCES[fmt])
    finally:
        backend.close()


def follow_tokens(
    backend: Backend, prompt_ids: Sequence[int], expected: Sequence[int], tolerance: float
) -> tuple[int, ...]:
    """Return a backend's greedy tokens, where near ties fall to the expected ones.

    Another machine adds in another order, and where two tokens are all but equally likely that
    decides. An engine that computes wrongly is far beyond the tolerance at once.

    Args:
        backend: Empty; its cache grows.
        prompt_ids: At least one id.
        expected: The tokens it should give.
        tolerance: How far an expected token's logit may lie below the largest, as a share of the
            distance from the largest logit to their mean.
    """
    found: list[int] = []
    logits = backend.forward(prompt_ids)
    for number, token_id in enumerate(expected):
        largest = float(logits.max())
        least = largest - tolerance * (largest - float(logits.mean()))
        found.append(token_id if logits[token_id] >= least else int(logits.argmax()))
        if number + 1 < len(expected):
            logits = backend.forward([found[-1]])
    return tuple(found)


def answer_greedily(
    folder: Path,
    prompt_ids: Sequence[int],
    num_tokens: int,
    properties: Mapping[str, PropertyValue] = GOLDEN_PROPERTIES,
    *,
    fmt: FormatName = "openvino",
) -> tuple[int, ...]:
    """Load the model in a folder on the CPU and return its greedy tokens.

    Args:
        folder: Holds the model files; needs no manifest.
        prompt_ids: At least one id.
        num_tokens: How many to generate. Stop tokens do not stop it.
        properties: OpenVINO properties to compile with; ONNX Runtime has no use for them.
        fmt: Which of the models in the folder.

    Raises:
        MissingExtraError: The format's engine is not installed.
        PackageError: The model's files cannot be read.
        DeviceError: The CPU refused the model.
        ParityError: The logits are not finite.
        ResourceError: Memory did not suffice.
    """
    backend = _open(folder, len(prompt_ids) + num_tokens, properties, fmt)
    picker = TokenPicker(Sampler(SamplingParams(temperature=0.0)))
    try:
        tokens = generate_tokens(backend, prompt_ids, picker=picker, max_new_tokens=num_tokens)
        return tuple(token.token_id for token in tokens)
    finally:
        backend.close()


# Each engine's modules are imported where it is used: a machine may have only one of them.


def _open(
    folder: Path, context: int, properties: Mapping[str, PropertyValue], fmt: FormatName
) -> Backend:
    if fmt == "openvino":
        return _open_openvino(folder, context, properties)
    return _open_onnx(folder, context)


def _open_openvino(folder: Path, context: int, properties: Mapping[str, PropertyValue]) -> Backend:
    from qwen_edge.runtime.backends.compiling import compile_model, read_ir
    from qwen_edge.runtime.backends.last_logits import keep_last_logits
    from qwen_edge.runtime.backends.openvino import OpenVinoBackend

    # Nothing holds the model after this: its weights would stay mapped, and Windows could not
    # rename the folder.
    model = read_ir(folder / MODEL_XML)
    keep_last_logits(model)
    return OpenVinoBackend(
        compile_model(model, "CPU", properties),
        device="CPU",
        max_context_tokens=context,
        prefill_chunk_tokens=context,
    )


def _open_onnx(folder: Path, context: int) -> Backend:
    from qwen_edge.profiles.providers import choose_provider
    from qwen_edge.runtime.backends.onnx import OnnxBackend
    from qwen_edge.runtime.backends.onnx_file import read_onnx
    from qwen_edge.runtime.backends.onnx_session import CPU_PROVIDER, create_session

    model = read_onnx(folder, accuracy_level=_GOLDEN_LEVELS)
    choice = choose_provider([CPU_PROVIDER], CPU_PROVIDER, is_portable=model.is_portable)
    return OnnxBackend(
        create_session(model, choice.value, accuracy_level=_PORTABLE_LEVEL),
        model=model,
        device="CPU",
        max_context_tokens=context,
        prefill_chunk_tokens=context,
    )
