"""Running a package's golden tokens: the shortest proof that it still answers as it was sealed.

Arithmetic is fixed to float32 without dynamic quantisation and with a float32 cache, so that
the order of sums is the only difference left between machines. The export uses this to make
the tokens, `qwen-edge verify` to compare them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.generation import generate_tokens
from qwen_edge.runtime.manifest import MODEL_XML, Manifest, PropertyValue
from qwen_edge.runtime.sampling import SamplingParams, make_sampler

GOLDEN_PROPERTIES: Mapping[str, PropertyValue] = MappingProxyType(
    {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
    }
)


def run_golden_tokens(folder: Path, manifest: Manifest) -> tuple[int, ...]:
    """Return what a package answers now, to be compared with `manifest.golden.token_ids`.

    Args:
        folder: The package folder; its files should have been checked.
        manifest: The folder's manifest.

    Raises:
        PackageError: The model's files cannot be read.
        DeviceError: The CPU refused the model.
        ParityError: The logits are not finite.
    """
    golden = manifest.golden
    return answer_greedily(folder, golden.prompt_ids, len(golden.token_ids), golden.properties)


def answer_greedily(
    folder: Path,
    prompt_ids: Sequence[int],
    num_tokens: int,
    properties: Mapping[str, PropertyValue] = GOLDEN_PROPERTIES,
) -> tuple[int, ...]:
    """Load the model in a folder on the CPU and return its greedy tokens.

    Args:
        folder: Holds the model files; needs no manifest.
        prompt_ids: At least one id.
        num_tokens: How many to generate. Stop tokens do not stop it.
        properties: OpenVINO properties to compile with.

    Raises:
        PackageError: The model's files cannot be read.
        DeviceError: The CPU refused the model.
        ParityError: The logits are not finite.
    """
    model = read_ir(folder / MODEL_XML)
    keep_last_logits(model)
    context = len(prompt_ids) + num_tokens
    backend = OpenVinoBackend(
        compile_model(model, "CPU", properties),
        device="CPU",
        max_context_tokens=context,
        prefill_chunk_tokens=context,
    )
    del model  # else its weights stay mapped, and Windows could not rename the folder
    try:
        greedy = make_sampler(SamplingParams(temperature=0.0))
        return tuple(generate_tokens(backend, prompt_ids, sample=greedy, max_new_tokens=num_tokens))
    finally:
        backend.close()
