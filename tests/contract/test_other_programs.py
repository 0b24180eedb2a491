"""A package is not ours alone: other OpenVINO programs open it as it is.

GenAI's tokens must be the golden tokens of the manifest; the NPU plugin, which runs on the
CPU here, must take the model with its defaults.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

import qwen_edge.export
from qwen_edge.export import ExportRequest, export
from qwen_edge.export.array_weights import make_random_arrays
from qwen_edge.export.decoder import read_spec
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.package import read_manifest

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
NPU_ON_CPU = {"NPU_USE_NPUW": "YES", "NPUW_LLM": "YES", "NPUW_DEVICES": "CPU"}
# The plugin folds layers that repeat five times or more (NPUW_ONLINE_KEEP_BLOCKS); with fewer
# its defaults fail on any model. Every published Qwen3 has at least 28.
NUM_LAYERS = 6


@pytest.fixture(scope="module")
def genai() -> Any:
    """Return openvino_genai, imported after telemetry was made impossible."""
    import_openvino()
    return pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")


@pytest.mark.parametrize("attention", ["PA", "SDPA"])
def test_genai_gives_the_golden_tokens(genai: Any, demo_package: Path, attention: str) -> None:
    golden = read_manifest(demo_package).golden
    pipeline = genai.LLMPipeline(
        str(demo_package), "CPU", ATTENTION_BACKEND=attention, **golden.properties
    )
    assert _generate(genai, pipeline, golden.prompt_ids, len(golden.token_ids)) == golden.token_ids


def test_genai_tokenizes_and_answers_text(genai: Any, demo_package: Path) -> None:
    pipeline = genai.LLMPipeline(str(demo_package), "CPU")
    assert str(pipeline.generate("Hello!", max_new_tokens=8, do_sample=False)).strip()


@pytest.fixture(scope="module")
def deep_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a package with as many layers as the NPU plugin's defaults need."""
    folder = tmp_path_factory.mktemp("deep")
    config = json.loads((DEMO / "config.json").read_bytes())
    config |= {"num_hidden_layers": NUM_LAYERS, "layer_types": None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    save_file(make_random_arrays(read_spec(config), seed=3), folder / "model.safetensors")
    output = folder / "package"
    request = ExportRequest(
        model=str(folder), profile="core-ultra", output=output, skip_quality=True
    )
    return export(request).folder


def test_npu_plugin_compiles_with_its_defaults(deep_package: Path) -> None:
    core = import_openvino().Core()
    model = core.read_model(deep_package / "openvino_model.xml")
    compiled = core.compile_model(model, "NPU", NPU_ON_CPU)
    assert [port.get_any_name() for port in compiled.outputs] == ["logits"]


def test_genai_runs_the_npu_pipeline(genai: Any, deep_package: Path) -> None:
    golden = read_manifest(deep_package).golden
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    pipeline = genai.LLMPipeline(str(deep_package), "NPU", **NPU_ON_CPU, **exact)
    assert _generate(genai, pipeline, golden.prompt_ids, len(golden.token_ids)) == golden.token_ids


def _generate(
    genai: Any, pipeline: Any, prompt_ids: tuple[int, ...], count: int
) -> tuple[int, ...]:
    import numpy as np

    config = genai.GenerationConfig(
        max_new_tokens=count, do_sample=False, ignore_eos=True, apply_chat_template=False
    )
    ids = import_openvino().Tensor(np.array([prompt_ids], np.int64))
    return tuple(pipeline.generate(ids, config).tokens[0])
