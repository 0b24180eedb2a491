"""Facts about this machine's CPU and memory, asked from the operating system.

Owns what is known of a machine; how each system is asked is in `hardware_linux.py`,
`hardware_windows.py` and `hardware_macos.py`, with the standard library only: a probe must work
where the engine does not load. It does not know devices other than the CPU; those come from the
runtime's device probe. What a system does not tell is None or an empty tuple.
"""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

ISA_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx_vnni_int8",
    "avx_ne_convert",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    # ARM: products of 8 bits, matrices of 8 bits, long vectors
    "asimddp",
    "i8mm",
    "sve",
)
"""Instruction sets that engines choose their kernels by, as Linux names them."""
_X86_NAMES = ("x86_64", "amd64", "i386", "i686", "x86")
# Intel, family 6: model → the name its makers gave it.
# Source: Linux, arch/x86/include/asm/intel-family.h.
_CODENAMES = {
    0x97: "alder-lake", 0x9A: "alder-lake", 0xB7: "raptor-lake", 0xBA: "raptor-lake",
    0xBF: "raptor-lake", 0xBE: "gracemont", 0xAA: "meteor-lake", 0xAC: "meteor-lake",
    0xC5: "arrow-lake", 0xC6: "arrow-lake", 0xB5: "arrow-lake", 0xBD: "lunar-lake",
    0xCC: "panther-lake", 0xD5: "wildcat-lake", 0x55: "skylake-server", 0x6A: "ice-lake-server",
    0x8F: "sapphire-rapids", 0xCF: "emerald-rapids", 0xAD: "granite-rapids",
}  # fmt: skip


@dataclass(frozen=True)
class CpuModel:
    """What the processor says it is, in the numbers of its maker.

    Args:
        vendor: For example "GenuineIntel" or "AuthenticAMD".
        family: With the extended family added, as system tools show it.
        model: With the extended model, as system tools show it.
        stepping: The revision.
    """

    vendor: str
    family: int
    model: int
    stepping: int

    @property
    def codename(self) -> str | None:
        """The design's name, such as "lunar-lake"; None for those that matter to no rule."""
        is_known = self.vendor == "GenuineIntel" and self.family == 6
        return _CODENAMES.get(self.model) if is_known else None


@dataclass(frozen=True)
class CoreKinds:
    """How many physical cores of each kind a processor with several kinds has."""

    performance: int
    efficiency: int
    low_power: int = 0

    def describe(self) -> str:
        """Return it as makers write it: "6 P + 8 E + 2 LP-E"."""
        counts = ((self.performance, "P"), (self.efficiency, "E"), (self.low_power, "LP-E"))
        return " + ".join(f"{count} {kind}" for count, kind in counts if count)


@dataclass(frozen=True)
class Hardware:
    """What this machine computes with.

    Args:
        os: "Linux", "Windows" or "Darwin".
        architecture: As the system names it: "x86_64", "AMD64", "arm64".
        cpu_name: Brand name, for example "Intel(R) Core(TM) Ultra 7 155H"; None when unknown.
        num_physical_cores: Cores of the machine; None when unknown.
        num_logical_cores: Hardware threads that this process may use.
        isa_features: Those of `ISA_FEATURES` that can be used.
        memory_bytes: Installed memory, or the container's limit when lower; None when unknown.
        available_memory_bytes: Memory that can be had without swapping; None when unknown.
        cpu_model: None where the processor has no such numbers, or the system hides them.
        core_kinds: None where all cores are alike, or the system does not tell.
        cpu_quota_cores: Cores' worth of time a container may use; None without a limit.
        is_emulated: Whether this process was built for another kind of processor.
    """

    os: str
    architecture: str
    cpu_name: str | None
    num_physical_cores: int | None
    num_logical_cores: int
    isa_features: tuple[str, ...]
    memory_bytes: int | None
    available_memory_bytes: int | None
    cpu_model: CpuModel | None = None
    core_kinds: CoreKinds | None = None
    cpu_quota_cores: float | None = None
    is_emulated: bool = False

    @property
    def is_x86(self) -> bool:
        """True on x86 processors of any maker."""
        return self.architecture.lower() in _X86_NAMES

    @property
    def is_core_ultra(self) -> bool:
        """True when the CPU's name says Intel Core Ultra. A guess: virtual machines hide it."""
        return re.search(r"\bcore(\(tm\))?\s+ultra\b", self.cpu_name or "", re.I) is not None


def probe_hardware() -> Hardware:
    """Ask the operating system for CPU and memory facts. Never raises.

    State:
        Changes nothing; reads system files or calls system functions.
    """
    # Each module is imported on its own system only: the others' functions are not there.
    system = platform.system()
    if system == "Linux":
        from qwen_edge.profiles.hardware_linux import probe_linux

        return probe_linux(Path("/"))
    if system == "Windows":
        from qwen_edge.profiles.hardware_windows import probe_windows

        return probe_windows()
    if system == "Darwin":
        from qwen_edge.profiles.hardware_macos import probe_macos

        return probe_macos()
    return plain_hardware(system)


def plain_hardware(system: str) -> Hardware:
    """Return what Python itself knows, for a system that tells nothing else."""
    # not platform.processor(): it starts a process on some systems
    threads = count_usable_threads()
    return Hardware(system, platform.machine(), None, None, threads, (), None, None)


def count_usable_threads() -> int:
    """Return how many hardware threads this process may use; at least one."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    try:
        usable = len(affinity(0)) if affinity is not None else None
    except OSError:
        usable = None
    return usable or os.cpu_count() or 1
