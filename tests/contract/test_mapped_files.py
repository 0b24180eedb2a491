"""Weights that another program cuts off or writes over while a model is open, in child processes.

Without the guard each of these ends by SIGBUS or answers nonsense: engines, and our kernels for the
CPU, read weights where the file is mapped.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.runtime import load
from qwen_edge.runtime.backends.mapped_files import MappedFiles

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
_CHILD = """
import subprocess, sys
from pathlib import Path
from qwen_edge.runtime.backends.mapped_files import MappedFiles
from qwen_edge.runtime.devices import onnx_opening, openvino_opening, routing
from qwen_edge.runtime.golden import follow_tokens
from qwen_edge.runtime.package import read_manifest
folder, fmt, name, what, moment = sys.argv[1:]
path = Path(folder) / name
CODE = {
    "cut": "import os, sys; os.truncate(sys.argv[1], 0)",
    "overwrite": "import sys; n = open(sys.argv[1], 'rb').seek(0, 2); "
                 "open(sys.argv[1], 'r+b').write(bytes(n))",
    "replace": "import os, sys; open(sys.argv[1] + 'x', 'wb').write(b'x'); "
               "os.replace(sys.argv[1] + 'x', sys.argv[1])",
}[what]
def start():
    return subprocess.Popen([sys.executable, "-c", CODE, str(path)])
manifest = read_manifest(folder)
golden = manifest.golden
def start_model():
    return routing.open_devices(Path(folder), manifest, backend=fmt, device="CPU")
def answer(devices):
    devices.reset()
    tokens = follow_tokens(devices, golden.prompt_ids, golden.token_ids, 0.5)
    return tokens, devices.forward([7]).tobytes()
devices = start_model()
before = answer(devices)
devices.close()
writers = []
if moment == "mapped":  # right after the engine mapped the file, and before it is compiled
    real = {"openvino": openvino_opening._check_ports, "onnx": onnx_opening._check_shape}[fmt]
    def check(*arguments):
        writers.append(start())
        return real(*arguments)
    module = {"openvino": openvino_opening, "onnx": onnx_opening}[fmt]
    setattr(module, "_check_ports" if fmt == "openvino" else "_check_shape", check)
devices = start_model()
if moment == "open":
    writers.append(start())
    assert writers[0].wait(40) == 0, "the writer is let go on"
answers = [answer(devices) for _ in range(2)]
assert [w.wait(40) for w in writers] == [0] * len(writers)
answers.append(answer(devices))
devices.close()
print(set(answers) == {before})
"""


@pytest.fixture
def run(demo_package: Path, onnx_package: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that damages the weights of an open model in a child process."""

    def call(fmt: str, what: str, moment: str) -> Any:
        source = demo_package if fmt == "openvino" else onnx_package
        folder = Path(shutil.copytree(source, tmp_path / "copy"))
        name = "openvino_model.bin" if fmt == "openvino" else "model.onnx.data"
        roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
        return subprocess.run(
            [sys.executable, "-c", _CHILD, str(folder), fmt, name, what, moment],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": roots},
        )

    return call


@pytest.mark.trust("T-PKG-05")
@pytest.mark.parametrize(
    ("fmt", "what"),
    [("openvino", "cut"), ("openvino", "overwrite"), ("openvino", "replace"), ("onnx", "cut")],
)
def test_an_open_model_answers_as_before(run: Callable[..., Any], fmt: str, what: str) -> None:
    done = run(fmt, what, "open")
    assert (done.returncode, done.stdout) == (0, "True\n"), (done.returncode, done.stderr)


@pytest.mark.trust("T-PKG-05")
@pytest.mark.parametrize("fmt", ["openvino", "onnx"])
def test_a_file_cut_off_between_mapping_and_compiling_waits(
    run: Callable[..., Any], fmt: str
) -> None:
    done = run(fmt, "cut", "mapped")
    assert (done.returncode, done.stdout) == (0, "True\n"), (done.returncode, done.stderr)


_SERVING = """
import subprocess, sys
from qwen_edge.runtime.loading import load_batch
folder = sys.argv[1]
code = "import os, sys; os.truncate(sys.argv[1], 0)"
with load_batch(folder) as model:
    ask = lambda: model.ask([{"role": "user", "content": "Hello, what can you do?"}]).text
    before = ask()
    weights = folder + "/openvino_model.bin"
    subprocess.run([sys.executable, "-c", code, weights], check=True, timeout=40)
    print(before == ask() and before != "")
"""


@pytest.mark.trust("T-PKG-05")
def test_a_model_for_many_requests_answers_as_before(demo_package: Path, tmp_path: Path) -> None:
    """As the server opens it: cut off while it is open, for all who ask after that."""
    folder = Path(shutil.copytree(demo_package, tmp_path / "copy"))
    roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    done = subprocess.run(
        [sys.executable, "-c", _SERVING, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": roots},
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), (done.returncode, done.stderr)


def test_closing_lets_others_write_at_once(package: Path) -> None:
    path = package / "openvino_model.bin"
    names = {thread.name for thread in threading.enumerate()}
    with load(package):
        pass
    started_s = time.monotonic()
    path.write_bytes(b"")
    assert time.monotonic() - started_s < 0.5
    deadline = time.monotonic() + 5
    while {thread.name for thread in threading.enumerate()} - names:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_writer_in_the_same_process_is_let_go_on(package: Path) -> None:
    with load(package, warm_up=False) as model:
        first = list(model.generate([5], max_new_tokens=3))
        (package / "openvino_model.bin").write_bytes(b"")
        assert list(model.generate([5], max_new_tokens=3)) == first


def test_what_cannot_be_guarded_is_left_out(tmp_path: Path) -> None:
    writer = (tmp_path / "being-written").open("wb")
    files = MappedFiles([tmp_path / "missing", tmp_path / "being-written", tmp_path])
    assert files.num_guarded == 0
    files.close()
    files.close()
    writer.close()
