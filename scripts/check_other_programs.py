"""Open a package in other OpenVINO programs and compare. Last line: JSON.

    python scripts/check_other_programs.py PACKAGE

OpenVINO GenAI must give the manifest's golden tokens on the CPU, and the NPU plugin, run on
the CPU (NPUW_DEVICES=CPU), must compile the model with its own defaults. The same is tested
on small packages by tests/contract/test_other_programs.py; this is for one of any size.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

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


def main() -> None:
    """Run both checks; leave with 1 when a token differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    package = parser.parse_args().package
    manifest = read_manifest(package)
    import_openvino()
    genai = check_genai(package, manifest)
    print(f"openvino_genai: {genai}", file=sys.stderr)
    result = {"openvino_genai_cpu": genai, "npu_plugin_on_cpu": check_npu(package, manifest)}
    print(json.dumps(result))
    sys.exit(0 if genai["golden_tokens_equal"] else 1)


if __name__ == "__main__":
    main()
