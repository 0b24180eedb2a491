"""An export for a GPU is refused before anything is written where no GPU would take it."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import ResourceError
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.gpu_check import check_gpu
from qwen_edge.export.pipeline import prepare_export, run_export
from qwen_edge.export.request import ExportRequest, ResolvedRequest, resolve_request

EXACT = """
extends = "core-ultra-gpu"
[[devices]]
device = "GPU"
max_context_tokens = 131072
[devices.properties]
INFERENCE_PRECISION_HINT = "f32"
"""


@pytest.fixture
def qwen3_8b(tiny_config: dict[str, Any]) -> DecoderSpec:
    return dataclasses.replace(
        read_spec(tiny_config),
        num_layers=36,
        hidden_size=4_096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        is_tied=False,
    )


def resolve(tmp_path: Path, text: str = EXACT, **options: object) -> ResolvedRequest:
    path = tmp_path / "my-gpu.toml"
    path.write_text(text, encoding="utf-8")
    request = ExportRequest(model="demo", profile=str(path))
    return resolve_request(dataclasses.replace(request, **options))  # type: ignore[arg-type]


def test_it_is_refused_with_the_context_that_fits(tmp_path: Path, qwen3_8b: DecoderSpec) -> None:
    with pytest.raises(ResourceError) as caught:
        check_gpu(resolve(tmp_path), qwen3_8b, context_limit=131_072)
    longest = caught.value.facts["max_context_tokens"]
    assert longest == 32_767
    assert f"--max-context-tokens {longest}" in caught.value.fix
    check_gpu(resolve(tmp_path, max_context_tokens=longest), qwen3_8b, context_limit=131_072)
    # A model that was made for less never gets so far.
    check_gpu(resolve(tmp_path), qwen3_8b, context_limit=4_096)


def test_without_a_gpu_or_without_openvino_nobody_asks(
    tmp_path: Path, qwen3_8b: DecoderSpec
) -> None:
    check_gpu(resolve(tmp_path, format="onnx"), qwen3_8b, context_limit=131_072)
    text = EXACT.replace("core-ultra-gpu", "core-ultra-cpu").replace('"GPU"', '"CPU"')
    check_gpu(resolve(tmp_path, text), qwen3_8b, context_limit=131_072)


def test_a_limit_that_only_some_have_is_a_warning(
    tmp_path: Path, qwen3_8b: DecoderSpec, caplog: pytest.LogCaptureFixture
) -> None:
    request = resolve(tmp_path, 'extends = "core-ultra-gpu"\n', recipe="fp16")
    with caplog.at_level(logging.WARNING):
        check_gpu(request, qwen3_8b, context_limit=32_768)
    [record] = caplog.records
    assert "inside WSL2" in record.getMessage()


def test_the_export_asks_before_it_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen3_8b: DecoderSpec
) -> None:
    monkeypatch.setattr("qwen_edge.export.pipeline.read_native_spec", lambda _: qwen3_8b)
    monkeypatch.setattr("qwen_edge.export.gpu_check.check_gpu_buffers", _refuse)
    request = ExportRequest(model="demo", profile="core-ultra-gpu", output=tmp_path / "out")
    with pytest.raises(ResourceError, match="too large"):
        prepare_export(request)
    assert not (tmp_path / "out").exists()


def test_a_model_that_was_not_here_before_is_looked_at_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ExportRequest(model="demo", profile="core-ultra-gpu", output=tmp_path / "out")
    prepared = dataclasses.replace(prepare_export(request), spec=None)
    monkeypatch.setattr("qwen_edge.export.gpu_check.check_gpu_buffers", _refuse)
    with pytest.raises(ResourceError, match="too large"):
        run_export(prepared)
    assert list(tmp_path.iterdir()) == []


def _refuse(*_: object) -> str:
    raise ResourceError("too large", "")
