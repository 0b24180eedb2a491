"""Exports that are killed, interrupted, starved or raced: never half a package.

A kill is a real SIGKILL of a real process. `test_disk_faults.py` strikes every file operation.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen_edge.errors import OutputFolderError, ParityError, ResourceError
from qwen_edge.export import ExportRequest, ExportResult, export
from qwen_edge.runtime.files.output_lock import lock_output
from qwen_edge.runtime.package import read_manifest, verify_package

CheckpointMaker = Callable[..., Path]
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="signals and limits of a process are those of POSIX"
)

EXPORT = """
import os, signal, sys
from pathlib import Path
from qwen_edge.export import ExportRequest, export
model, output, step, number = sys.argv[1:5]

def strike(*what):
    global number
    if what == (step,):
        number = int(number) - 1
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)

export(
    ExportRequest(model, "generic-x86", output=Path(output), force=True, skip_quality=True),
    lambda name, done, total: strike(name),
)
"""


@dataclass(frozen=True)
class Place:
    """A checkpoint and the package made of an earlier state of it."""

    source: Path
    package: Path

    def export(self) -> ExportResult:
        request = ExportRequest(
            str(self.source), "generic-x86", output=self.package, force=True, skip_quality=True
        )
        return export(request)

    @property
    def litter(self) -> list[str]:
        return sorted(path.name for path in self.package.parent.iterdir() if path != self.package)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: CheckpointMaker) -> Place:
    """Export once for all tests of this file; they copy it."""
    folder = tmp_path_factory.mktemp("sealed")
    source = make_checkpoint(folder / "source")
    (folder / "out").mkdir()
    place = Place(source, folder / "out" / "package")
    place.export()
    return place


@pytest.fixture
def place(sealed: Place, tmp_path: Path) -> Place:
    """Return a place with an earlier package, whose name tells it from a new one."""
    package = tmp_path / "größe 模型" / "mein Paket"
    package.parent.mkdir()
    shutil.copytree(sealed.package, package)
    (package / "README.md").write_text("the earlier one", encoding="utf-8")
    return Place(sealed.source, package)


def is_earlier(package: Path) -> bool:
    return (package / "README.md").read_text(encoding="utf-8") == "the earlier one"


def run_python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("step", "number"),
    [("compress weights", 3), ("write model", 2), ("hash files", 2)],
    ids=["compressing", "model-written", "hashing"],
)
@pytest.mark.trust("T-EXP-01", "T-EXP-15")
def test_a_killed_export_leaves_the_earlier_package_and_the_next_one_cleans_up(
    step: str, number: int, place: Place
) -> None:
    run = run_python(EXPORT, place.source, place.package, step, str(number))
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert is_earlier(place.package)
    assert f".{place.package.name}.partial" in place.litter
    result = place.export()
    assert verify_package(place.package).is_intact
    assert read_manifest(place.package) == result.manifest
    assert place.litter == []


STEPS = (
    "front_end.check_tensors",
    "front_end.Compressor",
    "front_end.WeightStore.freeze",
    "openvino_files.build_decoder",
    "text_files.write_tokenizer_files",
    "tokenizer_files.copy_file",
    "pipeline.measure_golden_tokens",
    "pipeline.measure_staged",
    "pipeline.write_model_card",
    "pipeline.hash_file",
    "pipeline.write_manifest",
    "pipeline.publish",
)


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["bug", "ctrl-c"]
)
@pytest.mark.parametrize("step", STEPS)
def test_an_exception_in_any_step_leaves_the_earlier_package(
    step: str, error: BaseException, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []

    def fail(*args: object, **kwargs: object) -> None:
        reached.append(step)
        raise error

    monkeypatch.setattr(f"qwen_edge.export.{step}", fail)
    if step not in {"text_files.write_tokenizer_files", "pipeline.measure_golden_tokens"}:
        # Two slow steps that this case is not about.
        monkeypatch.setattr("qwen_edge.export.tokenizer_files.find_disagreements", lambda *args: ())
    with pytest.raises(type(error)):
        place.export()
    assert reached
    assert is_earlier(place.package)
    assert place.litter == []


@pytest.mark.trust("T-EXP-14")
def test_ctrl_c_at_the_command_line(place: Place) -> None:
    path = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    output = place.package.with_name("second")
    code = "import sys; from qwen_edge.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "export", str(place.source), "--profile"]
    command += ["generic-x86", "--output", str(output), "--skip-quality"]
    staging = output.with_name(".second.partial")
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not staging.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert place.litter == []


@pytest.mark.trust("T-EXP-08")
def test_a_second_export_of_the_same_target_is_refused_at_once(place: Place) -> None:
    with lock_output(place.package):
        started = time.monotonic()
        with pytest.raises(OutputFolderError, match=rf"\(process {os.getpid()}\)"):
            place.export()
        assert time.monotonic() - started < 5.0
    assert is_earlier(place.package)
    assert place.litter == []


LIMITED = """
import resource, sys
from pathlib import Path
from qwen_edge.errors import ResourceError
from qwen_edge.export import ExportRequest, export
request = ExportRequest(
    sys.argv[1], "generic-x86", output=Path(sys.argv[2]), force=True, skip_quality=True
)
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        export(request)
    except ResourceError as error:
        assert "filled up" in error.problem, error.problem
        print("refused", limit, flush=True)
"""


@pytest.mark.trust("T-EXP-04")
def test_a_file_size_limit_is_a_full_disk(place: Place) -> None:
    """At 1 kB, 30 kB (inside the tokenizer) and 100 kB (inside the weights, in two places)."""
    limits = ("1000", "30000", "100000", "140000")
    run = run_python(LIMITED, place.source, place.package, *limits)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:-1] == [f"refused {limit}" for limit in limits]
    assert is_earlier(place.package)
    assert place.litter == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """Mount a disk of 400 kB; only root may."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True
    )
    if not made or made.returncode != 0:
        pytest.skip("this process may not mount a small disk; the size limit is tested")
    return disk


@pytest.mark.trust("T-EXP-04")
def test_a_full_disk(small_disk: Path, sealed: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    output = small_disk / "package"
    try:
        monkeypatch.setattr("qwen_edge.export.pipeline.check_plan", lambda *args: None)
        with pytest.raises(ResourceError, match=r"filled up") as caught:
            Place(sealed.source, output).export()
        assert str(small_disk) in caught.value.problem
        assert list(small_disk.iterdir()) == []
        monkeypatch.undo()
        with pytest.raises(ResourceError, match=r"of free disk at .*disk"):
            Place(sealed.source, output).export()
        assert list(small_disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


@pytest.mark.trust("T-EXP-19")
def test_a_model_that_answers_with_nan_replaces_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*args: object, **options: object) -> None:
        raise ParityError("The logits are not finite.")

    monkeypatch.setattr("qwen_edge.export.golden.answer_greedily", answer)
    with pytest.raises(ParityError):
        place.export()
    assert is_earlier(place.package)
    assert place.litter == []


UNPRIVILEGED = """
import os, sys
os.setgid(65534)
os.setuid(65534)
from pathlib import Path
from qwen_edge.errors import EdgeError
from qwen_edge.export.seal import stage
try:
    with stage(Path(sys.argv[1]), force=False):
        pass
except EdgeError as error:
    print(error.problem)
"""


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root may become another")
@pytest.mark.trust("T-EXP-12")
def test_a_parent_of_somebody_else() -> None:
    run = run_python(UNPRIVILEGED, Path("/usr/package"))
    if "ModuleNotFoundError" in run.stderr or "PermissionError" in run.stderr:
        pytest.skip("another user may not read this project's files")
    assert run.stdout == "The folder '/usr' cannot be written to.\n", run.stderr
