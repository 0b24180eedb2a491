"""When a decoder gets our kernels: by its properties, its device, and what there is here."""

from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends import decoder_preparing
from qwen_edge.runtime.backends.compiling import read_ir
from qwen_edge.runtime.backends.decoder_preparing import Prepared, prepare_decoder
from qwen_edge.runtime.kernels import KernelLibrary, are_wanted, find_kernels
from qwen_edge.runtime.manifest import MODEL_XML

needs_kernels = pytest.mark.skipif(
    not find_kernels().names, reason=f"no kernels here: {find_kernels().reason}"
)
FAST = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}


@pytest.fixture
def model(demo_package: Path) -> Any:
    return read_ir(demo_package / MODEL_XML)


def count_ours(model: Any) -> int:
    kinds = ("CompressedMatMul", "DecoderLayers")
    return sum(node.get_type_name() in kinds for node in model.get_ops())


@needs_kernels
def test_a_package_for_the_cpu_gets_them(model: Any) -> None:
    prepared = prepare_decoder(model, "CPU", FAST)
    assert prepared.kernels == find_kernels().names[0]
    assert prepared.properties == FAST
    assert count_ours(model) == 1 + 1  # all layers, and the head


@needs_kernels
def test_with_a_cache_of_the_engine_they_compute_products_alone(model: Any) -> None:
    prepared = prepare_decoder(model, "CPU", {**FAST, "KV_CACHE_PRECISION": "f16"})
    assert (prepared.kernels, prepared.cache) == (find_kernels().names[0], None)
    # Of each layer: queries, keys and values; the output; gate and up; down. And the head.
    assert count_ours(model) == 4 * 4 + 1


@needs_kernels
@pytest.mark.parametrize(("hint", "expected"), [("bf16", "f32"), ("f32", "f32"), ("odd", "odd")])
def test_what_the_engine_keeps_is_not_narrowed(model: Any, hint: str, expected: str) -> None:
    properties = {**FAST, "INFERENCE_PRECISION_HINT": hint}
    prepared = prepare_decoder(model, "CPU", properties)
    assert prepared.properties["INFERENCE_PRECISION_HINT"] == expected


@needs_kernels
@pytest.mark.parametrize("name", find_kernels().names)
def test_each_can_be_named(model: Any, name: str) -> None:
    prepared = prepare_decoder(model, "CPU", {**FAST, "QWEN_EDGE_KERNELS": name})
    assert prepared.kernels == name
    assert prepared.properties == FAST


@pytest.mark.parametrize(
    ("device", "properties"),
    [
        ("GPU", FAST),
        ("CPU", {**FAST, "QWEN_EDGE_KERNELS": "engine"}),
        ("CPU", {**FAST, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}),
        ("CPU", {**FAST, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}),
        ("CPU", {**FAST, "EXECUTION_MODE_HINT": "ACCURACY"}),
        ("CPU", {**FAST, "INFERENCE_PRECISION_HINT": "f16"}),
    ],
)
def test_the_engine_computes_elsewhere_and_where_nothing_is_rounded(
    model: Any, device: str, properties: dict[str, str | int]
) -> None:
    prepared = prepare_decoder(model, device, properties)
    assert prepared.kernels is None
    assert count_ours(model) == 0
    assert "QWEN_EDGE_KERNELS" not in prepared.properties


def test_naming_them_overrules_exactness() -> None:
    exact = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "QWEN_EDGE_KERNELS": "avx2"}
    assert are_wanted(exact)


def test_without_a_library_the_engine_computes_and_a_name_is_refused(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = KernelLibrary(None, reason="they were not compiled", fix="install a compiler")
    monkeypatch.setattr(decoder_preparing, "find_kernels", lambda: none)
    assert prepare_decoder(model, "CPU", FAST) == Prepared(FAST)
    with pytest.raises(DeviceError) as caught:
        prepare_decoder(model, "CPU", {**FAST, "QWEN_EDGE_KERNELS": "amx"})
    assert "no kernels named 'amx' here: they were not compiled." in caught.value.problem
    assert caught.value.fix == "install a compiler"


@needs_kernels
def test_a_name_that_the_processor_lacks_is_refused_with_those_it_has(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = KernelLibrary(find_kernels().path, ("avx2-vnni", "avx2"))
    monkeypatch.setattr(decoder_preparing, "find_kernels", lambda: some)
    with pytest.raises(DeviceError) as caught:
        prepare_decoder(model, "CPU", {**FAST, "QWEN_EDGE_KERNELS": "amx"})
    assert "but avx2-vnni, avx2" in caught.value.problem
    assert "tune" in caught.value.fix
