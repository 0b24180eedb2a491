"""Known problems: the table holds together, rules fire on what they name and on nothing less."""

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.profiles.hardware import CoreKinds, CpuModel, Hardware
from qwen_edge.runtime.devices.drivers import Accelerator
from qwen_edge.runtime.devices.probing import DeviceReport
from qwen_edge.runtime.machine.facts import FACTS, Probes, collect_facts, package_facts
from qwen_edge.runtime.machine.known_problems import (
    Fact,
    KnownProblem,
    find_known_problems,
    is_met,
    load_known_problems,
)
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.recipe_facts import MatrixFacts

TABLE = load_known_problems()
ROOT = Path(__file__).parents[3]
LAPTOP = Hardware(
    "Linux",
    "x86_64",
    "Intel(R) Core(TM) Ultra 7 155H",
    16,
    22,
    ("avx2", "avx_vnni"),
    32_000_000_000,
    20_000_000_000,
    cpu_model=CpuModel("GenuineIntel", 6, 170, 4),
    core_kinds=CoreKinds(6, 8, 2),
)
GPU = Accelerator("GPU", "0x7d55", None, "xe", "/dev/dri/renderD128", True, "25.40.1")
NPU = Accelerator("NPU", "0x7d1d", None, "intel_vpu", "/dev/accel/accel0", True, "1.33.0")
SEEN = tuple(DeviceReport(name, f"An {name}") for name in ("CPU", "GPU", "NPU"))
UNSEEN = (
    DeviceReport("CPU", "A CPU"),
    DeviceReport("GPU", "", "no OpenCL"),
    DeviceReport("NPU", "", "no such device"),
)


# --- The table ----------------------------------------------------------------------------------


def test_names_are_used_once() -> None:
    names = [entry.id for entry in TABLE]
    assert len(names) >= 30
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.id)
def test_an_entry_is_complete(entry: KnownProblem) -> None:
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", entry.id)
    assert entry.level in ("problem", "note")
    assert entry.when and entry.what and entry.fix
    assert entry.sources
    assert all(source.startswith("https://") for source in entry.sources)
    placeholders = {
        name for text in (entry.what, entry.fix) for _, name, _, _ in string.Formatter().parse(text)
    }
    assert (placeholders - {None}) | entry.when.keys() <= FACTS.keys()


def test_every_fact_is_asked_for() -> None:
    texts = " ".join(f"{entry.what} {entry.fix}" for entry in TABLE)
    asked = {name for entry in TABLE for name in entry.when}
    assert [name for name in FACTS if name not in asked and f"{{{name}}}" not in texts] == []


def meet(condition: str | bool) -> Fact:
    """Return a fact that meets a condition."""
    if isinstance(condition, bool):
        return condition
    limits = dict(re.findall(r"(<=|>=|<)\s*(\S+)", condition))
    if limits:
        if ">=" in limits or "<=" in limits:
            return str(limits.get(">=", limits.get("<=")))
        head, _, last = limits["<"].rpartition(".")
        return f"{head}.{int(last) - 1}".lstrip(".")
    if condition.startswith("one of "):
        return condition.removeprefix("one of ").split(",")[0]
    return f"a {condition.removeprefix('contains ')} b" if "contains" in condition else condition


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.id)
def test_a_rule_fires_on_all_of_its_facts_and_on_nothing_less(entry: KnownProblem) -> None:
    facts = {name: meet(condition) for name, condition in entry.when.items()}
    [found] = find_known_problems(facts, [entry])
    assert found.id == entry.id
    assert "{" not in found.what + found.fix
    for name in facts:
        rest = {other: fact for other, fact in facts.items() if other != name}
        assert find_known_problems(rest, [entry]) == ()
        assert find_known_problems({**rest, name: None}, [entry]) == ()


@pytest.mark.parametrize(
    ("fact", "condition", "expected"),
    [
        ("6.5.0-41-generic", "< 6.6", True),
        ("6.6.1", "< 6.6", False),
        ("6.18.5-200.fc43", ">= 6.18 < 6.19", True),
        ("7.0", ">= 6.18 < 6.19", False),
        ("32.0.100.3104", "< 32.0.100.4181", True),
        ("32.0.101.8724", "< 32.0.100.4181", False),
        ("1.9", "< 1.28", True),  # a number, not a text
        ("25.48.36300.8", "<= 25.48.36300.8", True),
        ("25.48.36300.9", "<= 25.48.36300.8", False),
        ("26", "< 26.1", True),
        (29.5, "< 30", True),
        ("no number", "< 5", False),
        ("Linux", "linux", True),
        ("Linux", "Lin", False),
        ("/usr/lib/libze_intel_vpu.so", "contains libze_intel_vpu", True),
        ("quiet", "one of low-power, quiet", True),
        ("quieter", "one of low-power, quiet", False),
        (True, True, True),
        (False, True, False),
        ("True", True, False),
        (None, False, False),
        (None, "< 5", False),
    ],
)
def test_conditions(fact: Fact, condition: str | bool, expected: bool) -> None:
    assert is_met(fact, condition) is expected


VERSIONS = st.lists(st.integers(0, 40_000), min_size=1, max_size=4)


@given(VERSIONS, VERSIONS)
def test_versions_of_equal_detail_are_ordered_as_tuples(left: list[int], right: list[int]) -> None:
    size = min(len(left), len(right))
    found, limit = (".".join(map(str, parts[:size])) for parts in (left, right))
    assert is_met(found, f"< {limit}") is (left[:size] < right[:size])
    assert is_met(found, f">= {limit}") is (left[:size] >= right[:size])


def test_a_fact_that_only_a_text_needs_may_be_unknown() -> None:
    entry = KnownProblem("a", "note", {"has_gpu": True}, "driver {gpu_driver}", "x", ("https://x",))
    [found] = find_known_problems({"has_gpu": True}, [entry])
    assert found.what == "driver unknown"


# --- Machines -----------------------------------------------------------------------------------


@pytest.fixture
def linux(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that gives the names of a Linux machine's known problems."""

    def find(
        files: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        **probes: Any,
    ) -> list[str]:
        every = {"proc/sys/kernel/osrelease": "6.17.0-29-generic\n", **(files or {})}
        for name, text in every.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        usual: dict[str, Any] = {"hardware": LAPTOP, "devices": SEEN, "accelerators": (GPU, NPU)}
        facts = collect_facts(
            Probes(**{**usual, **probes}), root=tmp_path, variables=variables or {}
        )
        assert facts.keys() <= FACTS.keys()
        assert None not in facts.values()
        return [entry.id for entry in find_known_problems(facts)]

    return find


COMPILER = {"usr/lib/x86_64-linux-gnu/libnpu_driver_compiler.so": ""}


def test_a_laptop_in_order_has_no_known_problem(linux: Any) -> None:
    assert linux(COMPILER) == []


def test_a_machine_that_tells_nothing_has_no_known_problem() -> None:
    silent = Hardware("Plan9", "x86_64", None, None, 1, (), None, None)
    assert find_known_problems(collect_facts(Probes(silent), variables={})) == ()


NO_NODE = {"node": None, "is_accessible": None}
CONTAINER = {".dockerenv": ""}


@pytest.mark.parametrize(
    ("files", "probes", "expected"),
    [
        (
            {},
            {"accelerators": (replace(GPU, is_accessible=False), NPU), "devices": UNSEEN},
            ["gpu-not-permitted", "npu-driver-refused-linux"],
        ),
        (
            CONTAINER,
            {"accelerators": (replace(GPU, is_accessible=False),), "devices": UNSEEN},
            ["gpu-not-permitted-in-container"],
        ),
        (
            CONTAINER,
            {"accelerators": (replace(GPU, **NO_NODE), replace(NPU, **NO_NODE)), "devices": UNSEEN},
            ["gpu-not-in-container", "npu-not-in-container"],
        ),
        (
            {},
            {"accelerators": (replace(GPU, driver_version=None),), "devices": UNSEEN},
            ["gpu-without-driver-linux"],
        ),
        ({}, {"accelerators": (GPU,), "devices": UNSEEN}, ["gpu-driver-refused-linux"]),
        (
            {"proc/sys/kernel/osrelease": "6.5.0-41-generic"},
            {"accelerators": (replace(NPU, **NO_NODE),), "devices": UNSEEN},
            ["npu-kernel-too-old"],
        ),
        (
            {},
            {"accelerators": (replace(NPU, **NO_NODE),), "devices": UNSEEN},
            ["npu-kernel-driver-not-loaded"],
        ),
        (
            {},
            {"accelerators": (replace(NPU, driver_version=None),), "devices": UNSEEN},
            ["npu-without-driver-linux"],
        ),
        ({}, {}, ["npu-without-compiler"]),
        (
            COMPILER | {"usr/lib64/libze_intel_vpu.so.1": ""},
            {},
            ["npu-driver-under-its-old-name"],
        ),
        (
            COMPILER,
            {"accelerators": (replace(NPU, pci_id="0xb03e", driver_version="1.26.0"),)},
            ["npu-driver-too-old-for-panther-lake"],
        ),
        (
            COMPILER,
            {"properties": {"NPU": {"DEVICE_ARCHITECTURE": "3720"}}},
            ["npu-garbles-long-prompts"],
        ),
        (
            {"proc/sys/kernel/osrelease": "6.6.87-microsoft-standard-WSL2"},
            {"accelerators": None, "devices": UNSEEN},
            ["npu-under-wsl"],
        ),
        (
            COMPILER,
            {"hardware": replace(LAPTOP, cpu_quota_cores=2.5)},
            ["more-threads-than-the-container-may-run"],
        ),
        (
            COMPILER,
            {"hardware": replace(LAPTOP, memory_bytes=16_000_000_000)},
            ["gpu-little-memory"],
        ),
        (COMPILER, {"bandwidth_bytes_per_s": 20e9}, ["slow-memory"]),
        (
            COMPILER
            | {
                "sys/class/power_supply/BAT0/type": "Battery",
                "sys/class/power_supply/BAT0/status": "Discharging",
                "sys/firmware/acpi/platform_profile": "low-power",
            },
            {},
            ["on-battery", "power-saving-linux"],
        ),
        (
            COMPILER
            | {
                "sys/class/power_supply/mouse/type": "Battery",
                "sys/class/power_supply/mouse/scope": "Device",
                "sys/class/power_supply/mouse/status": "Discharging",
            },
            {},
            [],
        ),
        (
            COMPILER,
            {"versions": {"openvino": "2026.4.1", "openvino-dev": "2024.6.0"}},
            ["openvino-twice"],
        ),
        (
            COMPILER,
            {"versions": {"openvino": "2026.4.1", "openvino-genai": "2026.3.0.0"}},
            ["openvino-genai-of-another-version"],
        ),
    ],
)
def test_machines_have_the_problems_they_have(
    linux: Any, files: dict[str, str], probes: dict[str, Any], expected: list[str]
) -> None:
    assert linux(files, **probes) == expected


@pytest.mark.parametrize(
    ("name", "value", "is_found"),
    [
        ("INTEL_OPENVINO_DIR", "/opt/intel/openvino_2024", True),
        ("LD_LIBRARY_PATH", "/opt/intel/openvino_2024/runtime/lib", True),
        ("LD_LIBRARY_PATH", "/usr/local/lib", False),
        ("PYTHONPATH", "/venv/site-packages/openvino", False),
    ],
)
def test_another_openvino_in_the_environment(
    linux: Any, name: str, value: str, is_found: bool
) -> None:
    assert linux(COMPILER, {name: value}) == ["openvino-of-a-setup-script"] * is_found


def test_the_fix_for_a_container_names_the_number_of_threads(tmp_path: Path) -> None:
    hardware = replace(LAPTOP, cpu_quota_cores=2.5)
    [found] = find_known_problems(collect_facts(Probes(hardware), root=tmp_path, variables={}))
    assert "may use 2.5 cores' time but sees 22" in found.what
    assert found.fix == "run with --threads 2"


WINDOWS = {
    "system": "Windows",
    "windows_build": "26100",
    "is_remote_desktop": False,
    "has_npu": True,
    "has_gpu": True,
    "is_gpu_usable": True,
    "is_npu_usable": True,
    "gpu_driver": "32.0.101.6790",
    "npu_driver": "32.0.101.8724",
    "openvino_version": "2026.4.1",
    "memory_gb": 33.5,
}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"npu_driver": "32.0.100.2714"}, ["npu-driver-too-old-for-llms-windows"]),
        ({"npu_driver": "32.0.100.3764"}, ["npu-driver-slow-head-windows"]),
        ({"npu_driver": "32.0.100.4512"}, ["npu-compile-fails-windows-24h2"]),
        ({"npu_driver": "32.0.100.4512", "windows_build": "26200"}, []),
        ({"is_npu_usable": False}, ["npu-without-driver-windows"]),
        ({"is_npu_usable": False, "is_remote_desktop": True}, ["npu-over-remote-desktop"]),
        ({"is_npu_usable": False, "windows_build": "19045"}, ["npu-needs-windows-11"]),
        ({"gpu_driver": "31.0.101.2111"}, ["gpu-driver-breaks-windows-24h2"]),
        ({"is_gpu_usable": False}, ["gpu-without-driver-windows"]),
        ({"openvino_error": "ImportError: DLL load failed"}, ["openvino-without-runtime-library"]),
    ],
)
def test_windows_machines(facts: dict[str, Fact], expected: list[str]) -> None:
    assert [entry.id for entry in find_known_problems({**WINDOWS, **facts})] == expected


# --- Packages -----------------------------------------------------------------------------------


def test_a_package_for_the_npu_must_have_weights_that_it_compiles() -> None:
    manifest = Manifest.from_bytes((ROOT / "tests/data/manifest.json").read_bytes())
    entry = manifest.devices[0]
    npu = replace(manifest, devices=(replace(entry, device="NPU"),))
    fitting = replace(npu.recipe, weights="int4", symmetric=True, group_size=128)

    def find(recipe: Any) -> list[str]:
        facts = package_facts(replace(npu, recipe=recipe), Path("/p"), {})
        assert facts.keys() <= FACTS.keys()
        return [found.id for found in find_known_problems(facts)]

    assert find(fitting) == []
    assert find(replace(fitting, group_size=-1)) == []
    assert find(replace(fitting, weights="nf4", group_size=-1)) == []
    exceptions = {"layers.0.mlp.up_proj": MatrixFacts("int4", True, -1)}
    assert find(replace(fitting, matrices=exceptions)) == []
    wrong_ones: list[dict[str, Any]] = [
        {"symmetric": False},
        {"group_size": 64},
        {"weights": "int8"},
        {"weights": "nf4"},
        {"ratio": 0.8},
        {"matrices": {"layers.0.mlp.up_proj": MatrixFacts("int8", False, -1)}},
    ]
    for wrong in wrong_ones:
        assert find(replace(fitting, **wrong)) == ["npu-cannot-compile-this-recipe"]


def test_a_package_for_the_gpu_should_leave_its_cache_alone() -> None:
    manifest = Manifest.from_bytes((ROOT / "tests/data/manifest.json").read_bytes())
    entry = replace(manifest.devices[0], device="GPU", properties={"KV_CACHE_PRECISION": "u8"})
    facts = package_facts(replace(manifest, devices=(entry,)), Path("/p"), {})
    found = find_known_problems({**facts, "is_gpu_usable": True})
    assert [problem.id for problem in found] == ["gpu-cache-precision-forced"]
    assert "to u8" in found[0].what
