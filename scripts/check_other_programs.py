"""Open a package in other programs and compare. Last line: JSON.

    python scripts/check_other_programs.py PACKAGE

OpenVINO GenAI must give the manifest's golden tokens on the CPU, and the NPU plugin, run on
the CPU (NPUW_DEVICES=CPU), must compile the model with its own defaults. onnxruntime-genai must
give the tokens that this runtime gives with the ONNX form. The same is tested on small packages by
tests/contract/test_other_programs.py and tests/export/test_genai_config.py; this is for one of
any size, in the formats it has.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from qwen_edge.runtime import SamplingParams, load
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.manifest import MODEL_XML, Manifest
from qwen_edge.runtime.package import read_manifest

NPU_ON_CPU = {"NPU_USE_NPUW": "YES", "NPUW_LLM": "YES", "NPUW_DEVICES": "CPU"}


def check_genai(package: Path, manifest: Manifest) -> dict[str, Any]:
    """Generate the golden tokens with openvino_genai.LLMPipeline on the CPU."""
    import openvino_genai

    golden = manifest.golden
    start = time.perf_counter()
    pipeline = openvino_genai.LLMPipeline(str(package), "CPU", **golden.properties)
    config = openvino_genai.GenerationConfig(
        max_new_tokens=len(golden.token_ids),
        do_sample=False,
        ignore_eos=True,
        apply_chat_template=False,
    )
    ids = import_openvino().Tensor(np.array([golden.prompt_ids], np.int64))
    tokens = tuple(pipeline.generate(ids, config).tokens[0])
    return {
        "golden_tokens_equal": tokens == golden.token_ids,
        "num_tokens": len(tokens),
        "seconds": round(time.perf_counter() - start, 1),
    }


def check_npu(package: Path, manifest: Manifest) -> dict[str, Any]:
    """Compile for the NPU plugin on the CPU, with nothing set that it does not need."""
    npu = next((entry for entry in manifest.devices if entry.device == "NPU"), None)
    shallow = {} if npu is None else npu.properties
    keep = {key: value for key, value in shallow.items() if key == "NPUW_ONLINE_KEEP_BLOCKS"}
    core = import_openvino().Core()
    start = time.perf_counter()
    core.compile_model(core.read_model(package / MODEL_XML), "NPU", {**NPU_ON_CPU, **keep})
    return {"compiles": True, "seconds": round(time.perf_counter() - start, 1), **keep}


def check_onnx_genai(package: Path, manifest: Manifest) -> dict[str, Any]:
    """Answer the golden prompt with onnxruntime-genai and with this runtime, both as they are set.

    Both round activations to int8, so the golden tokens, made in float32, are not the measure.
    """
    golden = manifest.golden
    with load(package, backend="onnx", device="CPU", verify="sizes") as model:
        greedy = SamplingParams(temperature=0)
        count = len(golden.token_ids)
        expected = list(model.generate(golden.prompt_ids, sampling=greedy, max_new_tokens=count))
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai

    start = time.perf_counter()
    other = onnxruntime_genai.Model(str(package))
    params = onnxruntime_genai.GeneratorParams(other)
    length = len(golden.prompt_ids) + len(expected)
    params.set_search_options(max_length=length + 1, do_sample=False)
    generator = onnxruntime_genai.Generator(other, params)
    generator.append_tokens(np.array(golden.prompt_ids, np.int32))
    tokens = []
    for _ in expected:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return {
        "tokens_equal": tokens == expected,
        "num_tokens": len(tokens),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Run the checks; leave with 1 when a token differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    package = parser.parse_args().package
    manifest = read_manifest(package)
    result: dict[str, Any] = {}
    if "openvino" in manifest.formats:
        import_openvino()
        result["openvino_genai_cpu"] = check_genai(package, manifest)
        print(f"openvino_genai: {result}", file=sys.stderr)
        result["npu_plugin_on_cpu"] = check_npu(package, manifest)
    if "onnx" in manifest.formats:
        result["onnxruntime_genai_cpu"] = check_onnx_genai(package, manifest)
    print(json.dumps(result))
    flags = (value for entry in result.values() for value in entry.values())
    sys.exit(1 if any(flag is False for flag in flags) else 0)


if __name__ == "__main__":
    main()
