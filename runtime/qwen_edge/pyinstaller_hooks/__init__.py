"""What PyInstaller has to collect for a program that uses `qwen_edge.runtime`.

PyInstaller finds this folder by the entry point `pyinstaller40` of the installed project, so that
`pyinstaller app.py` is enough. Nothing of it is used when the program runs. Read the hook beside
this file for what is collected, and docs/embed.md for how to build.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

DEVICES = ("CPU", "GPU", "NPU")
# Parts of the names of libraries that OpenVINO loads by itself, so that nothing links to them.
_FOR_ALL = ("openvino_ir_frontend", "tbb", "hwloc")
_FOR_DEVICE = {
    "CPU": ("openvino_intel_cpu_plugin", "openvino_arm_cpu_plugin"),
    "GPU": ("openvino_intel_gpu_plugin", "cache.json"),
    "NPU": ("openvino_intel_npu_plugin", "openvino_intel_npu_compiler"),
}
# The malloc of TBB takes the place of the program's own only where it is asked to.
_LEFT_OUT = ("tbbmalloc_proxy", ".pc", ".lib", ".pdb")


def get_hook_dirs() -> list[str]:
    """Return the folders that hold hooks; PyInstaller asks."""
    return [str(Path(__file__).parent)]


def choose_engine_files(names: Iterable[str], devices: Iterable[str] | None = None) -> list[str]:
    """Return which files of OpenVINO's library folder a program needs.

    Args:
        names: All of that folder, on any system.
        devices: Of `DEVICES`; None for all.

    Raises:
        ValueError: A device that there is not.
    """
    return sorted(_choose(names, tuple(devices) if devices is not None else DEVICES))


def _choose(names: Iterable[str], devices: tuple[str, ...]) -> Iterator[str]:
    unknown = [device for device in devices if device not in DEVICES]
    if unknown:
        raise ValueError(f"devices has {unknown[0]!r}; expected some of {', '.join(DEVICES)}")
    wanted = (*_FOR_ALL, *(part for device in devices for part in _FOR_DEVICE[device]))
    for name in names:
        is_wanted = any(part in name for part in wanted)
        if is_wanted and not any(part in name for part in _LEFT_OUT):
            yield name
