"""A package that is loaded and closed again and again leaves nothing in the process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NUM_LOADS = 20
CHILD = """
import gc
import sys
import psutil
from qwen_edge.runtime import load
process = psutil.Process()
for _ in range(int(sys.argv[2])):
    with load(sys.argv[1]) as model:
        answer = model.session().ask("Hello", max_new_tokens=3, thinking=False)
        assert len(answer.token_ids) == 3
    gc.collect()  # some 0.3 MB a time, that Python would come to later
    print(process.memory_info().rss, process.num_fds(), process.num_threads(), flush=True)
"""


@pytest.mark.trust("T-LOAD-04")
def test_memory_comes_back_when_a_model_is_closed(demo_package: Path, cases: Any) -> None:
    """From the third time on: the first ones fill what the engine keeps for the process."""
    roots = os.pathsep.join(str(ROOT / top) for top in ("runtime", "profiles"))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(demo_package), str(NUM_LOADS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": roots},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = [[int(figure) for figure in line.split()] for line in done.stdout.splitlines()]
    assert len(rows) == NUM_LOADS
    (third, files, threads), (last, last_files, last_threads) = rows[2], rows[-1]
    assert last < 1.05 * third, rows
    assert last_files <= files and last_threads <= threads, rows
    cases(NUM_LOADS)
