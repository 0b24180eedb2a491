"""`qwen-edge doctor`: findings, JSON, and the exit code."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli import doctor_command, doctor_machine
from qwen_edge.cli.doctor_machine import MemoryBandwidth
from qwen_edge.errors import DeviceError, ResourceError
from qwen_edge.profiles.hardware import CoreKinds, CpuModel, Hardware, probe_hardware
from qwen_edge.profiles.providers import NOT_HERE, load_providers
from qwen_edge.runtime.devices.drivers import Accelerator
from qwen_edge.runtime.devices.golden_trial import TrialResult, TrialTarget
from qwen_edge.runtime.devices.probing import DeviceReport
from qwen_edge.runtime.devices.providers import ProviderReport

GOOD = {
    "openvino": "2026.4.1",
    "openvino-tokenizers": "2026.4.1.0",
    "onnxruntime": "1.31.1",
    "torch": "2.13.0+cpu",
}


ABSENT = (DeviceReport("GPU", "", "no driver"), DeviceReport("NPU", "", "no such thing"))
GPU = Accelerator("GPU", "0x7d55", None, "xe", "/dev/dri/renderD128", True, "25.40.1")

QUIET = MemoryBandwidth(29e9, False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes up a machine; without arguments all is well."""

    def make(
        versions: dict[str, str] = GOOD,
        devices: tuple[DeviceReport, ...] = (DeviceReport("CPU", "A CPU"), *ABSENT),
        accelerators: tuple[Accelerator, ...] | None = None,
        bandwidth: MemoryBandwidth | None = QUIET,
        **hardware: Any,
    ) -> None:
        facts: Hardware = replace(
            probe_hardware(),
            **{
                "isa_features": ("avx2",),
                "memory_bytes": 32_000_000_000,
                "available_memory_bytes": 20_000_000_000,
                **hardware,
            },
        )
        monkeypatch.setattr(doctor_command, "probe_hardware", lambda: facts)
        monkeypatch.setattr(doctor_command, "list_versions", lambda: versions)
        monkeypatch.setattr(doctor_command, "measure_memory", lambda _: bandwidth)
        runtime = "qwen_edge.runtime"
        monkeypatch.setattr(f"{runtime}.devices.probing.probe_devices", lambda: devices)
        monkeypatch.setattr(f"{runtime}.devices.drivers.probe_accelerators", lambda: accelerators)
        properties = {"DEVICE_ARCHITECTURE": "GPU: vendor=0x8086 arch=v12.71.4"}
        monkeypatch.setattr(
            f"{runtime}.devices.drivers.read_engine_properties", lambda _: properties
        )
        put_providers(monkeypatch, {"CPUExecutionProvider": None})

    return make


def put_providers(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None]) -> None:
    """Let ONNX Runtime have the providers given with None, and not the others, with reasons."""
    reports = tuple(
        ProviderReport(entry.name, entry.device, reasons.get(entry.name, NOT_HERE))
        for entry in load_providers()
    )
    monkeypatch.setattr("qwen_edge.runtime.devices.providers.probe_providers", lambda: reports)


def problems(cli: Any) -> list[dict[str, str]]:
    """Return what the JSON says is wrong; check that the exit code says the same."""
    outcome = cli("doctor", "--json")
    data = json.loads(outcome.out)
    found = [entry for entry in data["findings"] if entry["level"] == "problem"]
    assert outcome.code == (1 if found else 0)
    assert outcome.err == ""
    return found


def test_a_good_machine_has_no_problem(cli: Any, machine: Any) -> None:
    machine()
    assert problems(cli) == []


def test_the_text_names_devices_with_reasons_and_fixes(cli: Any, machine: Any) -> None:
    machine()
    outcome = cli("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert "ok        CPU: A CPU\n" in outcome.out
    assert "note      GPU: no driver\n" in outcome.out
    assert "Fix: with a Core Ultra: install the NPU driver" in outcome.out
    assert outcome.out.endswith("Nothing here needs mending.\n")


def test_the_text_says_what_the_machine_is(cli: Any, machine: Any) -> None:
    machine(
        cpu_name="Intel(R) Core(TM) Ultra 7 155H",
        num_physical_cores=16,
        num_logical_cores=22,
        cpu_model=CpuModel("GenuineIntel", 6, 170, 4),
        core_kinds=CoreKinds(6, 8, 2),
        cpu_quota_cores=None,
        isa_features=("avx2", "avx_vnni", "avx512f", "amx_int8"),
    )
    out = cli("doctor").out
    assert (
        "cpu       Intel(R) Core(TM) Ultra 7 155H (Meteor Lake, family 6 model 170), "
        "16 cores (6 P + 8 E + 2 LP-E), 22 threads\n"
    ) in out
    assert "features  AVX2, AVX2-VNNI, AVX512F, AMX-INT8\n" in out
    assert (
        "memory    32.0 GB, 20.0 GB available, read at 29.0 GB/s: Qwen3-4B int4 on the CPU writes "
        "at most 12.8 tokens/s\n"
    ) in out
    assert "  * core-ultra  " in out
    assert "qwen-edge export --profile core-ultra\n" in out


def test_a_busy_machine_measures_too_little_and_says_so(cli: Any, machine: Any) -> None:
    machine(cpu_name="Intel(R) Core(TM) Ultra 7 155H", bandwidth=MemoryBandwidth(4e9, True))
    out = cli("doctor").out
    assert "while other programs kept the processor busy, read at 4.0 GB/s" in out
    assert "slow for a Core Ultra" not in out
    machine(cpu_name="Intel(R) Core(TM) Ultra 7 155H", bandwidth=MemoryBandwidth(4e9, False))
    assert "slow for a Core Ultra" in cli("doctor").out


def test_a_machine_without_memory_to_measure_with(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*, seconds: float) -> float:
        raise ResourceError(f"No memory for {seconds} s.", "close other programs")

    monkeypatch.setattr("qwen_edge.runtime.machine.roofline.measure_bandwidth", fail)
    assert doctor_machine.measure_memory(probe_hardware()) is None
    machine(bandwidth=None)
    assert json.loads(cli("doctor", "--json").out)["memory_bandwidth"] is None


# --- Devices and drivers ------------------------------------------------------------------------


def test_a_device_that_is_not_built_in_needs_no_driver(cli: Any, machine: Any) -> None:
    machine(accelerators=())
    out = cli("doctor").out
    assert "note      GPU: this machine has no GPU by Intel\n" in out
    assert "install the NPU driver" not in out


def test_a_device_that_is_built_in_is_not_said_to_be_absent(cli: Any, machine: Any) -> None:
    unseen = DeviceReport("GPU", "", "OpenVINO finds no GPU here: there is none, or no driver")
    machine(devices=(DeviceReport("CPU", "A CPU"), unseen), accelerators=(GPU,), os="Linux")
    assert "note: GPU: it is built in, but OpenVINO cannot use it" in findings(cli)


def test_a_device_is_told_with_its_drivers(cli: Any, machine: Any) -> None:
    arc = DeviceReport("GPU.0", "Intel(R) Arc(TM) Graphics (iGPU)")
    machine(devices=(DeviceReport("CPU", "A CPU"), arc, ABSENT[1]), accelerators=(GPU,))
    found = findings(cli)
    assert (
        "ok: GPU.0: Intel(R) Arc(TM) Graphics (iGPU), architecture GPU: vendor=0x8086 "
        "arch=v12.71.4, driver 25.40.1, kernel driver xe"
    ) in found


def test_a_known_problem_comes_with_command_source_and_exit_code(cli: Any, machine: Any) -> None:
    machine(accelerators=(replace(GPU, is_accessible=False),), os="Linux")
    [found] = problems(cli)
    assert found["id"].startswith("gpu-not-permitted")
    assert "/dev/dri/renderD128" in found["what"]
    assert "render" in found["fix"]
    assert found["sources"]
    out = cli("doctor").out
    assert f"problem   {found['what']}\n          Fix: {found['fix']}\n" in out
    assert f"          See: {found['sources'][0]}\n" in out
    assert out.endswith("1 problem to mend.\n")


# --- Profiles -----------------------------------------------------------------------------------


def profiles(cli: Any) -> dict[str, Any]:
    """Return what each profile would do."""
    found = json.loads(cli("doctor", "--json").out)["profiles"]
    return {entry["name"]: entry for entry in found}


def test_profiles_say_what_they_would_do_and_why_not(cli: Any, machine: Any) -> None:
    machine(accelerators=())
    found = profiles(cli)
    assert found["core-ultra"]["device"] == "CPU"
    why = {entry["device"]: entry["why_not"] for entry in found["core-ultra"]["devices"]}
    assert why["CPU"] is None
    assert why["GPU"] == "this machine has no GPU by Intel"
    assert not found["core-ultra-npu"]["can_run"]
    assert found["generic-onnx"]["device"] == "CPUExecutionProvider"
    out = cli("doctor").out
    assert "core-ultra-npu  cannot run: NPU: this machine has no NPU by Intel\n" in out
    assert "core-ultra-cpu  runs on CPU, up to 32,768 tokens\n" in out


def test_profiles_take_the_first_device_that_is_here(cli: Any, machine: Any) -> None:
    machine(devices=tuple(DeviceReport(kind, f"A {kind}") for kind in ("CPU", "GPU", "NPU")))
    found = profiles(cli)
    assert found["core-ultra"]["device"] == "GPU"
    assert found["core-ultra-npu"]["can_run"]
    assert "runs on GPU (also on CPU, NPU), up to " in cli("doctor").out


@pytest.mark.parametrize(
    ("available", "tokens", "can_run"),
    [(20e9, 32_768, True), (3.5e9, 9_500, True), (2.7e9, 0, False), (1e9, 0, False)],
)
def test_profiles_know_how_much_the_memory_has_room_for(
    cli: Any,
    machine: Any,
    monkeypatch: pytest.MonkeyPatch,
    available: float,
    tokens: int,
    can_run: bool,
) -> None:
    monkeypatch.setattr("qwen_edge.runtime.resources.memory.are_used", lambda _: False)
    machine(available_memory_bytes=available)
    entry = profiles(cli)["generic-x86"]
    assert entry["can_run"] is can_run
    assert entry["devices"][0]["max_tokens_here"] == pytest.approx(tokens, rel=0.2)
    if not can_run:
        assert "of memory there with 1,024 tokens" in entry["devices"][0]["why_not"]


def test_an_npu_takes_the_memory_of_its_whole_context_at_once(cli: Any, machine: Any) -> None:
    npu = (DeviceReport("CPU", "A CPU"), DeviceReport("NPU", "An NPU"))
    machine(devices=npu, available_memory_bytes=3_000_000_000)
    assert "4,096 tokens" in profiles(cli)["core-ultra-npu"]["devices"][0]["why_not"]


def test_profiles_without_any_engine(cli: Any, machine: Any, monkeypatch: Any) -> None:
    machine()
    put_providers(monkeypatch, {entry.name: "it is not installed" for entry in load_providers()})
    [entry] = profiles(cli)["generic-onnx"]["devices"]
    assert entry["why_not"] == "it is not installed"


# --- Versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("torch", "vision", "is_bad"),
    [
        ("2.13.0+cpu", "0.28.0", True),
        ("2.13.0", "0.28.0+cpu", True),
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0", "0.28.0", False),
    ],
)
def test_torchvision_of_another_build_is_a_problem(
    cli: Any, machine: Any, torch: str, vision: str, is_bad: bool
) -> None:
    machine(GOOD | {"torch": torch, "torchvision": vision})
    found = problems(cli)
    assert [entry["fix"] for entry in found] == (["pip uninstall -y torchvision"] if is_bad else [])


@pytest.mark.parametrize("converter", ["2026.4.0.0", "2026.4.10.0", "2026.5.0.0"])
def test_differing_openvino_packages_are_a_problem(cli: Any, machine: Any, converter: str) -> None:
    machine(GOOD | {"openvino-tokenizers": converter})
    [found] = problems(cli)
    assert converter in found["what"]
    assert found["fix"] == "pip install openvino==2026.4.1 openvino-tokenizers==2026.4.1.0"


def test_a_missing_engine_is_a_problem(cli: Any, machine: Any) -> None:
    machine({})
    [found] = problems(cli)
    assert found["what"] == "openvino is not installed"
    assert "pip install qwen-edge" in found["fix"]


def findings(cli: Any) -> list[str]:
    """Return what was found, each with its level in front."""
    data = json.loads(cli("doctor", "--json").out)
    return [f"{entry['level']}: {entry['what']}" for entry in data["findings"]]


def test_openvino_may_be_missing_where_onnx_runtime_is_there(cli: Any, machine: Any) -> None:
    """It has no build for Windows on ARM; asking it for devices would say so three times."""
    machine({"onnxruntime": "1.31.1"})
    assert problems(cli) == []
    found = findings(cli)
    assert "note: openvino is not installed; packages run by their ONNX model only" in found
    assert not [line for line in found if "GPU: no driver" in line]


def test_onnx_runtime_may_be_missing(cli: Any, machine: Any) -> None:
    machine({name: version for name, version in GOOD.items() if name != "onnxruntime"})
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "note      onnxruntime is not installed; only packages with an ONNX" in outcome.out
    assert "Fix: pip install 'qwen-edge[onnx]'" in outcome.out


def test_providers_are_told_with_what_auto_takes(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr("platform.system", lambda: "Windows")
    put_providers(
        monkeypatch,
        {
            "CPUExecutionProvider": None,
            "DmlExecutionProvider": None,
            "QNNExecutionProvider": "it is installed, and finds no NPU here",
            "CoreMLExecutionProvider": "there is none for Windows",
        },
    )
    found = "\n".join(findings(cli))
    assert "ok: onnxruntime 1.31.1: --device auto takes CPU by CPUExecutionProvider" in found
    assert "note: DmlExecutionProvider (GPU): here, and refused; its attention" in found
    assert "note: QNNExecutionProvider (NPU): it is installed, and finds no NPU here" in found
    assert "could be added, for --device: WebGpuExecutionProvider (GPU: pip install" in found
    assert "CoreML" not in found


def test_an_onnx_runtime_that_cannot_be_loaded_is_a_problem(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    reason = "ONNX Runtime could not be imported: no libgomp."
    put_providers(monkeypatch, {entry.name: reason for entry in load_providers()})
    [found] = problems(cli)
    assert found["what"] == "ONNX Runtime could not be imported: no libgomp"
    assert found["fix"] == "pip install --force-reinstall onnxruntime"


def test_an_onnx_runtime_without_the_cpu_is_a_problem_and_no_crash(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    put_providers(monkeypatch, {"DmlExecutionProvider": None})
    [found] = problems(cli)
    assert "CPUExecutionProvider" in found["what"]


def test_two_onnx_runtimes_are_a_problem(cli: Any, machine: Any) -> None:
    machine(GOOD | {"onnxruntime-directml": "1.24.4"})
    [found] = problems(cli)
    assert "onnxruntime 1.31.1 and onnxruntime-directml 1.24.4 bring the same" in found["what"]
    assert found["fix"].startswith("pip uninstall -y onnxruntime onnxruntime-directml")


@pytest.mark.parametrize(
    ("version", "is_old"), [("1.29.1", True), ("1.30.0", False), ("2.0", False), ("1.9", True)]
)
def test_an_onnx_runtime_older_than_tested_is_a_note(
    cli: Any, machine: Any, version: str, is_old: bool
) -> None:
    machine(GOOD | {"onnxruntime": version})
    assert problems(cli) == []
    line = f"note: onnxruntime {version} is older than 1.30, the oldest that was tested"
    assert (line in findings(cli)) is is_old


@pytest.mark.trust("T-DEV-07")
def test_no_avx2_is_a_problem(cli: Any, machine: Any) -> None:
    machine(isa_features=(), architecture="x86_64")
    [found] = problems(cli)
    assert "AVX2" in found["what"]


@pytest.mark.parametrize(
    ("total", "available", "level"),
    [(2e9, 1e9, "problem"), (16e9, 1e9, "note"), (None, None, "note"), (32e9, 20e9, "ok")],
)
def test_memory(
    cli: Any, machine: Any, total: float | None, available: float | None, level: str
) -> None:
    machine(memory_bytes=total, available_memory_bytes=available)
    findings = json.loads(cli("doctor", "--json").out)["findings"]
    [found] = [entry for entry in findings if "memory" in entry["what"]]
    assert found["level"] == level


def test_a_bad_cache_variable_is_a_problem(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setenv("QWEN_EDGE_CACHE_DIR", "not/absolute")
    [found] = problems(cli)
    assert "QWEN_EDGE_CACHE_DIR is 'not/absolute'" in found["what"]


def test_a_light_installation_is_a_note(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr(doctor_machine, "missing_export_modules", lambda: ("transformers",))
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "note      exporting is not installed (transformers missing)" in outcome.out
    assert "Fix: pip install 'qwen-edge[export]'" in outcome.out


def test_nothing_is_written(cli: Any, machine: Any, tmp_path: Path, monkeypatch: Any) -> None:
    machine()
    monkeypatch.chdir(tmp_path)
    cli("doctor")
    assert list(tmp_path.iterdir()) == []


def test_the_real_machine(program: Any) -> None:
    done = program("doctor", "--json")
    data = json.loads(done.stdout)
    found = [entry for entry in data["findings"] if entry["level"] == "problem"]
    assert done.returncode == (1 if found else 0)
    assert data["hardware"]["num_logical_cores"] >= 1
    assert data["memory_bandwidth"]["bytes_per_s"] > 1e8
    assert {entry["name"] for entry in data["devices"]} >= {"GPU", "NPU"} or data["accelerators"]


def test_a_broken_openvino_is_one_problem_with_a_fix(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a first user: it was three notes about drivers."""
    machine()

    def fail() -> None:
        raise DeviceError("OpenVINO could not be imported: no such library.", "pip install it")

    monkeypatch.setattr("qwen_edge.runtime.engine.import_openvino", fail)
    [found] = problems(cli)
    assert found["what"] == "OpenVINO could not be imported: no such library"
    assert found["fix"] == "pip install it"
    assert not [line for line in findings(cli) if "driver" in line]


def test_a_windows_without_the_c_runtime_is_told_its_name(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(os="Windows")

    def fail() -> None:
        raise DeviceError("OpenVINO could not be imported: DLL load failed.", "pip install it")

    monkeypatch.setattr("qwen_edge.runtime.engine.import_openvino", fail)
    [found] = problems(cli)
    assert found["fix"] == "winget install Microsoft.VCRedist.2015+.x64"


# --- A package ----------------------------------------------------------------------------------

CPU = TrialTarget("openvino", "CPU", "device")
SEALED = TrialTarget("openvino", "CPU", "sealed")
ARC = TrialTarget("openvino", "GPU", "device")


@pytest.fixture
def try_results(
    cli: Any, machine: Any, fake_package: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Return a function that runs `doctor --package` where the trials end like this."""

    def run(*results: TrialResult, flags: tuple[str, ...] = ("--json",)) -> Any:
        machine()
        package = fake_package("unused")
        ends = {result.target: result for result in results}
        trial = "qwen_edge.runtime.devices.golden_trial"
        monkeypatch.setattr(f"{trial}.list_targets", lambda *_: tuple(ends))
        monkeypatch.setattr(f"{trial}.run_target", lambda folder, target, **_: ends[target])
        monkeypatch.setattr("qwen_edge.runtime.verified.check_verified", lambda *_, **__: True)
        return cli("doctor", "--package", package.folder, *flags)

    return run


def test_a_package_that_is_right_everywhere(try_results: Any) -> None:
    right = (TrialResult(SEALED, "right", answer_s=0.5), TrialResult(CPU, "right", load_s=1.0))
    outcome = try_results(*right)
    data = json.loads(outcome.out)
    assert outcome.code == 0
    assert [entry["verdict"] for entry in data["package"]["results"]] == ["right", "right"]
    assert "ok" in [
        entry["level"] for entry in data["findings"] if "as it was sealed on CPU" in entry["what"]
    ]
    text = " ".join(try_results(*right, flags=()).out.split())
    assert "OpenVINO, CPU, as sealed right answered in 0.5 s" in text
    assert "OpenVINO, CPU, as `run` does right ready after 1.0 s" in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("wrong", "does not answer as the package was sealed"),
        ("refused", "refuses the package"),
        ("crashed", "ends the process"),
        ("hung", "does not come back"),
    ],
)
def test_a_device_that_fails_is_a_problem_with_another_device_as_fix(
    try_results: Any, verdict: Any, words: str
) -> None:
    outcome = try_results(TrialResult(CPU, "right"), TrialResult(ARC, verdict, "token 3 is 9"))
    data = json.loads(outcome.out)
    [found] = [entry for entry in data["findings"] if entry["level"] == "problem"]
    assert outcome.code == 1
    assert found["what"].startswith(f"GPU with OpenVINO {words}")
    assert found["what"].endswith("token 3 is 9")
    assert found["fix"].endswith("--device CPU, and update the driver")


def test_a_cpu_that_is_wrong_as_sealed_needs_a_new_engine(try_results: Any) -> None:
    outcome = try_results(TrialResult(SEALED, "wrong", "token 1 is 2"), TrialResult(CPU, "wrong"))
    fixes = [entry["fix"] for entry in json.loads(outcome.out)["findings"]]
    assert [fix for fix in fixes if "--force-reinstall openvino" in fix and "verify" in fix]


def test_a_package_that_nothing_here_can_run(try_results: Any) -> None:
    outcome = try_results(TrialResult(ARC, "not run", "no GPU"))
    [found] = [e for e in json.loads(outcome.out)["findings"] if e["level"] == "problem"]
    assert found["what"] == "nothing here can run the package: no GPU"


def test_a_failure_that_is_remembered_and_gone_is_told(try_results: Any, tmp_path: Path) -> None:
    gone = TrialResult(ARC, "right", remembered="It hung.", record=tmp_path / "r.json")
    data = json.loads(try_results(gone).out)
    [found] = [entry for entry in data["findings"] if "passes it over" in entry["what"]]
    assert found["what"].endswith("earlier: It hung")
    assert found["fix"] == f"delete {tmp_path / 'r.json'}"


def test_a_damaged_package_is_not_run(cli: Any, machine: Any, fake_package: Any) -> None:
    machine()
    outcome = cli("doctor", "--package", fake_package("unused").folder, "--json")
    data = json.loads(outcome.out)
    [found] = [entry for entry in data["findings"] if entry["level"] == "problem"]
    assert "is missing" in found["what"]
    assert (outcome.code, data["package"]["results"]) == (1, [])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--package", "no such folder"), 3),
        (("--time-limit", "0"), 2),
        (("--time-limit", "nan"), 2),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    cli: Any, machine: Any, arguments: tuple[str, ...], code: int
) -> None:
    machine()
    outcome = cli("doctor", *arguments)
    assert (outcome.code, outcome.out) == (code, "")


def test_a_terminal_gets_lines_of_its_width_and_commands_in_one(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr("qwen_edge.cli.output.Output.is_watched", True)
    monkeypatch.setenv("COLUMNS", "70")
    lines = cli("doctor").out.splitlines()
    # A path is not broken; that of a temporary folder may be longer than the line.
    long = [line for line in lines if len(line) > 70 and max(map(len, line.split())) < 50]
    assert all("Fix: " in line or "See: " in line for line in long)
    assert any(line.startswith(" " * 10) for line in lines)
