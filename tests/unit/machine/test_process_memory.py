"""What a process holds, by the system's own account."""

import os
import sys

import numpy as np
import pytest

from qwen_edge.runtime.machine.process_memory import (
    ProcessMemory,
    parse_status,
    read_process_memory,
)

SIZE = 64_000_000


def test_private_memory_grows_with_what_is_used() -> None:
    before = read_process_memory()
    used = np.ones(SIZE, np.uint8)
    after = read_process_memory(os.getpid())
    assert before is not None and after is not None
    assert SIZE * 0.9 < after.private_bytes - before.private_bytes < SIZE * 1.5
    assert used[-1] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a number that is no process, on Linux")
def test_a_process_that_is_gone_has_none() -> None:
    assert read_process_memory(2**22 + 1) is None


def test_linux_counts_apart_what_files_hold() -> None:
    text = (
        "Name:\tpython\nVmRSS:\t 600 kB\nRssAnon:\t 100 kB\nRssFile:\t 300 kB\nRssShmem:\t 200 kB\n"
    )
    assert parse_status(text) == ProcessMemory(102_400, 512_000)
    assert parse_status("Name:\tzombie\nState:\tZ (zombie)\n") is None
    assert parse_status("RssAnon:\nRssFile: much kB\n") is None
