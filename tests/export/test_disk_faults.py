"""A whole export, each of its file operations killed, failed, and cut off by a power cut.

The engines' own writes are seen as one operation per file, when they are done.
"""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_disks import GROWING, CountingDisk, FailingDisk, RecordingDisk, Tree
from trust_rows import Cases

from qwen_edge.errors import ResourceError
from qwen_edge.export import ExportRequest, export
from qwen_edge.runtime.files.writing import using_disk
from qwen_edge.runtime.package import package_hash, verify_package

CheckpointMaker = Callable[..., Path]
TESTS = Path(__file__).parents[1]
EXCHANGING = pytest.mark.parametrize("can_exchange", [True, False], ids=["one-step", "two-steps"])


def request_of(source: Path, target: Path, *, recipe: str | None = None) -> ExportRequest:
    return ExportRequest(
        str(source), "generic-x86", output=target, force=True, skip_quality=True, recipe=recipe
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: CheckpointMaker) -> Path:
    """Return the checkpoint of all exports here."""
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def earlier(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an earlier package of the same checkpoint, with other weights; copied by tests."""
    return export(
        request_of(source, tmp_path_factory.mktemp("earlier") / "p", recipe="int8")
    ).folder


@pytest.fixture
def target(earlier: Path, tmp_path: Path) -> Path:
    """Return a target that holds a copy of the earlier package."""
    return Path(shutil.copytree(earlier, tmp_path / "größe 模型" / "p"))


def check_only_package(target: Path, expected_hash: str) -> None:
    """Check that a whole package is there, which one, and nothing beside it."""
    assert package_hash(target) == expected_hash
    assert verify_package(target).is_intact
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.trust("T-EXP-04", "T-EXP-06")
def test_each_operation_made_to_fail(source: Path, target: Path, cases: Cases) -> None:
    """A disk full from that operation on where it needs room, and a broken one elsewhere."""
    before = package_hash(target)
    number = 0
    while True:
        number += 1
        disk = FailingDisk(number, OSError(errno.ENOSPC, "No space left on device"), lasting=True)
        try:
            with using_disk(disk):
                export(request_of(source, target))
        except ResourceError as error:
            assert "filled up" in error.problem
            assert "the target is as it was" in error.problem
            check_only_package(target, before)
        else:
            assert disk.struck is None or disk.struck[0] not in GROWING | {"sync", "exchange"}
            assert verify_package(target).is_intact
            before = package_hash(target)
            if disk.struck is None:
                break
    assert number > 50
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    cases(number - 1, claim="failed")


@EXCHANGING
@pytest.mark.parametrize("has_earlier", [True, False], ids=["earlier", "nothing"])
@pytest.mark.trust("T-EXP-02")
def test_each_state_that_a_power_cut_could_leave(
    has_earlier: bool, can_exchange: bool, source: Path, target: Path, cases: Cases
) -> None:
    old = read_tree(target) if has_earlier else {}
    if not has_earlier:
        shutil.rmtree(target)
    disk = RecordingDisk(target.parent, can_exchange=can_exchange)
    with using_disk(disk):
        export(request_of(source, target))
    new = read_tree(target)
    assert verify_package(target).is_intact
    seen = []
    for what, tree in disk.states:
        found = below(tree, "p/")
        seen.append("old" if found == old else "new" if found == new else "nothing")
        if found not in (old, new):
            assert not found, what
            assert below(tree, ".p.replaced/") == old, what
    states = list(dict.fromkeys(seen))
    assert (
        states == ["old", "nothing", "new"] if has_earlier and not can_exchange else ["old", "new"]
    )
    assert seen[-8:] == ["new"] * 8
    cases(len(disk.states), claim="crashed")


def read_tree(folder: Path) -> Tree:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def below(tree: Tree, prefix: str) -> Tree:
    """Return what a tree holds in one folder."""
    names = {name.removeprefix(prefix): name for name in tree if name.startswith(prefix)}
    return {short: tree[name] for short, name in names.items() if short}


# Everything is imported before the first fork, and no thread runs yet.
KILLED = """
import os, shutil, sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
source, earlier, root = map(Path, sys.argv[2:5])
has_earlier = sys.argv[5] == "True"
from qwen_edge.runtime.engine import import_openvino
import_openvino()
import openvino_tokenizers
from transformers import PreTrainedTokenizerFast
from scripted_disks import KillingDisk
from test_disk_faults import request_of
from qwen_edge.export import export, front_end, pipeline, tokenizer_files
from qwen_edge.runtime.files.writing import using_disk
from qwen_edge.runtime.package import package_hash, verify_package

assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
target = root / "p"
number, seen = 0, []
while True:
    number += 1
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if has_earlier:
        shutil.copytree(earlier, target)
    pid = os.fork()
    if pid == 0:
        with using_disk(KillingDisk(number)):
            export(request_of(source, target))
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if target.exists():
        assert verify_package(target).is_intact, number
        seen.append(package_hash(target))
    else:
        seen.append("nothing")
    if status == 0:
        break
    assert os.WTERMSIG(status) == 9, (number, status)
assert os.listdir(root) == ["p"]
print(number - 1, *dict.fromkeys(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks of a process without threads")
@pytest.mark.parametrize("has_earlier", [True, False], ids=["earlier", "nothing"])
@pytest.mark.trust("T-EXP-01")
def test_killed_at_each_operation(
    has_earlier: bool, source: Path, earlier: Path, tmp_path: Path, cases: Cases
) -> None:
    folders = [TESTS / "plugins", TESTS / "export"]
    folders += [TESTS.parent / top for top in ("export", "runtime", "profiles")]
    path = os.pathsep.join(map(str, folders))
    run = subprocess.run(
        [sys.executable, "-c", KILLED, path, source, earlier, tmp_path / "r", str(has_earlier)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr
    number, *seen = run.stdout.split()
    new = package_hash(tmp_path / "r" / "p")
    assert seen == [package_hash(earlier) if has_earlier else "nothing", new]
    assert int(number) > 40
    cases(int(number), claim="killed")


@pytest.mark.trust("T-EXP-15")
def test_what_a_kill_left_is_removed_by_the_next_export(source: Path, target: Path) -> None:
    """What the last killed export had begun, at its largest."""
    partial = target.with_name(".p.partial")
    shutil.copytree(target, partial)
    (partial / "manifest.json").unlink()
    target.with_name(".p.lock").write_text("4194305", encoding="ascii")
    result = export(request_of(source, target))
    check_only_package(target, package_hash(result.folder))


class FarDisk(CountingDisk):
    """Remembers in which folders something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.folders: set[Path] = set()

    def before(self, operation: str, path: Path) -> None:
        super().before(operation, path)
        if operation in GROWING | {"note", "rename", "exchange"}:
            self.folders.add(path.parent)


@pytest.mark.trust("T-EXP-13")
def test_nothing_is_made_elsewhere(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package made where temporary files go would have to be copied, and that is no one step."""
    elsewhere = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    disk = FarDisk()
    with using_disk(disk):
        export(request_of(source, target))
    assert target.with_name(".p.partial") in disk.folders
    assert all(folder.is_relative_to(target.parent) for folder in disk.folders), disk.folders
