"""Importing the runtime is light: no engine, no network, no process, no file, no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "click",
    "google",  # protobuf
    "huggingface_hub",
    "jinja2",
    "nncf",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxruntime_genai",
    "openvino",
    "optimum",
    "rich",
    "tokenizers",
    "torch",
    "transformers",
}
MAX_IMPORT_S = 0.5

PROBE = """
import json, sys, time
events = []
def hook(event, args):
    family = event.split(".")[0]
    if family in ("socket", "subprocess") or event in (
        "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system",
        "os.startfile", "os.mkdir", "os.remove", "os.rename", "os.putenv", "winreg.CreateKey",
    ):
        events.append(event)
    elif event == "open":
        mode, flags = args[1], args[2]
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        import os
        writes = writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
        if writes:
            events.append(f"open {args[0]!r} {mode!r}")
sys.addaudithook(hook)
start_s = time.perf_counter()
import {module}
seconds = time.perf_counter() - start_s
names = sorted({{name.split(".")[0] for name in sys.modules}})
print(json.dumps({{"seconds": seconds, "modules": names, "events": events}}))
"""


def probe(module: str, folder: Path) -> dict[str, list[str] | float]:
    """Import a module in a fresh interpreter and return what it did."""
    roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    done = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            PROBE.replace("{module}", module).replace("{{", "{").replace("}}", "}"),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": roots, "HOME": str(folder)},
    )
    result: dict[str, list[str] | float] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.trust("T-EMB-03")
@pytest.mark.parametrize("module", ["qwen_edge.runtime", "qwen_edge.errors"])
def test_a_fresh_import_does_nothing_but_import(module: str, tmp_path: Path) -> None:
    runs = [probe(module, tmp_path) for _ in range(3)]
    assert HEAVY.isdisjoint(runs[0]["modules"])  # type: ignore[arg-type]
    assert runs[0]["events"] == []
    best_s = min(float(run["seconds"]) for run in runs)  # type: ignore[arg-type]
    print(f"import {module}: {best_s * 1_000:.0f} ms")
    assert best_s < MAX_IMPORT_S
    assert list(tmp_path.iterdir()) == []


@pytest.mark.trust("T-EMB-03")
def test_a_model_brings_numpy_tokenizers_and_jinja_and_no_engine(tmp_path: Path) -> None:
    """The session and the sampler run without OpenVINO, and so do the examples."""
    modules = probe("qwen_edge.runtime.fake_model", tmp_path)["modules"]
    assert HEAVY & set(modules) == {"jinja2", "numpy"}  # type: ignore[arg-type]


@pytest.mark.trust("T-EMB-03")
@pytest.mark.parametrize(
    "module", ["loading", "devices.opening", "devices.openvino_opening", "devices.onnx_opening"]
)
def test_what_opens_packages_brings_no_engine_until_it_opens_one(
    module: str, tmp_path: Path
) -> None:
    """Each engine may be missing: a package of the other one must load all the same."""
    modules = probe(f"qwen_edge.runtime.{module}", tmp_path)["modules"]
    assert HEAVY & set(modules) <= {"jinja2", "numpy"}  # type: ignore[arg-type]


def test_the_export_brings_no_engine_and_no_graph_library(tmp_path: Path) -> None:
    """An export to OpenVINO must not need what only ONNX needs, and the other way round."""
    modules = probe("qwen_edge.export", tmp_path)["modules"]
    light = {"click", "jinja2", "numpy", "rich"}
    assert HEAVY & set(modules) <= light  # type: ignore[arg-type]


def test_public_names_are_few_and_all_there() -> None:
    import qwen_edge.runtime as runtime

    assert len(runtime.__all__) <= 14
    assert dir(runtime) == sorted(runtime.__all__)
    for name in runtime.__all__:
        assert getattr(runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = runtime.nothing  # type: ignore[attr-defined]
