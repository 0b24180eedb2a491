"""Memory that runs out during an export: told with figures, and nothing half made is published."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from trust_rows import Cases

from qwen_edge.errors import CheckpointError, ResourceError
from qwen_edge.export import ExportRequest, export
from qwen_edge.export.out_of_memory import is_out_of_memory, telling_of_memory
from qwen_edge.export.tokenizer_loading import blaming
from qwen_edge.runtime.package import package_hash

ROOT = Path(__file__).parents[2]

# Everything is imported before the first fork, and no thread runs yet. Each export may take so many
# megabytes of addresses more than what is imported.
SWEPT = """
import os, re, resource, sys
from pathlib import Path
from qwen_edge.runtime.engine import import_openvino
import_openvino()
import openvino_tokenizers
from transformers import PreTrainedTokenizerFast
from qwen_edge.errors import ResourceError
from qwen_edge.export import ExportRequest, export, pipeline
from qwen_edge.runtime.package import package_hash, verify_package

target, earlier = Path(sys.argv[1]), sys.argv[2]
request = ExportRequest("demo", "generic-x86", recipe="int8", output=target, force=True,
                        skip_quality=True)
assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
text = Path("/proc/self/status").read_text()
taken = int(re.search(r"VmSize:\\s+(\\d+) kB", text)[1]) * 1024
for megabytes in map(int, sys.argv[3:]):
    pid = os.fork()
    if pid == 0:
        limit = taken + megabytes * 1_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            export(request)
        except ResourceError as error:
            assert "memory" in error.problem and "close other programs" in error.fix, error
            os._exit(3)
        except BaseException as error:
            os.write(2, f"{megabytes} MB: {type(error).__name__}: {error}".encode())
            os._exit(4)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert verify_package(target).is_intact
    is_earlier = package_hash(target) == earlier
    assert is_earlier == (status != 0), (megabytes, status)
    print(megabytes, status, flush=True)
assert os.listdir(target.parent) == [target.name]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits addresses as Linux does")
@pytest.mark.trust("T-EXP-07")
def test_any_amount_of_memory_leaves_a_whole_package(tmp_path: Path, cases: Cases) -> None:
    """From too little to open a file to enough.

    Where a library in Rust or C++ gets no memory it may end the process by itself: then there is
    no message, but what is published is whole, and the next export cleans up.
    """
    target = tmp_path / "out" / "p"
    target.parent.mkdir()
    request = ExportRequest("demo", "generic-x86", recipe="fp16", output=target, skip_quality=True)
    export(request)
    limits = (4, 8, 24, 80, 150, 400, 3_000)
    path = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    run = subprocess.run(
        [sys.executable, "-c", SWEPT, target, package_hash(target), *map(str, limits)],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr[-3_000:]
    statuses = dict(tuple(map(int, line.split())) for line in run.stdout.splitlines())
    assert tuple(statuses) == limits, run.stderr[-3_000:]
    assert statuses[3_000] == 0
    told = [megabytes for megabytes, status in statuses.items() if status == 3]
    assert told, (statuses, run.stderr[-1_000:])
    assert set(statuses.values()) <= {0, 3, -6, -11}, (statuses, run.stderr[-1_000:])
    cases(len(limits))


SAID = [
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Resource temporarily unavailable"),
    RuntimeError("Cannot load library libx.so: failed to map segment from shared object"),
]
PLACES = [
    "prepare.resolve_source",
    "pipeline.write_text_files",
    "front_end.NativeFrontEnd.write_model",
    "pipeline.measure_golden_tokens",
]


def raising(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", SAID, ids=lambda error: str(error)[:20] or "MemoryError")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.trust("T-EXP-07")
def test_whichever_library_says_so(
    place: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a bug of ours with a traceback before."""
    monkeypatch.setattr(f"qwen_edge.export.{place}", raising(error))
    request = ExportRequest("demo", "generic-x86", output=tmp_path / "p", skip_quality=True)
    with pytest.raises(ResourceError, match=r"The memory ran out during the export\.") as caught:
        export(request)
    assert ("It takes about" in caught.value.problem) == (place in PLACES[1:])
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are() -> None:
    assert not is_out_of_memory(RuntimeError("a memory of something"))
    for error in (ValueError("no"), KeyboardInterrupt(), CheckpointError("out of memory", "x")):
        with pytest.raises(type(error)), telling_of_memory():
            raise error
    with pytest.raises(MemoryError), blaming("The tokenizer cannot be read"):
        raise MemoryError
