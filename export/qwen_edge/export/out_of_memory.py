"""Memory that ran out during an export, told as such whichever library noticed it.

What a plan says is needed is checked before any work (`plan.py`); this is for what other programs
took meanwhile, and for limits that nobody told us of.
"""

import contextlib
import re
from collections.abc import Iterator

from qwen_edge.errors import EdgeError, ResourceError, format_bytes
from qwen_edge.export.plan import ExportPlan
from qwen_edge.profiles.hardware import probe_hardware

# As the C library, the dynamic linker, C++ and OpenVINO put it.
_WORDS = re.compile(
    r"cannot allocate memory|failed to map segment|bad[_ ]alloc|(?:out of|not enough) memory"
    # What starting a thread gives where there is no memory for its stack.
    r"|resource temporarily unavailable|can't start new thread",
    re.I,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of any library says that there is no more memory."""
    return isinstance(error, MemoryError) or _WORDS.search(str(error)) is not None


@contextlib.contextmanager
def telling_of_memory(plan: ExportPlan | None = None) -> Iterator[None]:
    """Turn what a library raises where memory ran out into one error with figures.

    Args:
        plan: What the export was expected to take; None while that is not known.

    Raises:
        ResourceError: Memory ran out. The target is as it was.
    """
    try:
        yield
    except EdgeError:
        raise
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
        available = probe_hardware().available_memory_bytes
        needed = None if plan is None else plan.memory_bytes
        takes = "" if needed is None else f" It takes about {format_bytes(needed)}."
        now = "" if available is None else f" {format_bytes(available)} are available now."
        raise ResourceError(
            f"The memory ran out during the export.{takes}{now} The output folder is as it was.",
            "close other programs, raise a limit such as that of `ulimit -v`, or export a "
            "smaller model",
            needed_bytes=needed,
            available_bytes=available,
        ) from exc
