"""Execution providers: what the table says, which is chosen and why, and which are here."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qwen_edge.errors import DeviceError, MissingExtraError, UsageError
from qwen_edge.profiles.properties import DEVICES
from qwen_edge.profiles.providers import (
    NOT_HERE,
    Provider,
    ProviderOption,
    Use,
    Verdict,
    choose_provider,
    load_providers,
)
from qwen_edge.runtime.devices import providers
from qwen_edge.runtime.devices.providers import (
    ProviderReport,
    find_plugin_devices,
    import_onnxruntime,
    probe_providers,
)

ROOT = Path(__file__).parents[3]
CPU = "CPUExecutionProvider"
KNOWN = {
    "CPUExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "OpenVINOExecutionProvider",
    "QNNExecutionProvider",
    "WebGpuExecutionProvider",
}


# The table.


def test_table_knows_each_provider_once() -> None:
    names = [entry.name for entry in load_providers()]
    assert sorted(names) == sorted(KNOWN)
    assert names[-1] == CPU  # the others are preferred, where they may be chosen


@pytest.mark.parametrize("entry", load_providers(), ids=lambda entry: str(entry.name))
def test_every_value_has_a_reason_and_a_source(entry: Provider) -> None:
    assert entry.device in DEVICES
    assert "pip install" in entry.install
    for verdict in (entry.fast, entry.portable):
        assert verdict.use in ("auto", "ask", "never")
        assert len(verdict.reason) > 10 and len(verdict.source) > 10
        assert not verdict.reason.endswith(".")
        if verdict.use == "auto":
            assert "measured" in verdict.source
    for option in entry.options.values():
        assert isinstance(option, ProviderOption)
        assert option.value and option.reason and option.source


# The choice.


def make(name: str, device: str, fast: Use, portable: Use = "auto") -> Provider:
    verdicts = [
        Verdict(use, f"is {use} for the {form} form", "test")
        for use, form in ((fast, "fast"), (portable, "portable"))
    ]
    return Provider(f"{name}ExecutionProvider", device, f"pip install {name.lower()}", *verdicts)


TABLE = (
    make("Asked", "GPU", "ask"),
    make("Gpu", "GPU", "auto"),
    make("Wrong", "NPU", "never"),
    make("Other", "CPU", "ask", "ask"),
    make("CPU", "CPU", "auto"),
)
ALL = tuple(entry.name for entry in TABLE)


def choose(requested: str = "auto", available: tuple[str, ...] = ALL, **options: Any) -> Any:
    return choose_provider(available, requested, providers=TABLE, **options)


def test_auto_takes_the_first_that_may_be_taken_and_says_why_not_those_before() -> None:
    choice = choose()
    assert choice.value.name == "GpuExecutionProvider"
    assert choice.reason == (
        "GPU by GpuExecutionProvider, the first that may be chosen unasked; passed over "
        "AskedExecutionProvider: runs where it is asked for (--device AskedExecutionProvider): "
        "it is ask for the fast form"
    )


def test_form_of_the_model_decides() -> None:
    assert choose(is_portable=True).value.name == "AskedExecutionProvider"


def test_auto_goes_on_after_a_refusal() -> None:
    choice = choose(unusable={"GpuExecutionProvider": "its driver refused."})
    assert choice.value.name == CPU
    assert "GpuExecutionProvider: its driver refused; WrongExecutionProvider: is never" in (
        choice.reason
    )


def test_nobody_misses_what_is_not_here_and_would_not_be_taken() -> None:
    choice = choose(available=("GpuExecutionProvider", CPU))
    assert choice.reason == "GPU by GpuExecutionProvider, the first that may be chosen unasked"
    choice = choose(available=(CPU,))
    assert choice.reason.endswith(f"passed over GpuExecutionProvider: {NOT_HERE}")


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("GPU", "GpuExecutionProvider"),  # what was measured, before what stands first
        ("cpu", CPU),
        ("askedexecutionprovider", "AskedExecutionProvider"),
        ("OtherExecutionProvider", "OtherExecutionProvider"),
    ],
)
def test_what_is_asked_for_is_taken(requested: str, expected: str) -> None:
    choice = choose(requested)
    assert choice.value.name == expected
    assert "asked for" in choice.reason


def test_absent_provider_is_not_replaced_and_what_brings_it_is_named() -> None:
    with pytest.raises(DeviceError) as caught:
        choose("AskedExecutionProvider", available=(CPU,))
    assert f"AskedExecutionProvider: {NOT_HERE}" in caught.value.problem
    assert f"has here: {CPU}" in caught.value.problem
    assert caught.value.fix.startswith("pip install asked\nor run with --device auto")


def test_device_without_a_provider_names_all_of_its_kind() -> None:
    with pytest.raises(DeviceError) as caught:
        choose("GPU", available=(CPU,), unusable={"GpuExecutionProvider": "no driver"})
    assert "GpuExecutionProvider: no driver; AskedExecutionProvider: not in" in caught.value.problem
    assert caught.value.fix.startswith("pip install asked")


@pytest.mark.parametrize("requested", ["NPU", "WrongExecutionProvider"])
def test_provider_that_answers_wrongly_is_refused_even_when_asked_for(requested: str) -> None:
    with pytest.raises(DeviceError, match="is never for the fast form") as caught:
        choose(requested)
    assert "pip install" not in caught.value.fix
    assert choose(requested, is_portable=True).value.name == "WrongExecutionProvider"


def test_nothing_left_names_every_refusal() -> None:
    with pytest.raises(DeviceError, match=r"Device 'auto' cannot run this: .*CPU.*: no") as caught:
        choose(unusable=dict.fromkeys(ALL, "no memory"))
    assert "doctor" in caught.value.fix


def test_unknown_device_is_a_matter_of_use() -> None:
    with pytest.raises(UsageError, match="Did you mean 'GpuExecutionProvider'") as caught:
        choose("GpuExecutionProvder")
    assert "auto, CPU, GPU, NPU" in caught.value.fix


def test_directml_is_kept_from_the_form_it_computes_wrongly() -> None:
    with pytest.raises(DeviceError, match="neither rotates queries"):
        choose_provider(["DmlExecutionProvider", CPU], "DmlExecutionProvider")
    found = choose_provider(["DmlExecutionProvider", CPU], "GPU", is_portable=True)
    assert found.value.name == "DmlExecutionProvider"


def test_what_no_system_like_this_has_is_said_first() -> None:
    """Found by a first user on Linux, who was told to export in another form for DirectML."""
    with pytest.raises(DeviceError, match="there is none for Linux") as caught:
        choose_provider(
            [CPU],
            "DmlExecutionProvider",
            unusable={"DmlExecutionProvider": "there is none for Linux"},
        )
    assert "portable" not in str(caught.value)


# The probe.


class Engine(ModuleType):
    """An engine with two providers built in, and what its registered libraries find."""

    def __init__(self, *, finds: tuple[str, ...] = (), error: Exception | None = None) -> None:
        super().__init__("onnxruntime")
        self.registered: list[str] = []
        self._finds, self._error = finds, error

    def get_available_providers(self) -> list[str]:
        return ["AzureExecutionProvider", CPU]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if self._error is not None:
            raise self._error
        self.registered.append(path)

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in (CPU, *self._finds)]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Return a function that puts an engine in place, and libraries beside it."""

    def put(*modules: str, **options: Any) -> Engine:
        engine = Engine(**options)
        monkeypatch.setattr(providers, "import_onnxruntime", lambda: engine)
        providers._register.cache_clear()
        monkeypatch.setattr(providers.platform, "system", lambda: "Linux")
        for name in modules:
            module = ModuleType(name)
            module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
            module.get_library_path = lambda: "/lib/of/it.so"  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, module)
        return engine

    return put


@pytest.fixture(autouse=True)
def forget_registrations() -> Any:
    yield
    providers._register.cache_clear()


def reports() -> dict[str, ProviderReport]:
    return {report.name: report for report in probe_providers()}


def test_probe_reports_every_known_provider(use: Callable[..., Engine]) -> None:
    use()
    found = reports()
    assert set(found) == KNOWN
    assert found[CPU] == ProviderReport(CPU, "CPU")
    assert found[CPU].is_available
    assert found["WebGpuExecutionProvider"] == ProviderReport(
        "WebGpuExecutionProvider", "GPU", NOT_HERE
    )
    assert found["DmlExecutionProvider"].reason == "there is none for Linux"


def test_library_of_its_own_is_registered_once(use: Callable[..., Engine]) -> None:
    engine = use("onnxruntime_ep_openvino", finds=("OpenVINOExecutionProvider",))
    assert reports()["OpenVINOExecutionProvider"].is_available
    assert reports()["OpenVINOExecutionProvider"].is_available
    assert engine.registered == ["/lib/of/it.so"]


def test_library_that_finds_no_device_says_so(use: Callable[..., Engine]) -> None:
    use("onnxruntime_ep_webgpu")
    reason = reports()["WebGpuExecutionProvider"].reason
    assert reason == "it is installed, and finds no GPU here"


@pytest.mark.trust("T-DEV-02")
def test_library_that_is_refused_is_a_reason_not_an_error(use: Callable[..., Engine]) -> None:
    engine = use("onnxruntime_ep_webgpu", error=RuntimeError("needs a newer engine\nat x.cc"))
    reason = reports()["WebGpuExecutionProvider"].reason
    assert reason is not None and "cannot be registered" in reason
    assert "needs a newer engine" in reason
    webgpu = next(entry for entry in load_providers() if entry.plugin == "onnxruntime_ep_webgpu")
    with pytest.raises(DeviceError, match="needs a newer engine"):
        find_plugin_devices(engine, webgpu)


def test_missing_engine_is_every_provider_s_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MissingExtraError("no engine.", "install it")

    monkeypatch.setattr(providers, "import_onnxruntime", refuse)
    assert {report.reason for report in probe_providers()} == {"no engine."}


def test_real_probe_finds_the_cpu() -> None:
    assert reports()[CPU].is_available


# The import.


def test_missing_engine_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="which is not installed") as caught:
        import_onnxruntime()
    assert caught.value.fix == "pip install 'qwen-edge[onnx]'"


@pytest.mark.parametrize(
    "error",
    [
        ImportError("DLL load failed while importing onnxruntime_pybind11_state"),
        ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers"),
    ],
    ids=["library", "dependency"],
)
def test_broken_engine_is_named_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, error: ImportError
) -> None:
    def refuse(_name: str) -> None:
        raise error

    monkeypatch.setattr(providers.importlib, "import_module", refuse)
    with pytest.raises(DeviceError, match="could not be imported: ") as caught:
        import_onnxruntime()
    assert str(error) in caught.value.problem
    assert "force-reinstall onnxruntime" in caught.value.fix


def test_engine_that_is_there_already_is_told_of_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import_onnxruntime()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    import_onnxruntime()
    assert "imported before qwen-edge" in caplog.text
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    caplog.clear()
    import_onnxruntime()
    assert caplog.text == ""


IMPORT = """
from qwen_edge.runtime.devices.providers import import_onnxruntime, probe_providers
probe_providers()
engine = import_onnxruntime()
engine.InferenceSession  # all of it is there
"""


def test_import_and_probe_touch_nothing(tmp_path: Path) -> None:
    """A fresh `import onnxruntime` 1.31 writes a device id and opens a database for reports."""
    hidden = ("CI", "XDG_", "ORT_", "QWEN_EDGE_", "PYTEST_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    path = os.pathsep.join(str(ROOT / top) for top in ("runtime", "profiles"))
    environment |= {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == []


def test_engine_that_could_not_be_set_up_is_refused_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in review: the second import took what the first had refused."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    for _ in range(2):
        with pytest.raises(DeviceError, match="could not be imported"):
            import_onnxruntime()
    assert all(report.reason is not None for report in probe_providers())
