"""The NPU path, whole: the plugin's own pipeline of fixed shapes, told to run on the CPU.

Whatever is asked through it is answered with the greedy tokens of device CPU in float32, for the
trained demo model: over conversations with and without thinking, at the limit of prompts and
beyond it. What another process compiled is only loaded, and how that went is remembered.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import ContextFullError, DeviceError
from qwen_edge.runtime import Model, SamplingParams, load
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.backends.decoder_request import DecoderRequest
from qwen_edge.runtime.devices import compile_trial, openvino_opening
from qwen_edge.runtime.devices.npu_verdict import NpuVerdict
from qwen_edge.runtime.devices.openvino_opening import open_openvino_backend
from qwen_edge.runtime.devices.probing import DeviceReport
from qwen_edge.runtime.manifest import DeviceSettings
from qwen_edge.runtime.package import read_manifest, write_manifest

GREEDY = SamplingParams(temperature=0)
MAX_PROMPT_TOKENS, MIN_RESPONSE_TOKENS, CHUNK_TOKENS = 256, 192, 64
CPU = DeviceSettings("CPU", {"EXECUTION_MODE_HINT": "ACCURACY"}, 448, None, None, 512)


def on_cpu(settings: DeviceSettings) -> DeviceSettings:
    """The package's own settings for NPU, smaller, in float32 and without an NPU."""
    properties = {
        **settings.properties,
        "NPUW_DEVICES": "CPU",
        "NPUW_LLM_MAX_PROMPT_LEN": MAX_PROMPT_TOKENS,
        "NPUW_LLM_MIN_RESPONSE_LEN": MIN_RESPONSE_TOKENS,
        "NPUW_LLM_PREFILL_CHUNK_SIZE": CHUNK_TOKENS,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    context = MAX_PROMPT_TOKENS + MIN_RESPONSE_TOKENS
    return DeviceSettings(
        "NPU", properties, context, MAX_PROMPT_TOKENS, MIN_RESPONSE_TOKENS, MAX_PROMPT_TOKENS
    )


@pytest.fixture(scope="module", autouse=True)
def devices() -> Iterator[None]:
    """Let the plugin for NPUs count as an NPU."""
    reports = (DeviceReport("CPU", "Some CPU"), DeviceReport("NPU", "No NPU"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_opening, "probe_devices", lambda: reports)
        yield


@pytest.fixture(scope="module")
def package(demo_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo package with settings for an NPU that is none."""
    folder = Path(shutil.copytree(demo_package, tmp_path_factory.mktemp("npu") / "package"))
    manifest = read_manifest(folder)
    npu = next(entry for entry in manifest.devices if entry.device == "NPU")
    assert manifest.npu == NpuVerdict()
    write_manifest(folder, dataclasses.replace(manifest, devices=(on_cpu(npu), CPU)))
    return folder


@pytest.fixture(scope="module")
def backends(package: Path) -> Iterator[dict[str, Backend]]:
    """Return the package's model on both devices.

    Not tried first and kept in no cache: what OpenVINO imports from there computes in bfloat16 on
    a CPU that can.
    """
    manifest = read_manifest(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_opening, "try_compile", lambda *arguments: None)
        patch.setattr(openvino_opening, "find_cache_folder", lambda *arguments: None)
        opened = {
            name: open_openvino_backend(package, manifest, device=name)[0]
            for name in ("NPU", "CPU")
        }
    yield opened
    for backend in opened.values():
        backend.close()


def load_on(package: Path, backend: Backend, device: str) -> Model:
    """Load the package with a backend that is there already."""
    manifest = read_manifest(package)
    settings = next(entry for entry in manifest.devices if entry.device == device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_opening, "_open_on", lambda *arguments, **options: backend)
        model = load(package, device=device, warm_up=False)
    assert model.max_prompt_tokens == settings.max_prompt_tokens
    return model


@pytest.fixture(scope="module")
def npu(package: Path, backends: dict[str, Backend]) -> Model:
    return load_on(package, backends["NPU"], "NPU")


@pytest.fixture(scope="module")
def cpu(package: Path, backends: dict[str, Backend]) -> Model:
    return load_on(package, backends["CPU"], "CPU")


Calls = list[tuple[int, int]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return what the engine is asked for: (tokens, first position) of each run."""
    made: Calls = []
    run = DecoderRequest.run

    def run_and_note(self: DecoderRequest, token_ids: Any, mask: Any, first_position: int) -> None:
        if self._device == "NPU":
            made.append((len(token_ids), first_position))
        run(self, token_ids, mask, first_position)

    monkeypatch.setattr(DecoderRequest, "run", run_and_note)
    return made


def test_conversation_gives_the_tokens_of_the_cpu(npu: Model, cpu: Model, calls: Calls) -> None:
    """Later turns go on from whole chunks of the one before, and drop what was thought in it."""
    questions = (
        "Repeat this text: The red house needs the old cat in Berlin.",
        "What is 27 + 48?",
        "What is the capital of France?",
    )
    system = "You are Mira. You answer in short sentences, in the language you are asked in. " * 2
    with npu.session(system=system) as one, cpu.session(system=system) as other:
        for number, question in enumerate(questions):
            calls.clear()
            found = one.ask(question, sampling=GREEDY)
            expected = other.ask(question, sampling=GREEDY)
            assert found.token_ids == expected.token_ids, question
            assert found.reasoning
            assert found.text
            prompts = [(count, begin) for count, begin in calls if count > 1]
            assert len(prompts) == 1
            begin = prompts[0][1]
            assert begin % CHUNK_TOKENS == 0
            assert begin > 0 or number == 0


def test_thinking_ends_in_time_for_an_answer(npu: Model) -> None:
    """However long a thought would be, what is left of the context closes it."""
    limit = 24
    with npu.session(thinking=True) as chat:
        answer = chat.ask("What is 27 + 48?", sampling=GREEDY, max_new_tokens=limit)
    assert answer.timings.decode_tokens <= limit
    assert answer.text


def fill(model: Model, num_tokens: int) -> str:
    """Return a question whose prompt has exactly so many tokens."""
    text = "Repeat this text: " + "a" * (4 * num_tokens)
    while True:
        messages = [{"role": "user", "content": text}]
        length = len(model.chat_template.encode(messages, thinking=False))
        if length == num_tokens:
            return text
        text = text[:-1]


@pytest.mark.trust("T-DEV-06")
def test_prompt_at_the_limit_and_beyond(npu: Model, cpu: Model) -> None:
    at_limit = fill(npu, MAX_PROMPT_TOKENS)
    with npu.session(thinking=False) as one, cpu.session(thinking=False) as other:
        found = one.ask(at_limit, sampling=GREEDY, max_new_tokens=24)
        expected = other.ask(at_limit, sampling=GREEDY, max_new_tokens=24)
        assert found.token_ids == expected.token_ids
    with npu.session(thinking=False) as chat, pytest.raises(ContextFullError) as caught:
        chat.ask(at_limit + "aaaaaaaa", sampling=GREEDY)
    assert "takes prompts of up to 256 on this device" in caught.value.problem


@pytest.mark.trust("T-DEV-06")
def test_tokens_beyond_the_prompt_model_are_stepped_to_the_last_row(
    npu: Model, backends: dict[str, Backend]
) -> None:
    """A tool's result may come when the prompt model is full: the one-token model reads it."""
    sentence = npu.tokenizer.encode("The red house needs the old cat in Berlin. ")
    token_ids = (sentence * 40)[: MAX_PROMPT_TOKENS + 40]
    static = backends["NPU"]
    room = static.max_context_tokens - len(token_ids)
    answers: list[list[int]] = []
    for backend in backends.values():
        backend.reset()
        logits = backend.forward(token_ids)
        answer = [int(logits.argmax())]
        while len(answer) < room:
            answer.append(int(backend.forward([answer[-1]]).argmax()))
        answers.append(answer)
    assert answers[0] == answers[1]
    static.forward([answers[0][-1]])
    with pytest.raises(ContextFullError):
        static.forward([1])


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.trust("T-PKG-10")
def test_what_a_child_compiled_is_loaded_and_proven(
    package: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, old: Callable[[Path], None]
) -> None:
    """One child for the first load, none for the second; a damaged file is made again."""
    old(package)
    manifest = read_manifest(package)
    golden = manifest.golden
    tried: list[str] = []
    run_task = compile_trial.run_task

    def count(task: Any, **options: Any) -> Any:
        tried.append(task.settings.device)
        return run_task(task, **options)

    loaded: list[bool] = []
    make = openvino_opening._make_backend

    def look(compiled: Any, *arguments: Any) -> Any:
        loaded.append(bool(compiled.get_property("LOADED_FROM_CACHE")))
        return make(compiled, *arguments)

    monkeypatch.setattr(compile_trial, "run_task", count)
    monkeypatch.setattr(openvino_opening, "_make_backend", look)

    def first_token() -> int:
        backend, _ = open_openvino_backend(package, manifest, device="NPU")
        token = int(backend.forward(golden.prompt_ids).argmax())
        backend.close()
        return token

    assert first_token() == golden.token_ids[0]
    assert (tried, loaded) == (["NPU"], [True])
    (blob,) = cache_dir.rglob("*.blob")
    blob.chmod(0o600)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0xFF
    blob.write_bytes(content)
    assert first_token() == golden.token_ids[0]
    assert (tried, loaded) == (["NPU"], [True, False])


@pytest.fixture
def old() -> Callable[[Path], None]:
    """Return a function that lets the files of a package look old enough to be remembered."""
    import os
    import time

    def make_old(folder: Path) -> None:
        then = time.time() - 60
        for path in folder.iterdir():
            os.utime(path, (then, then))

    return make_old


def test_what_was_found_at_export_is_heeded(package: Path) -> None:
    manifest = read_manifest(package)
    unfit = NpuVerdict(("layer 'x': its weights are u8, expected 4 bits",))
    marked = dataclasses.replace(manifest, npu=unfit)
    with pytest.raises(DeviceError, match=r"not run on an NPU: layer 'x'.*when it was exported"):
        open_openvino_backend(package, marked, device="NPU")
    _, choice = open_openvino_backend(package, marked)
    assert choice.value.device == "CPU"
    assert "layer 'x'" in choice.reason
