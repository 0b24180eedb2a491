"""CPU and memory facts from Linux: `/proc` and `/sys`, read as files under a root folder.

It knows no other system; `hardware.py` says what the facts mean. Every file may be missing, as in
containers and virtual machines; what is not told is None or an empty tuple.
"""

import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from qwen_edge.profiles.hardware import (
    ISA_FEATURES,
    CoreKinds,
    CpuModel,
    Hardware,
    count_usable_threads,
)

_KIB = 1024
_MAX_THREAD_NUMBER = 8191  # NR_CPUS of the largest kernels; a list is not believed beyond
# Kernels name the counters of each kind of core; "lowpower" came with Arrow Lake.
_PERFORMANCE_LIST = "sys/devices/cpu_core/cpus"
_EFFICIENCY_LIST = "sys/devices/cpu_atom/cpus"
_LOW_POWER_LIST = "sys/devices/cpu_lowpower/cpus"

CoreOfThread = Mapping[int, tuple[str, str]]
"""Number of a hardware thread to its socket and core."""


def probe_linux(root: Path) -> Hardware:
    """Read the facts from `proc` and `sys` under a root folder.

    Args:
        root: `/`, or a folder with copies of the files.
    """
    cpuinfo = _read_text(root / "proc/cpuinfo")
    memory, available = parse_meminfo(_read_text(root / "proc/meminfo"))
    limit = _read_number(root / "sys/fs/cgroup/memory.max")  # "max" when there is no limit
    if limit is not None and (memory is None or limit < memory):
        memory = limit
        free = max(limit - _count_held_bytes(root / "sys/fs/cgroup"), 0)
        available = free if available is None else min(available, free)
    name, num_cores, features = parse_cpuinfo(cpuinfo)
    return Hardware(
        "Linux",
        platform.machine(),
        name,
        num_cores,
        count_usable_threads(),
        features,
        memory,
        available,
        cpu_model=parse_cpu_model(cpuinfo),
        core_kinds=read_core_kinds(root, parse_cores(cpuinfo)),
        cpu_quota_cores=_read_quota(root / "sys/fs/cgroup"),
    )


def parse_cpuinfo(text: str) -> tuple[str | None, int | None, tuple[str, ...]]:
    """Return name, number of physical cores and features from /proc/cpuinfo.

    Args:
        text: The file's content; may be empty or of another processor family.
    """
    fields = _parse_first_fields(text)
    flags = set(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
    features = tuple(name for name in ISA_FEATURES if name in flags)
    num_cores = len(set(parse_cores(text).values()))
    return fields.get("model name") or None, num_cores or None, features


def parse_cpu_model(text: str) -> CpuModel | None:
    """Return the processor's numbers from /proc/cpuinfo; None where it has none."""
    fields = _parse_first_fields(text)
    numbers = [fields.get(key, "") for key in ("cpu family", "model", "stepping")]
    if not all(number.isdecimal() for number in numbers):
        return None
    family, model, stepping = map(int, numbers)
    return CpuModel(fields.get("vendor_id", ""), family, model, stepping)


def parse_cores(text: str) -> CoreOfThread:
    """Return which core each hardware thread of /proc/cpuinfo belongs to."""
    cores: dict[int, tuple[str, str]] = {}
    thread, socket = -1, "0"
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            thread = int(value) if value.isdecimal() else thread + 1
        elif key == "physical id":
            socket = value
        elif key == "core id":
            if thread in cores:  # a file that does not number its threads
                thread = max(cores) + 1
            cores[thread] = (socket, value)
    return cores


def parse_meminfo(text: str) -> tuple[int | None, int | None]:
    """Return total and available bytes from /proc/meminfo, None for what is not there."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.M))
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    return (
        int(total) * _KIB if total else None,
        int(available) * _KIB if available else None,
    )


def parse_thread_list(text: str) -> tuple[int, ...]:
    """Return the numbers in a list such as "0-3,8"; an empty tuple for anything else."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if bounds is None:
            return ()
        first, last = int(bounds[1]), int(bounds[2] or bounds[1])
        if not first <= last <= _MAX_THREAD_NUMBER:
            return ()
        numbers += range(first, last + 1)
    return tuple(numbers)


def read_core_kinds(root: Path, cores: CoreOfThread) -> CoreKinds | None:
    """Return how many cores of each kind there are; None where all are alike.

    Args:
        root: As `probe_linux`.
        cores: As `parse_cores`.

    Source:
        Linux, Documentation/ABI/testing/sysfs-devices-system-cpu. Cores without a level-3 cache
        beside others that have one are those of low power, on Meteor Lake and Lunar Lake.
    """
    performance = parse_thread_list(_read_text(root / _PERFORMANCE_LIST))
    efficiency = parse_thread_list(_read_text(root / _EFFICIENCY_LIST))
    low_power = parse_thread_list(_read_text(root / _LOW_POWER_LIST))
    if not performance or not efficiency:
        performance, efficiency = _split_by_capacity(root)
    if not performance or not efficiency:
        return None
    if not low_power and _has_third_cache(root, performance[0]):
        low_power = tuple(n for n in efficiency if not _has_third_cache(root, n))
    efficiency = tuple(n for n in efficiency if n not in low_power)
    counts = [_count_cores(kind, cores) for kind in (performance, efficiency, low_power)]
    return CoreKinds(*counts)


def _count_cores(threads: Iterable[int], cores: CoreOfThread) -> int:
    return len({cores.get(number, ("", str(number))) for number in threads})


def _split_by_capacity(root: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the threads of the fastest cores and the others, by what the scheduler thinks."""
    capacities: dict[int, int] = {}
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpu_capacity"):
        capacity = _read_number(path)
        if capacity is not None:
            capacities[int(path.parent.name.removeprefix("cpu"))] = capacity
    if not capacities:
        return (), ()
    # Favoured cores of one kind differ by a few per cent; another kind by a third and more.
    least = 0.8 * max(capacities.values())
    fast = tuple(sorted(n for n, capacity in capacities.items() if capacity >= least))
    return fast, tuple(sorted(capacities.keys() - set(fast)))


def _has_third_cache(root: Path, thread: int) -> bool:
    return (root / f"sys/devices/system/cpu/cpu{thread}/cache/index3").is_dir()


def _read_quota(folder: Path) -> float | None:
    """Return the cores' worth of time a control group allows, of version 2 or 1."""
    quota, _, period = _read_text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota = _read_text(folder / "cpu/cpu.cfs_quota_us").strip()  # -1 without a limit
        period = _read_text(folder / "cpu/cpu.cfs_period_us").strip()
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _count_held_bytes(folder: Path) -> int:
    """Return the memory a container cannot give back: all of its own but file pages."""
    used = _read_number(folder / "memory.current") or 0
    stat = _read_text(folder / "memory.stat")
    pages = re.findall(r"^(?:active|inactive)_file (\d+)$", stat, re.M)
    return max(used - sum(int(count) for count in pages), 0)


def _parse_first_fields(text: str) -> dict[str, str]:
    """Return the fields of the first processor that has them."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        fields.setdefault(key, value)
    return fields


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdecimal() else None
