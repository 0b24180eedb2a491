"""Hardware facts: parsed from copies of system files, and a real probe that does not fail."""

import struct
from pathlib import Path

import pytest

from qwen_edge.profiles import probe_hardware
from qwen_edge.profiles.hardware import (
    ISA_FEATURES,
    Hardware,
    count_core_records,
    parse_cpuinfo,
    parse_meminfo,
    probe_linux,
)

CORE_ULTRA = "".join(
    f"""processor\t: {thread}
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) Ultra 7 155H
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse2 avx f16c fma avx2 avx_vnni

"""
    for thread, core in enumerate((0, 0, 1, 1, 2, 3))
)

MEMINFO = "MemTotal:       32000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"


def make_root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_cpuinfo_of_a_hybrid_laptop() -> None:
    name, num_cores, features = parse_cpuinfo(CORE_ULTRA)
    assert name == "Intel(R) Core(TM) Ultra 7 155H"
    assert num_cores == 4
    assert features == ("avx2", "fma", "f16c", "avx_vnni")


def test_cores_with_the_same_number_in_two_sockets_are_two() -> None:
    text = "physical id : 0\ncore id : 0\n\nphysical id : 1\ncore id : 0\n"
    assert parse_cpuinfo(text)[1] == 2


@pytest.mark.parametrize("text", ["", "Features : asimd sve\n", "no colon at all\n", "flags :\n"])
def test_cpuinfo_without_the_fields_gives_unknowns(text: str) -> None:
    assert parse_cpuinfo(text) == (None, None, ())


def test_meminfo() -> None:
    assert parse_meminfo(MEMINFO) == (32_000_000 * 1024, 20_000_000 * 1024)
    assert parse_meminfo("") == (None, None)


def test_linux_facts_come_together(tmp_path: Path) -> None:
    root = make_root(tmp_path, {"proc/cpuinfo": CORE_ULTRA, "proc/meminfo": MEMINFO})
    facts = probe_linux(root)
    assert facts.is_core_ultra
    assert facts.memory_bytes == 32_768_000_000
    assert facts.available_memory_bytes == 20_480_000_000


def test_a_container_has_the_memory_of_its_limit_less_what_it_cannot_give_back(
    tmp_path: Path,
) -> None:
    """File pages count as used by a container but can be had: a mapped checkpoint is no loss."""
    group = "sys/fs/cgroup"
    root = make_root(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            f"{group}/memory.max": "8000000000\n",
            f"{group}/memory.current": "7000000000\n",
            f"{group}/memory.stat": "anon 1\ninactive_file 4000000000\nactive_file 1000000000\n",
        },
    )
    facts = probe_linux(root)
    assert facts.memory_bytes == 8_000_000_000
    assert facts.available_memory_bytes == 6_000_000_000


def test_a_container_without_a_limit_has_the_machines_memory(tmp_path: Path) -> None:
    root = make_root(tmp_path, {"proc/meminfo": MEMINFO, "sys/fs/cgroup/memory.max": "max\n"})
    assert probe_linux(root).memory_bytes == 32_768_000_000


def test_without_system_files_there_are_unknowns_and_no_error(tmp_path: Path) -> None:
    facts = probe_linux(tmp_path)
    assert (facts.cpu_name, facts.num_physical_cores, facts.memory_bytes) == (None, None, None)
    assert facts.num_logical_cores >= 1
    assert not facts.is_core_ultra


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Intel(R) Core(TM) Ultra 9 288V", True),
        ("Intel(R) Core(TM) Ultra 5 125U", True),
        ("intel core ultra 7", True),
        ("Intel(R) Core(TM) i9-13900K", False),
        ("Intel(R) Core(TM) 7 150U", False),
        ("UltraSPARC", False),
        (None, False),
    ],
)
def test_core_ultra_is_told_by_its_name(name: str | None, expected: bool) -> None:
    assert Hardware("Linux", "x86_64", name, 1, 1, (), 1, 1).is_core_ultra is expected


def test_windows_core_records_are_counted_by_their_sizes() -> None:
    records = struct.pack("<II", 0, 48) + bytes(40) + struct.pack("<II", 0, 64) + bytes(56)
    assert count_core_records(records) == 2
    assert count_core_records(records[:7]) is None
    assert count_core_records(struct.pack("<II", 0, 0) + bytes(8)) is None


def test_the_real_probe_answers() -> None:
    facts = probe_hardware()
    assert facts.num_logical_cores >= 1
    assert facts.num_physical_cores is None or facts.num_physical_cores >= 1
    assert set(facts.isa_features) <= set(ISA_FEATURES)
    if facts.memory_bytes is not None and facts.available_memory_bytes is not None:
        assert 0 < facts.available_memory_bytes <= facts.memory_bytes


@pytest.mark.parametrize("system", ["Windows", "Darwin", "Plan9"])
def test_a_probe_for_another_system_falls_back_to_unknowns(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code for Windows and macOS must not raise where their functions are missing."""
    monkeypatch.setattr("platform.system", lambda: system)
    facts = probe_hardware()
    assert facts.os == system
    assert facts.num_logical_cores >= 1
