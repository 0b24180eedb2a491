"""What an export found out about running a package on an NPU, as the manifest states it.

Data and words only. `qwen_edge.export.npu_eligibility` makes it, `openvino_opening.py` heeds it.
"""

from dataclasses import dataclass
from typing import Literal

from qwen_edge.errors import join_problems


@dataclass(frozen=True)
class NpuVerdict:
    """Whether a package may run on an NPU.

    Args:
        problems: One sentence per rule that the model breaks, with the layer; none where it may
            run or nothing is known.
        unchecked: Why nothing is known: somebody asked to leave the check out, memory or time did
            not suffice for it, this OpenVINO has no plugin for NPUs, or no child process could be
            started. None where the check was made.
    """

    problems: tuple[str, ...] = ()
    unchecked: Literal["asked", "memory", "time", "plugin", "process"] | None = None

    @property
    def is_fit(self) -> bool:
        """True where the check was made and nothing speaks against it."""
        return self.unchecked is None and not self.problems


_WHY_UNCHECKED = {
    "asked": "it was asked for",
    "memory": "memory did not suffice",
    "time": "it took too long",
    "plugin": "OpenVINO has no plugin for NPUs where the package was exported",
    "process": "no child process could be started",
}


def describe_verdict(verdict: NpuVerdict) -> str:
    """Return a verdict in words, without a full stop."""
    if verdict.unchecked is not None:
        return f"not checked, because {_WHY_UNCHECKED[verdict.unchecked]}"
    if verdict.problems:
        return f"does not run there: {join_problems(verdict.problems)}"
    return "compiled by OpenVINO's NPU plugin when the package was exported; not run on an NPU"
