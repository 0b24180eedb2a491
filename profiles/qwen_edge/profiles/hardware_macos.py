"""CPU and memory facts from macOS, by its sysctl values.

It knows no other system; `hardware.py` says what the facts mean. A value that is missing gives
unknowns, never an error.
"""

import ctypes
from collections.abc import Callable

from qwen_edge.profiles.hardware import (
    ISA_FEATURES,
    CoreKinds,
    CpuModel,
    Hardware,
    plain_hardware,
)

# Source: Apple, "Determining instruction set characteristics".
_ARM_VALUES = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"}

ReadValue = Callable[[str], bytes]
"""Returns a sysctl value's bytes; empty when there is none of this name."""


def probe_macos() -> Hardware:
    """Ask macOS. Never raises; what it does not tell is None or an empty tuple."""
    plain = plain_hardware("Darwin")
    try:
        libc = ctypes.CDLL(None)
        return read_macos(lambda name: _sysctl(libc, name), plain)
    except (OSError, AttributeError, TypeError):
        return plain


def read_macos(read: ReadValue, plain: Hardware) -> Hardware:
    """Return the facts in sysctl's values.

    Args:
        read: Asks for one.
        plain: What Python knows.
    """
    name = read("machdep.cpu.brand_string").rstrip(b"\0").decode(errors="replace")
    # Intel only; "leaf7" has what came with AVX2 and later
    flags = read("machdep.cpu.leaf7_features") + b" " + read("machdep.cpu.features")
    spelled = set(flags.replace(b"\0", b" ").decode(errors="replace").lower().split())
    spelled |= {feature for value, feature in _ARM_VALUES.items() if _number(read, value)}
    return Hardware(
        "Darwin",
        plain.architecture,
        name or None,
        _number(read, "hw.physicalcpu") or None,
        plain.num_logical_cores,
        tuple(feature for feature in ISA_FEATURES if feature in spelled),
        _number(read, "hw.memsize") or None,
        None,
        cpu_model=_read_model(read),
        core_kinds=_read_kinds(read),
        is_emulated=_number(read, "sysctl.proc_translated") == 1,
    )


def _read_model(read: ReadValue) -> CpuModel | None:
    vendor = read("machdep.cpu.vendor").rstrip(b"\0").decode(errors="replace")
    if not vendor:  # Apple's own processors have none
        return None
    family, model, stepping = (
        _number(read, f"machdep.cpu.{key}") for key in ("family", "model", "stepping")
    )
    return CpuModel(vendor, family, model, stepping)


def _read_kinds(read: ReadValue) -> CoreKinds | None:
    """Return the counts by level of performance, the fastest first."""
    if _number(read, "hw.nperflevels") < 2:
        return None
    fast, other = (_number(read, f"hw.perflevel{level}.physicalcpu") for level in (0, 1))
    return CoreKinds(fast, other) if fast and other else None


def _number(read: ReadValue, name: str) -> int:
    return int.from_bytes(read(name), "little")


def _sysctl(libc: ctypes.CDLL, name: str) -> bytes:
    size = ctypes.c_size_t(0)
    if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0) != 0:
        return b""
    buffer = ctypes.create_string_buffer(size.value)
    if libc.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0) != 0:
        return b""
    return buffer.raw[: size.value]
