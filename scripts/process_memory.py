"""Peak memory of a process and its children, sampled while it runs.

Private memory is what a machine must have; file pages of mapped weights are counted apart, because
the system drops and re-reads them as it likes. One reading is `process_memory.py` of the runtime.
"""

import threading
import time

import psutil

from qwen_edge.runtime.machine.process_memory import read_process_memory

SAMPLE_SECONDS = 0.02


class MemorySampler:
    """Samples a process tree until stopped.

    Args:
        pid: The process at the tree's root.

    State:
        `private_bytes` and `total_bytes` are the highest sums seen so far.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.private_bytes = 0
        self.total_bytes = 0

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stopping.is_set():
            private, total = 0, 0
            for pid in self._pids():
                memory = read_process_memory(pid)
                if memory is not None:  # else it is gone
                    private += memory.private_bytes
                    total += memory.private_bytes + memory.file_bytes
            self.private_bytes = max(self.private_bytes, private)
            self.total_bytes = max(self.total_bytes, total)
            time.sleep(SAMPLE_SECONDS)

    def _pids(self) -> list[int]:
        try:
            return [self._root.pid, *(c.pid for c in self._root.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []
