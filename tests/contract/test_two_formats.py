"""Packages with an ONNX model: which engine runs them, and what happens where one is missing.

The demo model is exported as it is for people, in both formats, so that its answers are known.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edge.errors import DeviceError, PackageError, UsageError
from qwen_edge.export import ExportRequest, export
from qwen_edge.profiles.choose import Choice
from qwen_edge.runtime import SamplingParams, load
from qwen_edge.runtime.model import Model

ROOT = Path(__file__).parents[2]
GREEDY = SamplingParams(temperature=0)
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the demo model as an IR, as ONNX and as both."""
    folder = tmp_path_factory.mktemp("demo")
    return {
        name: export(
            ExportRequest(
                model="demo",
                profile="generic-x86",
                format=name,
                output=folder / name,
                skip_quality=True,
            )
        ).folder
        for name in ("openvino", "onnx", "both")
    }


@pytest.fixture
def run_without(tmp_path: Path) -> Program:
    """Return a function that runs a program in a process where a module cannot be imported."""

    def run(module: str, program: str, *arguments: Path) -> "subprocess.CompletedProcess[str]":
        roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
        return subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys; sys.modules[{module!r}] = None\n{program}",
                *map(str, arguments),
            ],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": roots, "PYTHONUTF8": "1"},
            timeout=120,
            check=False,
            cwd=tmp_path,
        )

    return run


def ask(model: Model, prompt: str = "Hello!") -> str:
    with model.session(thinking=False) as chat:
        return chat.ask(prompt, sampling=GREEDY).text


def reason_of(model: Model) -> str:
    assert isinstance(model.device_choice, Choice)
    return model.device_choice.reason


@pytest.mark.parametrize(
    ("package", "backend", "expected"),
    [
        ("both", "auto", "openvino"),
        ("both", "openvino", "openvino"),
        ("both", "onnx", "onnx"),
        ("openvino", "auto", "openvino"),
        ("onnx", "auto", "onnx"),
    ],
)
def test_each_engine_answers_as_the_model_was_trained_to(
    packages: dict[str, Path], package: str, backend: str, expected: str
) -> None:
    with load(packages[package], backend=backend, warm_up=False) as model:
        assert model.backend_name == expected
        assert "because" not in reason_of(model)
        assert ask(model) == "Hello! How can I help you?"
        assert ask(model, "What is 27 + 48?") == "27 + 48 = 75"


def test_auto_passes_over_an_engine_that_has_no_device_left(
    packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DeviceError("Device 'CPU' refused the model: no AVX2.", "use another machine")

    monkeypatch.setattr("qwen_edge.runtime.devices.openvino_opening.compile_model", refuse)
    with load(packages["both"], warm_up=False) as model:
        assert model.backend_name == "onnx"
        assert "with onnx, because openvino cannot: No device can run this: CPU" in reason_of(model)
        assert "no AVX2" in reason_of(model)
        assert ask(model) == "Hello! How can I help you?"
    with pytest.raises(DeviceError, match="no AVX2"):
        load(packages["both"], backend="openvino")


def test_a_provider_s_name_asks_for_onnx(packages: dict[str, Path]) -> None:
    with load(packages["both"], device="cpuexecutionprovider", warm_up=False) as model:
        assert model.backend_name == "onnx"
    with pytest.raises(UsageError, match="holds the model for openvino only"):
        load(packages["openvino"], device="CPUExecutionProvider")


def test_a_device_that_neither_engine_has_is_refused_by_both(packages: dict[str, Path]) -> None:
    """OpenVINO was exported for the CPU alone, and no provider for NPUs is installed here."""
    with pytest.raises(DeviceError, match="No engine can run this package: openvino") as caught:
        load(packages["both"], device="NPU")
    assert "onnx cannot: " in caught.value.problem


def test_a_missing_format_is_refused_before_hashing(
    packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("qwen_edge.runtime.loading.check_package")
    with pytest.raises(UsageError, match="holds the model for onnx only"):
        load(packages["onnx"], backend="openvino")


ANSWER = """
import logging
from pathlib import Path
from qwen_edge.errors import EdgeError
from qwen_edge.runtime import SamplingParams, load
logging.basicConfig(level="INFO", format="%(message)s")
try:
    with load(sys.argv[1]) as model:
        with model.session(thinking=False) as chat:
            print(chat.ask("Hello!", sampling=SamplingParams(temperature=0)).text)
        print(model.backend_name, model.device_choice.reason)
except EdgeError as error:
    print(type(error).__name__, error.problem, error.fix)
"""


def test_without_openvino_onnx_models_run(run_without: Program, packages: dict[str, Path]) -> None:
    """As on a machine for which OpenVINO has no build."""
    done = run_without("openvino", ANSWER, packages["onnx"])
    assert done.returncode == 0, done.stderr
    answer, choice = done.stdout.splitlines()
    assert answer == "Hello! How can I help you?"
    assert choice.startswith("onnx CPU by CPUExecutionProvider")
    assert "OpenVINO" not in done.stderr + choice
    done = run_without("openvino", ANSWER, packages["both"])
    answer, choice = done.stdout.splitlines()
    assert answer == "Hello! How can I help you?"
    assert choice.endswith("; with onnx, because openvino cannot: OpenVINO is not installed")
    assert "OpenVINO cannot run this package: OpenVINO is not installed" in done.stderr


def test_without_openvino_an_ir_is_refused_with_what_to_install(
    run_without: Program, packages: dict[str, Path]
) -> None:
    done = run_without("openvino", ANSWER, packages["openvino"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MissingExtraError OpenVINO is not installed. pip install qwen")


def test_without_onnx_runtime_an_ir_runs_and_an_onnx_model_is_refused(
    run_without: Program, packages: dict[str, Path]
) -> None:
    """As after a plain `pip install qwen-edge`."""
    done = run_without("onnxruntime", ANSWER, packages["both"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello! How can I help you?\nopenvino CPU")
    done = run_without("onnxruntime", ANSWER, packages["onnx"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MissingExtraError")
    assert "pip install 'qwen-edge[onnx]'" in done.stdout


def test_the_command_line_runs_without_openvino(
    run_without: Program, packages: dict[str, Path]
) -> None:
    command = "from qwen_edge.cli.main import main; main(sys.argv[1:])"
    done = run_without("openvino", command, Path("verify"), packages["both"])
    assert (done.returncode, done.stdout.count("golden tokens as recorded with ONNX")) == (0, 1)
    assert "OpenVINO not run: OpenVINO is not installed" in done.stdout
    done = run_without("openvino", command, Path("doctor"))
    assert "Traceback" not in done.stderr
    assert "--device auto takes CPU by CPUExecutionProvider" in done.stdout


def test_verify_runs_both(packages: dict[str, Path]) -> None:
    from qwen_edge.runtime.golden import run_golden_tokens
    from qwen_edge.runtime.package import read_manifest

    manifest = read_manifest(packages["both"])
    for name in manifest.formats:
        assert run_golden_tokens(packages["both"], manifest, fmt=name) == manifest.golden.token_ids


def test_a_copy_without_one_of_its_formats_is_not_taken_for_whole(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(packages["both"], tmp_path / "copy"))
    (copy / "model.onnx.data").unlink()
    with pytest.raises(PackageError, match=r"'model\.onnx\.data' is missing"):
        load(copy, backend="openvino", verify="sizes")
