"""What an x86-64 processor says of itself through its CPUID instruction.

Linux and macOS tell this in files and values; Windows tells little of it, and nothing of
AVX-VNNI or AMX. So a few bytes of machine code are put into memory of their own and called, as
every engine does with the kernels it makes. Reading the answers knows no system.
"""

import ctypes
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_edge.profiles.hardware import ISA_FEATURES, CpuModel

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""
ReadLeaf = Callable[[int, int], Registers]
"""Returns the registers of a leaf and subleaf."""

_EAX, _EBX, _ECX, _EDX = range(4)
# Parts of a thread's state that the system must save, by their bits in XCR0.
_AVX_STATE, _AVX512_STATE, _AMX_STATE = 0b110, 0b1110_0110, 0b11 << 17
# Feature → leaf, subleaf, register, bit, and the state it needs.
# Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID.
_BITS: Mapping[str, tuple[int, int, int, int, int]] = {
    "fma": (1, 0, _ECX, 12, _AVX_STATE),
    "f16c": (1, 0, _ECX, 29, _AVX_STATE),
    "avx2": (7, 0, _EBX, 5, _AVX_STATE),
    "avx512f": (7, 0, _EBX, 16, _AVX512_STATE),
    "avx512_vnni": (7, 0, _ECX, 11, _AVX512_STATE),
    "amx_bf16": (7, 0, _EDX, 22, _AMX_STATE),
    "avx512_fp16": (7, 0, _EDX, 23, _AVX512_STATE),
    "amx_tile": (7, 0, _EDX, 24, _AMX_STATE),
    "amx_int8": (7, 0, _EDX, 25, _AMX_STATE),
    "avx_vnni": (7, 1, _EAX, 4, _AVX_STATE),
    "avx512_bf16": (7, 1, _EAX, 5, _AVX512_STATE),
    "amx_fp16": (7, 1, _EAX, 21, _AMX_STATE),
    "avx_vnni_int8": (7, 1, _EDX, 4, _AVX_STATE),
    "avx_ne_convert": (7, 1, _EDX, 5, _AVX_STATE),
}
_OSXSAVE_BIT = 27  # of leaf 1, ECX: whether XCR0 can be read


@dataclass(frozen=True)
class CpuidFacts:
    """The processor's numbers, and those of `ISA_FEATURES` that it and the system allow."""

    cpu_model: CpuModel
    isa_features: tuple[str, ...]


def read_facts(read_leaf: ReadLeaf, read_states: Callable[[], int]) -> CpuidFacts:
    """Return what a processor's answers mean.

    Args:
        read_leaf: Asks the processor.
        read_states: Returns XCR0; called only where the processor has it.
    """
    max_leaf, *vendor = read_leaf(0, 0)
    ebx, ecx, edx = vendor
    signature = read_leaf(1, 0)
    states = read_states() if signature[_ECX] >> _OSXSAVE_BIT & 1 else 0
    max_subleaf = read_leaf(7, 0)[_EAX] if max_leaf >= 7 else -1
    found = set()
    for name, (leaf, subleaf, register, bit, state) in _BITS.items():
        if leaf > max_leaf or (leaf == 7 and subleaf > max_subleaf) or states & state != state:
            continue
        if read_leaf(leaf, subleaf)[register] >> bit & 1:
            found.add(name)
    name = struct.pack("<III", ebx, edx, ecx).decode("ascii", "replace")
    features = tuple(feature for feature in ISA_FEATURES if feature in found)
    return CpuidFacts(_read_model(name, signature[_EAX]), features)


def _read_model(vendor: str, signature: int) -> CpuModel:
    """Return the numbers in leaf 1's EAX, the extended ones added where they count."""
    stepping, model, family = signature & 15, signature >> 4 & 15, signature >> 8 & 15
    if family in (6, 15):
        model += (signature >> 16 & 15) << 4
    if family == 15:
        family += signature >> 20 & 255
    return CpuModel(vendor, family, model, stepping)


# Both routines take no argument and return nothing, so they follow the calling convention of
# every system: where the answer goes is written into them. r8 is free to use everywhere.
_ENDBR64 = b"\xf3\x0f\x1e\xfa"  # marks a place that may be called


def build_leaf_code(leaf: int, subleaf: int, address: int) -> bytes:
    """Return machine code that runs CPUID and stores four uint32 at an address.

    Args:
        leaf: EAX.
        subleaf: ECX.
        address: Of 16 bytes.
    """
    return b"".join(
        (
            _ENDBR64,
            b"\x53",  # push rbx, which a caller wants back
            b"\xb8" + struct.pack("<I", leaf),  # mov eax, leaf
            b"\xb9" + struct.pack("<I", subleaf),  # mov ecx, subleaf
            b"\x0f\xa2",  # cpuid
            b"\x49\xb8" + struct.pack("<Q", address),  # mov r8, address
            b"\x41\x89\x00",  # mov [r8], eax
            b"\x41\x89\x58\x04",  # mov [r8+4], ebx
            b"\x41\x89\x48\x08",  # mov [r8+8], ecx
            b"\x41\x89\x50\x0c",  # mov [r8+12], edx
            b"\x5b\xc3",  # pop rbx; ret
        )
    )


def build_states_code(address: int) -> bytes:
    """Return machine code that stores XCR0, one uint64, at an address."""
    return b"".join(
        (
            _ENDBR64,
            b"\x31\xc9",  # xor ecx, ecx
            b"\x0f\x01\xd0",  # xgetbv
            b"\x49\xb8" + struct.pack("<Q", address),  # mov r8, address
            b"\x41\x89\x00",  # mov [r8], eax
            b"\x41\x89\x50\x04",  # mov [r8+4], edx
            b"\xc3",  # ret
        )
    )


def read_facts_with(call: Callable[[bytes], None]) -> CpuidFacts:
    """Ask this machine's processor.

    Args:
        call: Runs machine code once.

    Raises:
        OSError: As `call`, where the system does not let it be run.
    """
    answer = (ctypes.c_uint32 * 4)()
    address = ctypes.addressof(answer)

    def read_leaf(leaf: int, subleaf: int) -> Registers:
        call(build_leaf_code(leaf, subleaf, address))
        return answer[0], answer[1], answer[2], answer[3]

    def read_states() -> int:
        call(build_states_code(address))
        return answer[0] | answer[1] << 32

    return read_facts(read_leaf, read_states)


_COMMIT_AND_RESERVE, _RELEASE = 0x3000, 0x8000  # winnt.h: MEM_COMMIT | MEM_RESERVE, MEM_RELEASE
_READ_WRITE, _EXECUTE_READ = 0x04, 0x20  # winnt.h: PAGE_READWRITE, PAGE_EXECUTE_READ


def call_on_windows(kernel: Any, code: bytes) -> None:
    """Run machine code in memory that is written first and executable only then.

    Args:
        kernel: kernel32.
        code: Takes and returns nothing.

    Raises:
        OSError: The system gives no such memory, as under a policy against dynamic code.
    """
    kernel.VirtualAlloc.restype = ctypes.c_void_p
    memory = kernel.VirtualAlloc(None, ctypes.c_size_t(len(code)), _COMMIT_AND_RESERVE, _READ_WRITE)
    if not memory:
        raise OSError("no memory for machine code")
    place = ctypes.c_void_p(memory)
    try:
        ctypes.memmove(memory, code, len(code))
        before = ctypes.c_uint32(0)
        size = ctypes.c_size_t(len(code))
        if not kernel.VirtualProtect(place, size, _EXECUTE_READ, ctypes.byref(before)):
            raise OSError("memory may not be made executable")
        ctypes.CFUNCTYPE(None)(memory)()
    finally:
        kernel.VirtualFree(place, ctypes.c_size_t(0), _RELEASE)
