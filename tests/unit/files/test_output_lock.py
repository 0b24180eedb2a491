"""One export at a time: whoever comes second is told at once who is first."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge.errors import OutputFolderError
from qwen_edge.runtime.files import output_lock
from qwen_edge.runtime.files.output_lock import lock_output

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

# 8 processes take the lock in turns, each adding one to a number that is not safe to share.
RACE = """
import os, sys, time
from pathlib import Path
from qwen_edge.errors import OutputFolderError
from qwen_edge.runtime.files.output_lock import lock_output

target = Path(sys.argv[1]) / "package"
number = Path(sys.argv[1]) / "number"
number.write_text("0")

def work():
    for _ in range(25):
        while True:
            try:
                with lock_output(target):
                    value = int(number.read_text())
                    time.sleep(0.0005)
                    number.write_text(str(value + 1))
                break
            except OutputFolderError:
                time.sleep(0.0005)

children = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
print(number.read_text(), sorted(os.listdir(sys.argv[1])))
"""

HOLD = """
import sys, time
from pathlib import Path
from qwen_edge.runtime.files.output_lock import lock_output
with lock_output(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.trust("T-EXP-08")
def test_the_second_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    target = tmp_path / "größe 模型"
    with lock_output(target):
        with (
            pytest.raises(OutputFolderError, match=r"Another export is writing") as caught,
            lock_output(target),
        ):
            pass
        assert caught.value.facts["pid"] == os.getpid()
        assert f"(process {os.getpid()})" in caught.value.problem
        with lock_output(tmp_path / "other"):
            pass
    with lock_output(target):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_failure_lets_go_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lock_output(tmp_path / "a"):
        raise KeyboardInterrupt
    with lock_output(tmp_path / "a"):
        pass


@needs_fork
@pytest.mark.trust("T-EXP-09")
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    target = tmp_path / "a"
    command = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputFolderError, match=rf"\(process {holder.pid}\)"),
            lock_output(target),
        ):
            pass
        holder.kill()
        holder.wait()
    assert (tmp_path / ".a.lock").exists()
    with lock_output(target):
        pass
    assert list(tmp_path.iterdir()) == []


@needs_fork
@pytest.mark.trust("T-EXP-08")
def test_eight_processes_are_never_inside_together(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert run.stderr == ""
    assert run.stdout == "200 ['number']\n"


def test_a_lock_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / ".a.lock").mkdir()
    with (
        pytest.raises(OutputFolderError, match=r"lock file .* cannot be written"),
        lock_output(tmp_path / "a"),
    ):
        pass


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows every link")
def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept", encoding="utf-8")
    (tmp_path / ".a.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputFolderError), lock_output(tmp_path / "a"):
        pass
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "kept"


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(output_lock, "_lock", refuse)
    with lock_output(tmp_path / "a"):
        pass
    assert "cannot be locked" in caplog.text
