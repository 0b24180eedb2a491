"""Hardware facts: parsed from copies of system files, and a real probe that does not fail."""

import ctypes
import mmap
import platform
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.profiles import probe_hardware
from qwen_edge.profiles.cpuid import Registers, read_facts, read_facts_with
from qwen_edge.profiles.hardware import (
    ISA_FEATURES,
    CoreKinds,
    CpuModel,
    Hardware,
    plain_hardware,
)
from qwen_edge.profiles.hardware_linux import (
    parse_cpu_model,
    parse_cpuinfo,
    parse_meminfo,
    parse_thread_list,
    probe_linux,
)
from qwen_edge.profiles.hardware_macos import read_macos
from qwen_edge.profiles.hardware_windows import count_kinds, read_core_classes

CORE_ULTRA = "".join(
    f"""processor\t: {thread}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 170
stepping\t: 4
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


@pytest.mark.parametrize("text", ["", "Features : asimd\n", "no colon at all\n", "flags :\n"])
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


# --- Kinds of cores -----------------------------------------------------------------------------


def hybrid_root(folder: Path, kinds: dict[str, str], no_third_cache: tuple[int, ...] = ()) -> Path:
    """Make the files of a processor of 4 cores in 6 threads, with a level-3 cache for most."""
    root = make_root(
        folder,
        {
            "proc/cpuinfo": CORE_ULTRA,
            **{f"sys/devices/{name}/cpus": v for name, v in kinds.items()},
        },
    )
    for thread in range(6):
        levels = (2,) if thread in no_third_cache else (2, 3)
        for level in levels:
            (root / f"sys/devices/system/cpu/cpu{thread}/cache/index{level}").mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("kinds", "no_third_cache", "expected"),
    [
        ({"cpu_core": "0-3", "cpu_atom": "4-5"}, (), CoreKinds(2, 2, 0)),
        # Meteor Lake: two cores of low power lie apart from the cache that the others share
        ({"cpu_core": "0-3\n", "cpu_atom": "4,5\n"}, (5,), CoreKinds(2, 1, 1)),
        # Arrow Lake: the kernel has a name for them
        ({"cpu_core": "0-1", "cpu_atom": "2-4", "cpu_lowpower": "5"}, (), CoreKinds(1, 2, 1)),
        # Lunar Lake: all the small cores are of that kind
        ({"cpu_core": "0-3", "cpu_atom": "4-5"}, (4, 5), CoreKinds(2, 0, 2)),
        ({"cpu_core": "0-3"}, (), None),
        ({"cpu_core": "0-3", "cpu_atom": "all"}, (), None),
        ({}, (), None),
    ],
)
def test_cores_of_each_kind_are_counted_on_linux(
    tmp_path: Path,
    kinds: dict[str, str],
    no_third_cache: tuple[int, ...],
    expected: CoreKinds | None,
) -> None:
    assert probe_linux(hybrid_root(tmp_path, kinds, no_third_cache)).core_kinds == expected


def test_a_machine_without_any_third_cache_has_no_cores_of_low_power(tmp_path: Path) -> None:
    root = hybrid_root(tmp_path, {"cpu_core": "0-3", "cpu_atom": "4-5"}, tuple(range(6)))
    assert probe_linux(root).core_kinds == CoreKinds(2, 2, 0)


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [((1024, 1024, 446, 446), CoreKinds(2, 2)), ((1024, 1009, 1024, 990), None)],
)
def test_other_processors_are_told_apart_by_capacity(
    tmp_path: Path, capacities: tuple[int, ...], expected: CoreKinds | None
) -> None:
    folder = "sys/devices/system/cpu/cpu"
    files = {f"{folder}{n}/cpu_capacity": f"{value}\n" for n, value in enumerate(capacities)}
    assert probe_linux(make_root(tmp_path, files)).core_kinds == expected


def test_kinds_of_cores_are_written_as_makers_do() -> None:
    assert CoreKinds(6, 8, 2).describe() == "6 P + 8 E + 2 LP-E"
    assert CoreKinds(4, 0, 4).describe() == "4 P + 4 LP-E"


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 60)), min_size=1, max_size=8))
def test_a_list_of_threads_is_read_as_it_was_written(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" if more else f"{first}" for first, more in ranges)
    expected = [n for first, more in ranges for n in range(first, first + more + 1)]
    assert parse_thread_list(text + "\n") == tuple(expected)


@pytest.mark.parametrize("text", ["", "\n", "3-1", "0-", "-1", "0-99999999", "1,,2", "x"])
def test_what_is_no_list_of_threads_is_empty(text: str) -> None:
    assert parse_thread_list(text) == ()


def test_the_processors_numbers_give_its_design(tmp_path: Path) -> None:
    model = parse_cpu_model(CORE_ULTRA)
    assert model == CpuModel("GenuineIntel", 6, 170, 4)
    assert model.codename == "meteor-lake"
    assert replace(model, vendor="AuthenticAMD").codename is None
    assert replace(model, model=1).codename is None
    assert parse_cpu_model("CPU architecture: 8\n") is None
    assert probe_linux(make_root(tmp_path, {"proc/cpuinfo": CORE_ULTRA})).cpu_model == model


def test_arm_has_features_of_its_own() -> None:
    assert parse_cpuinfo("Features : fp asimd asimddp i8mm\n")[2] == ("asimddp", "i8mm")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "100000 0\n"}, None),
        ({"cpu.max": "100000\n"}, None),
    ],
)
def test_a_containers_share_of_the_processor(
    tmp_path: Path, files: dict[str, str], expected: float | None
) -> None:
    root = make_root(tmp_path, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert probe_linux(root).cpu_quota_cores == expected


def core_record(size_bytes: int, efficiency_class: int) -> bytes:
    """Return a record of GetLogicalProcessorInformationEx."""
    head = struct.pack("<IIBB", 0, size_bytes, 1, efficiency_class)
    return head + bytes(size_bytes - len(head))


def test_windows_core_records_are_read_by_their_sizes() -> None:
    records = core_record(48, 1) + core_record(64, 0) + core_record(48, 1)
    assert read_core_classes(records) == (1, 0, 1)
    assert read_core_classes(records[:9]) == ()
    assert read_core_classes(core_record(48, 0)[:48] + b"\0" * 4) == (0,)
    assert read_core_classes(struct.pack("<II", 0, 0) + bytes(8)) == ()  # would never end


def test_windows_classes_become_kinds() -> None:
    assert count_kinds((1,) * 6 + (0,) * 8) == CoreKinds(6, 8)
    assert count_kinds((2, 2, 1, 1, 1, 0)) == CoreKinds(2, 3, 1)
    assert count_kinds((0, 0)) is None
    assert count_kinds(()) is None


@pytest.mark.parametrize("is_apple", [True, False])
def test_macos_facts_come_together(is_apple: bool) -> None:
    numbers = {"hw.memsize": 24 << 30, "hw.physicalcpu": 8}
    texts = {"machdep.cpu.brand_string": "Apple M3"}
    if is_apple:
        numbers |= {"hw.nperflevels": 2, "hw.perflevel0.physicalcpu": 4}
        numbers |= {"hw.perflevel1.physicalcpu": 4, "hw.optional.arm.FEAT_I8MM": 1}
    else:
        numbers |= {"sysctl.proc_translated": 1, "machdep.cpu.family": 6, "machdep.cpu.model": 154}
        texts |= {"machdep.cpu.vendor": "GenuineIntel", "machdep.cpu.leaf7_features": "AVX2 BMI1"}
        texts |= {"machdep.cpu.features": "FMA F16C"}
    values = {name: number.to_bytes(8, "little") for name, number in numbers.items()}
    values |= {name: text.encode() + b"\0" for name, text in texts.items()}
    facts = read_macos(lambda name: values.get(name, b""), plain_hardware("Darwin"))
    assert (facts.cpu_name, facts.num_physical_cores) == ("Apple M3", 8)
    assert facts.memory_bytes == 24 << 30
    assert facts.core_kinds == (CoreKinds(4, 4) if is_apple else None)
    assert facts.isa_features == (("i8mm",) if is_apple else ("avx2", "fma", "f16c"))
    assert facts.is_emulated is not is_apple
    assert facts.cpu_model == (None if is_apple else CpuModel("GenuineIntel", 6, 154, 0))


# --- The processor's own answers ----------------------------------------------------------------

# Core Ultra 7 155H: AVX2, FMA, F16C, AVX-VNNI; no AVX-512.
METEOR_LAKE: dict[tuple[int, int], Registers] = {
    (0, 0): (0x23, 0x756E6547, 0x6C65746E, 0x49656E69),
    (1, 0): (0x000A06A4, 0, 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29, 0),
    (7, 0): (2, 1 << 5, 0, 1 << 15),
    (7, 1): (1 << 4, 0, 0, 0),
}


def test_a_core_ultras_answers_are_understood() -> None:
    facts = read_facts(lambda leaf, subleaf: METEOR_LAKE[leaf, subleaf], lambda: 0b111)
    assert facts.cpu_model == CpuModel("GenuineIntel", 6, 0xAA, 4)
    assert facts.isa_features == ("avx2", "fma", "f16c", "avx_vnni")


def test_what_the_system_does_not_save_cannot_be_used() -> None:
    """AVX-512 and AMX are there, and a virtual machine has switched their state off."""
    leaves = METEOR_LAKE | {(7, 0): (0, 1 << 5 | 1 << 16, 1 << 11, 1 << 24 | 1 << 25)}
    read = leaves.__getitem__
    assert read_facts(lambda *key: read(key), lambda: 0b111).isa_features == ("avx2", "fma", "f16c")
    every = read_facts(lambda *key: read(key), lambda: 0b111 | 0b111 << 5 | 0b11 << 17)
    assert {"avx512f", "avx512_vnni", "amx_tile", "amx_int8"} <= set(every.isa_features)
    assert "avx_vnni" not in every.isa_features  # leaf 7 says that it has no subleaf 1


def test_a_system_without_saved_states_is_not_asked_for_them() -> None:
    leaves = {(0, 0): (1, 0, 0, 0), (1, 0): (0, 0, 1 << 12, 0)}

    def read_states() -> int:
        raise AssertionError("XGETBV is no instruction here")

    assert read_facts(lambda *key: leaves[key], read_states).isa_features == ()


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="needs x86-64 Linux"
)
def test_the_machine_code_says_what_linux_says() -> None:
    """The same bytes run on Windows: they take no argument, so no convention matters."""

    def call(code: bytes) -> None:
        everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        with mmap.mmap(-1, mmap.PAGESIZE, prot=everything) as memory:
            memory.write(code)
            place = ctypes.c_char.from_buffer(memory)
            ctypes.CFUNCTYPE(None)(ctypes.addressof(place))()
            del place

    told = probe_linux(Path("/"))
    facts = read_facts_with(call)
    assert facts.isa_features == told.isa_features
    assert facts.cpu_model == told.cpu_model


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
