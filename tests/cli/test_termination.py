"""Being told to end (SIGTERM, a closed terminal) cleans up as Ctrl-C does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

EXPORT_THAT_WAITS = """
import time
from qwen_edge.export import openvino_files
def wait(*arguments):
    print("writing", flush=True)
    time.sleep(60)
openvino_files.write_openvino_model = wait
from qwen_edge.cli import main
main(["export", "demo", "--output", "package", "--quiet"])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_export_that_is_ended_leaves_nothing(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)
    command = [sys.executable, "-c", EXPORT_THAT_WAITS]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert (tmp_path / ".package.partial").is_dir()
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    assert list(tmp_path.iterdir()) == []
