"""Which front end exports a checkpoint, and what optimum-intel is told."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import (
    CheckpointError,
    MissingExtraError,
    ResourceError,
    UnsupportedArchitectureError,
)
from qwen_edge.export import ExportRequest, export, optimum_frontend, prepare_export
from qwen_edge.export.front_end import (
    ModelFormats,
    OptimumFrontEnd,
    open_front_end,
    read_native_spec,
)
from qwen_edge.export.optimum_frontend import (
    count_bits,
    export_with_optimum,
    generic_model_facts,
    optimum_options,
)
from qwen_edge.export.package_facts import device_settings
from qwen_edge.profiles import load_profile, load_recipe
from qwen_edge.runtime.manifest import OnnxFacts

OTHER = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
HAS_OPTIMUM = importlib.util.find_spec("optimum") is not None

needs_no_optimum = pytest.mark.skipif(HAS_OPTIMUM, reason="optimum-intel is installed here")


@pytest.fixture
def other_checkpoint(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """Return a sound checkpoint whose config.json names an architecture without a graph."""
    folder = make_checkpoint(tmp_path / "other")
    config = json.loads((folder / "config.json").read_bytes()) | OTHER
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@needs_no_optimum
def test_unknown_architecture_says_what_to_install(other_checkpoint: Path) -> None:
    with pytest.raises(MissingExtraError) as caught:
        prepare_export(ExportRequest(model=str(other_checkpoint), profile="generic-x86"))
    assert "phi3" in caught.value.problem
    assert "qwen-edge[optimum]" in caught.value.fix
    assert isinstance(caught.value.__cause__, UnsupportedArchitectureError)


def test_unsupported_feature_of_a_known_architecture_is_not_handed_on(
    tiny_config: dict[str, Any],
) -> None:
    config = tiny_config | {"hidden_act": "gelu"}
    with pytest.raises(UnsupportedArchitectureError, match="hidden_act"):
        read_native_spec(config)


def test_unknown_architecture_opens_the_second_front_end(
    other_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.export.front_end.check_optimum", lambda refusal: None)
    config = json.loads((other_checkpoint / "config.json").read_bytes())
    front_end = open_front_end(other_checkpoint, config, load_recipe("int4"))
    assert isinstance(front_end, OptimumFrontEnd)
    assert (front_end.model.model_type, front_end.model.num_layers) == ("phi3", 2)
    front_end.close()


def test_plan_for_the_second_front_end_needs_the_whole_model(
    other_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.export.front_end.check_optimum", lambda refusal: None)
    native = prepare_export(ExportRequest(model="demo", profile="generic-x86")).plan
    other = prepare_export(ExportRequest(model=str(other_checkpoint), profile="generic-x86")).plan
    assert other.memory_bytes >= 1_000_000_000 > native.memory_bytes
    assert other.seconds > native.seconds + 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp16", "--weight-format fp16"),
        ("int8", "--weight-format int8"),
        (
            "int4",
            "--weight-format int4 --sym --group-size 128 --ratio 1.0 "
            "--group-size-fallback adjust --backup-precision int8_asym",
        ),
        (
            "int4-awq",
            "--weight-format int4 --sym --group-size 128 --ratio 1.0 "
            "--group-size-fallback adjust --backup-precision int8_asym --awq",
        ),
    ],
)
def test_recipes_as_options(name: str, expected: str) -> None:
    assert " ".join(optimum_options(load_recipe(name))) == expected


def test_facts_from_other_names() -> None:
    config = {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 3,
        "vocab_size": 99,
        "n_positions": 128,
    }
    model = generic_model_facts(config, 1_000)
    assert (model.hidden_size, model.num_layers, model.head_dim) == (64, 3, 16)
    assert (model.num_kv_heads, model.max_context_tokens) == (4, 128)


@pytest.mark.parametrize("missing", ["n_embd", "n_head", "n_layer", "vocab_size", "n_positions"])
def test_facts_that_are_missing_are_named(missing: str) -> None:
    config = {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 99, "n_positions": 128}
    del config[missing]
    with pytest.raises(CheckpointError):
        generic_model_facts(config, 1_000)


@pytest.mark.parametrize(
    ("code", "error"),
    [("sys.exit('no such model')", UnsupportedArchitectureError), ("kill", ResourceError)],
)
def test_failure_of_the_process_is_told(
    code: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    body = "kill -9 $$" if code == "kill" else "echo 'no such model'; exit 3"
    script.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(optimum_frontend.sys, "executable", str(script))
    with pytest.raises(error) as caught:
        export_with_optimum(tmp_path, tmp_path, load_recipe("int4"))
    assert ("no such model" in str(caught.value)) == (code != "kill")


def test_bits_of_an_exported_model(demo_package: Path) -> None:
    bits = count_bits(demo_package / "openvino_model.xml")
    assert set(bits) >= {"4", "8"}
    assert bits["4"] > bits["8"]


@pytest.mark.parametrize(("num_layers", "expected"), [(1, 1), (4, 4), (5, None), (36, None)])
def test_shallow_models_are_fitted_to_the_npu_plugin(num_layers: int, expected: int | None) -> None:
    (npu,) = device_settings(load_profile("core-ultra-npu"), 4_096, num_layers)
    assert npu.properties.get("NPUW_ONLINE_KEEP_BLOCKS") == expected
    (cpu,) = device_settings(load_profile("core-ultra-cpu"), 4_096, num_layers)
    assert "NPUW_ONLINE_KEEP_BLOCKS" not in cpu.properties


def test_optimum_cannot_report_to_its_makers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in review: the child process sent what this one is kept from sending."""
    program = tmp_path / "optimum" / "commands"
    program.mkdir(parents=True)
    (tmp_path / "optimum" / "__init__.py").touch()
    (program / "__init__.py").touch()
    (program / "optimum_cli.py").write_text(
        "import sys\n"
        "def main():\n"
        "    try:\n"
        "        import openvino_telemetry\n"
        "    except ImportError:\n"
        "        sys.exit('telemetry cannot be imported')\n",
        encoding="utf-8",
    )
    (tmp_path / "openvino_telemetry.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UnsupportedArchitectureError, match="telemetry cannot be imported"):
        export_with_optimum(tmp_path, tmp_path, load_recipe("int4"))


def test_quantised_weights_of_another_architecture_are_refused() -> None:
    config = OTHER | {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(UnsupportedArchitectureError, match="phi3"):
        read_native_spec(config)


def test_buffers_that_are_no_weights_are_passed_over(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = {"model.mask": ("U8", np.zeros((2, 2), np.uint8))}
    folder = make_checkpoint(tmp_path / "masked", extra=mask)
    monkeypatch.setattr("qwen_edge.export.front_end.check_optimum", lambda refusal: None)
    exported = []
    monkeypatch.setattr(
        "qwen_edge.export.front_end.export_with_optimum", lambda *args: exported.append(args)
    )
    config = json.loads((folder / "config.json").read_bytes()) | OTHER
    front_end = open_front_end(folder, config, load_recipe("int4"))
    front_end.write_model(tmp_path, ModelFormats((), None), lambda step, done, total: None)
    assert len(exported) == 1


def test_optimum_writes_no_onnx(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.export.front_end.check_optimum", lambda refusal: None)
    folder = make_checkpoint(tmp_path / "other")
    config = json.loads((folder / "config.json").read_bytes()) | OTHER
    front_end = open_front_end(folder, config, load_recipe("int4"))
    onnx = OnnxFacts(21, False, 512, 512, 4)
    with pytest.raises(UnsupportedArchitectureError, match="optimum-intel writes OpenVINO only"):
        front_end.write_model(tmp_path, ModelFormats(None, onnx), lambda *args: None)


@pytest.mark.skipif(not HAS_OPTIMUM, reason="optimum-intel is not installed (extra 'optimum')")
def test_optimum_exports_another_architecture(other_checkpoint: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 1_024, "hidden_size": 128, "intermediate_size": 256}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.Phi3Config(**sizes, max_position_embeddings=512, pad_token_id=0)
    config.eos_token_id = 1_000
    for path in other_checkpoint.glob("*.safetensors"):
        path.unlink()
    transformers.Phi3ForCausalLM(config).to(torch.bfloat16).save_pretrained(other_checkpoint)
    request = ExportRequest(
        model=str(other_checkpoint), profile="core-ultra", output=tmp_path / "package"
    )
    manifest = export(request).manifest
    assert manifest.model.model_type == "phi3"
    assert manifest.weights.bits["4"] > 0
    assert dataclasses.asdict(manifest.weights)["relative_rms_error"] is None
    assert len(manifest.golden.token_ids) > 0
