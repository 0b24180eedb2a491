"""Real engines behind one model: answers that move from one to the other are the same answers."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import DeviceError
from qwen_edge.runtime import OutputFormat, SamplingParams, load
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.backends.decoder_request import DecoderRequest, Mask
from qwen_edge.runtime.devices import openvino_opening
from qwen_edge.runtime.devices.probing import DeviceReport
from qwen_edge.runtime.events import Answer
from qwen_edge.runtime.manifest import MANIFEST_NAME, DeviceSettings
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.package import read_manifest, write_manifest

GREEDY = SamplingParams(temperature=0)
EXACT: dict[str, str | bool | int] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
}
CPU = DeviceSettings("CPU", EXACT, 1024, None, None, 64)
GPU = dataclasses.replace(CPU, device="GPU", max_context_tokens=512)
NPU = DeviceSettings(
    "NPU",
    {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_DEVICES": "CPU",
        "NPUW_ONLINE_PIPELINE": "NONE",
        "NPUW_LLM_PREFILL_HINT": "STATIC",
        "NPUW_LLM_OPTIMIZE_V_TENSORS": "NO",
        "NPUW_LLM_MAX_PROMPT_LEN": 64,
        "NPUW_LLM_MIN_RESPONSE_LEN": 64,
        "INFERENCE_PRECISION_HINT": "f32",
    },
    128,
    64,
    64,
    64,
)
LONG = "Please say what 27 + 48 is. " * 6 + "What is 27 + 48?"
Open = Callable[..., Model]


@pytest.fixture
def open_on(
    demo_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Model]:
    """Return a function that loads the demo model for devices in this order."""
    reports = tuple(DeviceReport(name, f"Some {name}") for name in ("CPU", "GPU", "NPU"))

    def compile_here(model: Any, device: str, properties: Any) -> Any:
        return compile_model(model, "NPU" if device == "NPU" else "CPU", properties)

    monkeypatch.setattr(openvino_opening, "probe_devices", lambda: reports)
    monkeypatch.setattr(openvino_opening, "try_compile", lambda *_: None)
    monkeypatch.setattr(openvino_opening, "find_cache_folder", lambda *_: None)
    monkeypatch.setattr(openvino_opening, "compile_model", compile_here)
    folder = tmp_path / "demo"
    shutil.copytree(demo_package, folder)

    def open_it(*devices: DeviceSettings, **options: Any) -> Model:
        manifest = dataclasses.replace(read_manifest(folder), devices=devices)
        (folder / MANIFEST_NAME).unlink()
        write_manifest(folder, manifest)
        for path in folder.iterdir():
            os.utime(path, (time.time() - 60, time.time() - 60))
        return load(folder, verify="sizes", warm_up=False, **options)

    return open_it


def talk(model: Model, prompts: Sequence[str], **options: Any) -> list[Answer]:
    with model.session(sampling=GREEDY, thinking=False, **options) as chat:
        return [chat.ask(prompt) for prompt in prompts]


def ids_of(answers: Sequence[Answer]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


def test_long_prompts_leave_the_pipeline_of_fixed_shapes_and_come_back(open_on: Open) -> None:
    prompts = ("Hello!", LONG)
    with open_on(CPU) as model:
        expected = ids_of(talk(model, prompts))
    with open_on(NPU, CPU) as model:
        assert (model.max_context_tokens, model.max_prompt_tokens) == (1024, None)
        answers = talk(model, prompts)
        assert ids_of(answers) == expected
        assert [bool(answer.notices) for answer in answers] == [False, True]
        assert model.device_choice is not None
        assert model.device_choice.value == CPU
        assert ids_of(talk(model, prompts[:1])) == expected[:1]
        assert model.device_choice.value == NPU


def break_device(monkeypatch: pytest.MonkeyPatch, device: str, after: int) -> None:
    """Let a device's requests fail after so many calls."""
    run, calls = DecoderRequest.run, 0

    def run_or_fail(
        self: DecoderRequest, token_ids: Sequence[int], mask: Mask, first_position: int
    ) -> None:
        nonlocal calls
        if self._device == device:
            calls += 1
            if calls > after:
                raise DeviceError(f"Device {device!r} stopped: CL_OUT_OF_RESOURCES.", "x")
        run(self, token_ids, mask, first_position)

    monkeypatch.setattr(DecoderRequest, "run", run_or_fail)


SCHEMA = OutputFormat.json_schema(
    {
        "type": "object",
        "properties": {"sum": {"type": "integer"}, "why": {"type": "string", "maxLength": 20}},
        "required": ["sum", "why"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("output", [None, SCHEMA], ids=["free", "schema"])
def test_an_answer_goes_on_in_the_middle_of_a_word(
    open_on: Open, monkeypatch: pytest.MonkeyPatch, output: OutputFormat | None
) -> None:
    prompts = ("Hello!", "What is 27 + 48?")
    with open_on(CPU) as model:
        expected = ids_of(talk(model, prompts, output=output))
    with open_on(GPU, CPU) as model:
        break_device(monkeypatch, "GPU", after=12)
        answers = talk(model, prompts, output=output)
        assert ids_of(answers) == expected
        assert sum(len(answer.notices) for answer in answers) == 1
        assert model.device_choice is not None and model.device_choice.value == CPU
        assert [entry.device for entry in model.refusals] == ["GPU"]
