"""What is tried: legal, without repetition, and only what this machine can do."""

import dataclasses

import pytest

from qwen_edge.profiles.hardware import CoreKinds, Hardware
from qwen_edge.profiles.properties import find_property_problem
from qwen_edge.runtime.manifest import DeviceSettings
from qwen_edge.runtime.tuning.candidate import (
    REFERENCE_PROPERTIES,
    TUNABLE,
    Axis,
    Candidate,
    Option,
    find_axes,
    find_change_problem,
    reference_candidate,
)
from qwen_edge.runtime.tuning.workload import WORKLOADS

CAPABILITIES = ("FP32", "INT8", "BF16", "FP16")


def axes_of(
    settings: DeviceSettings,
    hardware: Hardware,
    *,
    capabilities: tuple[str, ...] = CAPABILITIES,
    head_dim: int = 128,
    workload: str = "rag",
    kernels: tuple[str, ...] = (),
) -> dict[str, Axis]:
    """Return axes by name."""
    found = find_axes(
        settings,
        hardware=hardware,
        capabilities=capabilities,
        head_dim=head_dim,
        workload=WORKLOADS[workload],
        kernels=kernels,
    )
    return {axis.name: axis for axis in found}


def test_every_option_is_one_that_a_profile_could_set(
    settings: DeviceSettings, hardware: Hardware
) -> None:
    many = dataclasses.replace(
        hardware, num_physical_cores=14, num_logical_cores=20, core_kinds=CoreKinds(6, 8, 2)
    )
    axes = axes_of(settings, many)
    assert set(axes) == {"dynamic quantisation", "arithmetic", "cache", "cores", "prefill chunk"}
    for axis in axes.values():
        for option in axis.options:
            for name, value in option.properties.items():
                assert name in TUNABLE["CPU"]
                assert find_property_problem("CPU", name, value) is None
    for device, properties in REFERENCE_PROPERTIES.items():
        for name, value in properties.items():
            assert find_property_problem(device, name, value) is None


def test_two_cores_leave_no_choice_of_cores(settings: DeviceSettings, hardware: Hardware) -> None:
    assert "cores" not in axes_of(settings, hardware)


def test_cores_of_two_kinds_are_a_choice(settings: DeviceSettings, hardware: Hardware) -> None:
    hybrid = dataclasses.replace(
        hardware, num_physical_cores=14, num_logical_cores=20, core_kinds=CoreKinds(6, 8)
    )
    options = [dict(option.properties) for option in axes_of(settings, hybrid)["cores"].options]
    assert options == [
        {"ENABLE_HYPER_THREADING": False},
        {"SCHEDULING_CORE_TYPE": "PCORE_ONLY"},
        {"INFERENCE_NUM_THREADS": 13},
        {"INFERENCE_NUM_THREADS": 7},
    ]


def test_arithmetic_is_what_the_processor_has(settings: DeviceSettings, hardware: Hardware) -> None:
    axes = axes_of(settings, hardware, capabilities=("FP32", "INT8"))
    assert [option.properties for option in axes["arithmetic"].options] == [
        {"INFERENCE_PRECISION_HINT": "f32"}
    ]
    assert all(o.properties["KV_CACHE_PRECISION"] != "bf16" for o in axes["cache"].options)


@pytest.mark.parametrize(("head_dim", "has_groups"), [(128, True), (64, False), (80, False)])
def test_cache_groups_divide_the_head(
    settings: DeviceSettings, hardware: Hardware, head_dim: int, has_groups: bool
) -> None:
    options = axes_of(settings, hardware, head_dim=head_dim)["cache"].options
    assert any(o.properties["KEY_CACHE_GROUP_SIZE"] == 64 for o in options) is has_groups


def test_a_package_that_sets_keys_and_values_apart_keeps_its_cache(
    settings: DeviceSettings, hardware: Hardware
) -> None:
    properties = {**settings.properties, "KEY_CACHE_PRECISION": "u8"}
    apart = dataclasses.replace(settings, properties=properties)
    assert "cache" not in axes_of(apart, hardware)
    exact = reference_candidate(Candidate.of(apart), "CPU")
    assert "KEY_CACHE_PRECISION" not in exact.properties


@pytest.mark.parametrize(
    ("workload", "chunks"), [("chat", []), ("agent", [256]), ("rag", [256, 1024])]
)
def test_chunks_are_those_that_make_other_calls(
    settings: DeviceSettings, hardware: Hardware, workload: str, chunks: list[int]
) -> None:
    axis = axes_of(settings, hardware, workload=workload).get("prefill chunk")
    found = [] if axis is None else [option.prefill_chunk_tokens for option in axis.options]
    assert found == chunks


def test_nothing_of_the_cache_is_touched_on_gpu(
    settings: DeviceSettings, hardware: Hardware
) -> None:
    gpu = dataclasses.replace(settings, device="GPU", properties={})
    axes = axes_of(gpu, hardware, capabilities=("FP32", "FP16", "BF16"))
    assert set(axes) == {"dynamic quantisation", "arithmetic", "prefill chunk"}
    names = {name for axis in axes.values() for o in axis.options for name in o.properties}
    assert names == TUNABLE["GPU"]


def test_a_default_written_out_is_the_same_settings(settings: DeviceSettings) -> None:
    base = Candidate.of(settings)
    same = base.with_option(Option({"KEY_CACHE_GROUP_SIZE": 0, "VALUE_CACHE_GROUP_SIZE": 0}))
    assert same == base
    written = Candidate({**settings.properties, "KEY_CACHE_GROUP_SIZE": 0}, 512)
    assert written.key == base.key and written.numbers_key == base.numbers_key


def test_cores_change_speed_and_no_numbers(settings: DeviceSettings) -> None:
    base = Candidate.of(settings)
    fewer = base.with_option(Option({"INFERENCE_NUM_THREADS": 1}))
    other = base.with_option(Option({"KV_CACHE_PRECISION": "f16"}))
    assert fewer.key != base.key and fewer.numbers_key == base.numbers_key
    assert other.numbers_key != base.numbers_key


def test_changes_laid_over_the_base_give_the_candidate(settings: DeviceSettings) -> None:
    base = Candidate.of(settings)
    changed = base.with_option(Option({"KV_CACHE_PRECISION": "f16"}, 256))
    changes = changed.changes_from(base)
    assert changes == {"KV_CACHE_PRECISION": "f16", "prefill_chunk_tokens": 256}
    assert changed.settings_from(settings).properties == {
        **settings.properties,
        "KV_CACHE_PRECISION": "f16",
    }


@pytest.mark.parametrize(
    ("device", "name", "value", "is_fine"),
    [
        ("CPU", "KV_CACHE_PRECISION", "f16", True),
        ("CPU", "KV_CACHE_PRECISION", "f99", False),
        ("CPU", "CACHE_DIR", "/etc", False),
        ("CPU", "prefill_chunk_tokens", 256, True),
        ("CPU", "prefill_chunk_tokens", 0, False),
        ("CPU", "prefill_chunk_tokens", True, False),
        ("GPU", "KV_CACHE_PRECISION", "f16", False),
        ("NPU", "NPU_TURBO", "YES", False),
    ],
    ids=str,
)
def test_stored_changes_are_those_that_tuning_makes(
    device: str, name: str, value: str | int, is_fine: bool
) -> None:
    assert (find_change_problem(device, name, value) is None) is is_fine


def test_with_kernels_of_our_own_they_are_what_is_compared(
    settings: DeviceSettings, hardware: Hardware
) -> None:
    axes = axes_of(settings, hardware, kernels=("avx2",))
    assert [option.properties for option in axes["kernels"].options] == [
        {"QWEN_EDGE_KERNELS": "auto"},
        {"QWEN_EDGE_KERNELS": "engine"},
    ]
    assert "dynamic quantisation" not in axes
    base = Candidate.of(settings)
    assert base.with_option(axes["kernels"].options[0]).key == base.key
    assert base.with_option(axes["kernels"].options[1]).key != base.key
