"""Which of a package's models is run: order, refusals, and what is never replaced."""

import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen_edge.errors import (
    DeviceError,
    EdgeError,
    MissingExtraError,
    PackageError,
    ResourceError,
    UsageError,
)
from qwen_edge.profiles.choose import Choice
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.devices.opening import choose_formats, open_backend
from qwen_edge.runtime.manifest import DeviceSettings, FileFacts, Manifest, OnnxFacts

IR_ONLY = Manifest.from_bytes((Path(__file__).parents[2] / "data" / "manifest.json").read_bytes())
ONNX_FILES = {name: FileFacts(1, "0" * 64) for name in ("model.onnx", "model.onnx.data")}
BOTH = dataclasses.replace(
    IR_ONLY,
    files={**IR_ONLY.files, **ONNX_FILES},
    onnx=OnnxFacts(21, False, 4096, 512, 4),
)
ONNX_ONLY = dataclasses.replace(
    BOTH,
    files={name: facts for name, facts in BOTH.files.items() if "openvino" not in name},
    devices=(),
)
FOLDER = Path("some package")
CPU = DeviceSettings("CPU", {}, 256, None, None, 32)
NO_GPU = DeviceError("Device 'GPU' was asked for and cannot be used: no driver.", "run doctor")
NOT_INSTALLED = MissingExtraError("OpenVINO is not installed.", "pip install qwen-edge")
Calls = list[tuple[str, str, int | None]]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Return a function that puts two engines in place which refuse with the errors given."""

    def make(openvino: EdgeError | None = None, onnx: EdgeError | None = None) -> Calls:
        calls: Calls = []

        def opening(name: str, error: EdgeError | None) -> Callable[..., object]:
            def open_it(
                folder: Path,
                manifest: Manifest,
                *,
                device: str,
                threads: int | None,
                refused: dict[str, str],
            ) -> object:
                assert refused == {}
                assert folder == FOLDER and name in manifest.formats
                calls.append((name, device, threads))
                if error is not None:
                    raise error
                backend = FakeBackend(lambda ids: 0, vocab_size=1, max_context_tokens=1)
                return backend, Choice(CPU, f"CPU by {name}")

            return open_it

        modules = {
            "openvino_opening": SimpleNamespace(
                open_openvino_backend=opening("openvino", openvino)
            ),
            "onnx_opening": SimpleNamespace(open_onnx_backend=opening("onnx", onnx)),
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, f"qwen_edge.runtime.devices.{name}", module)
        return calls

    return make


@pytest.mark.parametrize(
    ("manifest", "backend", "expected"),
    [
        (BOTH, "auto", "openvino"),
        (BOTH, "openvino", "openvino"),
        (BOTH, "onnx", "onnx"),
        (IR_ONLY, "auto", "openvino"),
        (ONNX_ONLY, "auto", "onnx"),
    ],
    ids=["both", "both-openvino", "both-onnx", "ir", "onnx"],
)
def test_what_runs_is_the_first_format_that_is_wanted(
    engines: Callable[..., Calls], manifest: Manifest, backend: str, expected: str
) -> None:
    calls = engines()
    opened = open_backend(FOLDER, manifest, backend=backend, device="CPU", threads=3)
    assert calls == [(expected, "CPU", 3)]
    assert opened.name == expected
    assert opened.choice == Choice(CPU, f"CPU by {expected}")


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (NO_GPU, logging.WARNING),
        (ResourceError("Too little memory.", "close programs"), logging.WARNING),
        (NOT_INSTALLED, logging.INFO),
    ],
    ids=["device", "memory", "not-installed"],
)
def test_auto_goes_on_to_the_next_format_and_says_why(
    engines: Callable[..., Calls],
    caplog: pytest.LogCaptureFixture,
    error: EdgeError,
    level: int,
) -> None:
    caplog.set_level(logging.INFO)
    calls = engines(openvino=error)
    opened = open_backend(FOLDER, BOTH, device="GPU")
    assert calls == [("openvino", "GPU", None), ("onnx", "GPU", None)]
    assert opened.name == "onnx"
    problem = error.problem.rstrip(".")
    assert opened.choice.reason == f"CPU by onnx; with onnx, because openvino cannot: {problem}"
    [record] = caplog.records
    assert record.levelno == level
    assert record.getMessage() == f"OpenVINO cannot run this package: {error.problem}"


@pytest.mark.parametrize(
    ("device", "error", "noted", "expected"),
    [
        (
            "auto",
            NO_GPU,
            {"GPU": "no driver", "CPU": "no AVX2"},
            ["GPU: no driver", "CPU: no AVX2"],
        ),
        ("GPU", NO_GPU, {}, [f"GPU: {NO_GPU.problem[:-1]}"]),
        ("auto", NOT_INSTALLED, {}, ["OpenVINO: OpenVINO is not installed"]),
        ("GPU", NOT_INSTALLED, {}, ["OpenVINO: OpenVINO is not installed"]),
    ],
    ids=["auto", "asked", "engine", "engine-asked"],
)
def test_every_refusal_is_kept(
    engines: Callable[..., Calls],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    error: EdgeError,
    noted: dict[str, str],
    expected: list[str],
) -> None:
    engines()

    def refuse(*_: object, refused: dict[str, str], **__: object) -> None:
        refused.update(noted)
        raise error

    module = SimpleNamespace(open_openvino_backend=refuse)
    monkeypatch.setitem(sys.modules, "qwen_edge.runtime.devices.openvino_opening", module)
    opened = open_backend(FOLDER, BOTH, device=device)
    assert [str(refusal) for refusal in opened.refusals] == expected
    assert {refusal.format for refusal in opened.refusals} == {"openvino"}


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
@pytest.mark.parametrize("error", [NO_GPU, NOT_INSTALLED], ids=["device", "not-installed"])
def test_a_backend_that_is_named_is_never_replaced(
    engines: Callable[..., Calls], backend: str, error: EdgeError
) -> None:
    calls = engines(**{backend: error})
    with pytest.raises(EdgeError) as caught:
        open_backend(FOLDER, BOTH, backend=backend)
    assert caught.value is error
    assert [name for name, _, _ in calls] == [backend]


@pytest.mark.parametrize(
    "error", [PackageError("It is damaged."), UsageError("No such device.")], ids=["file", "usage"]
)
def test_what_the_other_engine_could_only_hide_is_raised_at_once(
    engines: Callable[..., Calls], error: EdgeError
) -> None:
    calls = engines(openvino=error)
    with pytest.raises(EdgeError) as caught:
        open_backend(FOLDER, BOTH)
    assert caught.value is error
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("onnx", "kind"),
    [
        (DeviceError("No provider.", "run doctor"), DeviceError),
        (NOT_INSTALLED, DeviceError),
    ],
    ids=["one-class", "two-classes"],
)
def test_when_nothing_can_run_it_every_refusal_and_fix_is_told(
    engines: Callable[..., Calls], onnx: EdgeError, kind: type[EdgeError]
) -> None:
    engines(openvino=NO_GPU, onnx=onnx)
    with pytest.raises(kind) as caught:
        open_backend(FOLDER, BOTH, device="GPU")
    assert caught.value.problem == (
        "No engine can run this package: openvino cannot: Device 'GPU' was asked for and cannot "
        f"be used: no driver; onnx cannot: {onnx.problem}"
    )
    assert caught.value.fix.splitlines() == list(dict.fromkeys(["run doctor", onnx.fix]))
    assert caught.value.__cause__ is onnx


def test_one_class_of_refusal_stays_that_class(engines: Callable[..., Calls]) -> None:
    """Exit code 8 means: more memory would do."""
    error = ResourceError("Too little memory.", "close programs")
    engines(openvino=error, onnx=error)
    with pytest.raises(ResourceError, match="No engine can run") as caught:
        open_backend(FOLDER, BOTH)
    assert caught.value.fix == "close programs"


def test_a_provider_s_name_asks_for_the_onnx_model(engines: Callable[..., Calls]) -> None:
    calls = engines(openvino=NO_GPU)
    opened = open_backend(FOLDER, BOTH, device="DmlExecutionProvider")
    assert calls == [("onnx", "DmlExecutionProvider", None)]
    assert opened.choice.reason == "CPU by onnx"


@pytest.mark.parametrize(
    ("manifest", "options", "words"),
    [
        (IR_ONLY, {"backend": "onnx"}, "backend is 'onnx', but the package 'some package' holds"),
        (ONNX_ONLY, {"backend": "openvino"}, "holds the model for onnx only"),
        (IR_ONLY, {"device": "DmlExecutionProvider"}, "holds the model for openvino only"),
        (
            BOTH,
            {"backend": "openvino", "device": "DmlExecutionProvider"},
            "'DmlExecutionProvider' is an execution provider of ONNX Runtime, but backend is 'op",
        ),
    ],
    ids=["no-onnx", "no-ir", "provider-without-model", "provider-of-another-backend"],
)
def test_what_the_package_does_not_hold_is_refused_with_what_it_does(
    manifest: Manifest, options: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        choose_formats(FOLDER, manifest, **options)
    assert words in caught.value.problem
    assert "qwen-edge export … --format both" in caught.value.fix
    assert caught.value.facts["formats"] == manifest.formats
