"""What becomes of a question where devices are missing, refuse, answer wrongly or stop.

Each situation is a row of the tables in docs/devices.md, and has to end as it says there. Engine
and children are simulated below `open_openvino_backend`; packages, loading, sessions and the
memory of failures are the real ones. The simulated model's next token depends on all tokens
before it, so an answer that went on elsewhere is checked token by token.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import (
    ContextFullError,
    DeviceError,
    EdgeError,
    MissingExtraError,
    ParityError,
    ResourceError,
)
from qwen_edge.profiles.choose import Choice
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.backends.backend import LogitsRows
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.devices import compile_trial, openvino_opening
from qwen_edge.runtime.devices.probing import DeviceReport
from qwen_edge.runtime.devices.trial_process import EXIT_REFUSED, EXIT_WRONG_ANSWER, ChildEnd
from qwen_edge.runtime.events import Answer
from qwen_edge.runtime.loading import load
from qwen_edge.runtime.manifest import ChatFacts, DeviceSettings, GoldenTokens, OnnxFacts
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.session import Session
from qwen_edge.runtime.turn import collect_answer

ROOT = Path(__file__).parents[2]
END = 1000
GREEDY = SamplingParams(temperature=0)
NPU = DeviceSettings("NPU", {}, 192, 96, 96, 96)
GPU = DeviceSettings("GPU", {}, 256, None, None, 64)
CPU = DeviceSettings("CPU", {}, 512, None, None, 64)
WELL = ChildEnd(0, "", 600.0)
SHORT, LONG = "Hello!", "Tell me all of it. " * 40
SITUATIONS: dict[str, Callable[..., None]] = {}


def situation(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test as one of the documented situations."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        assert text not in SITUATIONS
        SITUATIONS[text] = test
        return test

    return register


def next_token(token_ids: Sequence[int]) -> int:
    value = zlib.crc32(np.array(token_ids, np.int32).tobytes())
    return END if value % 29 == 0 and len(token_ids) > 40 else 300 + value % 200


class Engine(FakeBackend):
    """A fake that raises `failing` for as long as it is set."""

    failing: EdgeError | None = None

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        if self.failing is not None:
            self.cached_ids.clear()
            raise self.failing
        return super().forward_scored(token_ids, num_scored=num_scored)


class Machine:
    """The devices of a machine, and how each behaves.

    Args:
        names: Devices that OpenVINO lists.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.absent: dict[str, str] = {}
        self.children: dict[str, ChildEnd] = {}
        self.refuses: dict[str, EdgeError] = {}
        self.dies_at_once: dict[str, EdgeError] = {}
        self.speaks_wrongly: set[str] = set()
        self.available_bytes: int | None = None
        self.engines: dict[str, list[Engine]] = {}
        self.tried: list[str] = []

    def reports(self) -> tuple[DeviceReport, ...]:
        seen = tuple(DeviceReport(name, f"Some {name}") for name in self.names)
        return (*seen, *(DeviceReport(name, "", text) for name, text in self.absent.items()))

    def run_task(self, task: compile_trial.CompileTask, *, time_limit_s: float) -> ChildEnd:
        del time_limit_s
        self.tried.append(task.settings.device)
        return self.children.get(task.settings.device, WELL)

    def compile(self, folder: Path, settings: DeviceSettings, **_: object) -> Engine:
        assert folder.is_dir()
        name = settings.device
        if name in self.refuses:
            raise self.refuses[name]
        script = (lambda ids: 7) if name in self.speaks_wrongly else next_token
        engine = Engine(script, vocab_size=1024, max_context_tokens=settings.max_context_tokens)
        engine.failing = self.dies_at_once.get(name)
        self.engines.setdefault(name, []).append(engine)
        return engine

    def stop(self, name: str, error: EdgeError | None = None) -> None:
        """Let a device fail from now on."""
        self.engines[name][-1].failing = error or stopped(name)

    def num_loads(self) -> dict[str, int]:
        return {name: len(engines) for name, engines in self.engines.items()}


def stopped(name: str) -> DeviceError:
    return DeviceError(f"Device {name!r} stopped at 50 tokens of context: DEVICE_LOST.", "ask")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine("CPU", "GPU", "NPU")

    def hardware() -> Any:
        return dataclasses.replace(real, available_memory_bytes=machine.available_bytes)

    real = probe_hardware()
    monkeypatch.setattr(openvino_opening, "probe_devices", machine.reports)
    monkeypatch.setattr(openvino_opening, "probe_hardware", hardware)
    monkeypatch.setattr(openvino_opening, "compile_backend", machine.compile)
    monkeypatch.setattr(compile_trial, "run_task", machine.run_task)
    yield machine
    for engines in machine.engines.values():
        assert all(engine.is_closed for engine in engines), "a device was not released"


Open = Callable[..., Model]


@pytest.fixture
def open_on(package: Path, seal: Callable[..., None]) -> Open:
    """Return a function that seals the package for devices in this order and loads it."""
    prompt_ids = (5, 6, 7)
    ids = list(prompt_ids)
    for _ in range(6):
        ids.append(next_token(ids))
    golden = GoldenTokens("x", prompt_ids, tuple(ids[3:]), {})

    def open_it(*devices: DeviceSettings, device: str = "auto", **options: Any) -> Model:
        facts = {name: options.pop(name) for name in ("npu", "onnx") if name in options}
        chat = ChatFacts("never", None, None)
        seal(package, devices=devices, golden=golden, chat=chat, **facts)
        return load(package, device=device, **{"warm_up": False, **options})

    return open_it


def ask(chat: Session, prompt: str = SHORT, **options: Any) -> Answer:
    """Ask, and check every token of the answer against all tokens before it."""
    options = {"max_new_tokens": 30, **options}
    answer = chat.ask(prompt, sampling=GREEDY, thinking=False, **options)
    check_tokens(chat, answer)
    return answer


def check_tokens(chat: Session, answer: Answer) -> None:
    ids = chat.conversation_ids
    start = len(ids) - len(answer.token_ids)
    assert ids[start:] == answer.token_ids
    assert start == answer.timings.prompt_tokens
    for index in range(start, len(ids)):
        assert ids[index] == next_token(ids[:index]), index - start


def ask_and_stop(
    machine: Machine, chat: Session, name: str, after: int, error: EdgeError | None = None
) -> Answer:
    """Ask, with a device that stops after so many events."""
    stream = chat.stream(SHORT, sampling=GREEDY, thinking=False, max_new_tokens=30)
    first = [next(stream) for _ in range(after)]
    machine.stop(name, error)
    answer = collect_answer(iter([*first, *stream]))
    check_tokens(chat, answer)
    return answer


def where(model: Model) -> str:
    assert model.device_choice is not None
    return model.device_choice.value.device


def reasons(model: Model) -> dict[str, str]:
    return {entry.device: entry.problem for entry in model.refusals}


def check_passed_over(open_on: Open, words: str, kind: type[EdgeError] = DeviceError) -> None:
    """The GPU comes first and cannot be used: "auto" goes on, one who asked for it is told."""
    with open_on(GPU, CPU) as model:
        assert where(model) == "CPU"
        assert words in reasons(model)["GPU"]
        assert model.device_choice is not None and words in model.device_choice.reason
        assert ask(model.session()).notices == ()
    with pytest.raises(EdgeError, match=re.escape(words)) as caught:
        open_on(GPU, CPU, device="GPU")
    assert type(caught.value) is kind


# When a model is loaded.


@pytest.mark.trust("T-DEV-01")
@situation("it is not in the machine")
def test_absent(machine: Machine, open_on: Open) -> None:
    machine.names = ("CPU",)
    machine.absent = {"GPU": "OpenVINO finds no GPU here: there is none"}
    check_passed_over(open_on, "there is none (devices OpenVINO sees: CPU)")


@pytest.mark.trust("T-DEV-02")
@situation("its driver is missing")
def test_without_driver(machine: Machine, open_on: Open) -> None:
    machine.names = ("CPU",)
    machine.absent = {"GPU": "Cannot load library libOpenCL.so.1"}
    check_passed_over(open_on, "Cannot load library libOpenCL.so.1")


@pytest.mark.trust("T-DEV-02")
@situation("its driver is too old")
def test_old_driver(machine: Machine, open_on: Open) -> None:
    said = "Device 'GPU' refused the model: driver 31.0 is too old"
    machine.children = {"GPU": ChildEnd(EXIT_REFUSED, said, 600.0)}
    check_passed_over(open_on, "driver 31.0 is too old")


@pytest.mark.trust("T-DEV-03")
@situation("its compiler refuses the model")
def test_refusing_compiler(machine: Machine, open_on: Open) -> None:
    machine.refuses = {"GPU": DeviceError("Device 'GPU' refused the model: no kernel.", "x")}
    check_passed_over(open_on, "refused the model: no kernel")


@pytest.mark.trust("T-DEV-03")
@situation("its compiler never ends")
def test_hanging_compiler(machine: Machine, open_on: Open) -> None:
    machine.children = {"GPU": ChildEnd(None, "", 600.0)}
    check_passed_over(open_on, "was not done after 600 s")


@pytest.mark.trust("T-DEV-03")
@situation("its compiler crashes")
def test_crashing_compiler(machine: Machine, open_on: Open) -> None:
    machine.children = {"GPU": ChildEnd(-11, "LLVM ERROR: abort", 600.0)}
    check_passed_over(open_on, "LLVM ERROR: abort")


@pytest.mark.trust("T-DEV-03")
@situation("it is on record that it could not")
def test_remembered_failure(machine: Machine, open_on: Open, package: Path) -> None:
    """Nobody waits ten minutes twice."""
    machine.children = {"GPU": ChildEnd(None, "", 600.0)}
    open_on(GPU, CPU).close()
    with load(package, warm_up=False) as model:
        assert where(model) == "CPU"
        assert "found out earlier" in reasons(model)["GPU"]
    with pytest.raises(DeviceError, match="found out earlier") as caught:
        load(package, device="GPU")
    assert machine.tried == ["GPU"]
    assert "delete" in caught.value.fix


@situation("its buffers cannot be allocated")
def test_no_buffers(machine: Machine, open_on: Open) -> None:
    error = DeviceError("Device 'GPU' could not set the model up: CL_OUT_OF_RESOURCES.", "x")
    machine.refuses = {"GPU": error}
    check_passed_over(open_on, "CL_OUT_OF_RESOURCES")


@situation("memory does not suffice for it")
def test_no_memory(machine: Machine, open_on: Open) -> None:
    machine.refuses = {"GPU": ResourceError("Memory ran out while it was compiled.", "x")}
    check_passed_over(open_on, "Memory ran out", ResourceError)


@situation("it answers with other tokens than the package was sealed with")
def test_wrong_tokens(machine: Machine, open_on: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Device 'GPU' computes wrongly here"
    machine.children = {"GPU": ChildEnd(EXIT_WRONG_ANSWER, said, 600.0)}
    check_passed_over(open_on, said, ParityError)
    # A program that is its own interpreter can start no child that finds it out.
    monkeypatch.setattr(openvino_opening, "try_compile", lambda *_: None)
    machine.speaks_wrongly = {"GPU"}
    check_passed_over(open_on, "GPU computes wrongly here", ParityError)


@situation("it gives no numbers")
def test_no_numbers(machine: Machine, open_on: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_opening, "try_compile", lambda *_: None)
    machine.dies_at_once = {"GPU": ParityError("1,024 of 1,024 logits are no numbers.", "x")}
    check_passed_over(open_on, "logits are no numbers", ParityError)


@situation("the package was not made for it")
def test_not_listed(machine: Machine, open_on: Open) -> None:
    with open_on(CPU) as model:
        assert (where(model), model.refusals) == ("CPU", ())
    with pytest.raises(DeviceError, match="not among those this was made for: CPU"):
        open_on(CPU, device="GPU")
    assert machine.num_loads() == {"CPU": 1}


@pytest.mark.trust("T-DEV-01")
@situation("no device can run it")
def test_nothing_left(machine: Machine, open_on: Open) -> None:
    machine.names = ("CPU",)
    machine.refuses = {"CPU": DeviceError("Device 'CPU' refused the model: no AVX2.", "x")}
    with pytest.raises(DeviceError) as caught:
        open_on(GPU, CPU)
    assert "GPU: not found" in caught.value.problem
    assert "no AVX2" in caught.value.problem


@situation("memory suffices nowhere")
def test_no_memory_anywhere(machine: Machine, open_on: Open) -> None:
    machine.available_bytes = 1_000_000
    with pytest.raises(ResourceError, match=r"1\.0 MB are available"):
        open_on(GPU, CPU)
    assert machine.num_loads() == {}


@situation("OpenVINO itself is missing")
def test_no_engine(
    machine: Machine, open_on: Open, monkeypatch: pytest.MonkeyPatch, package: Path
) -> None:
    def refuse() -> None:
        raise MissingExtraError("OpenVINO is not installed.", "pip install qwen-edge")

    settings = DeviceSettings("CPU", {"provider": "CPUExecutionProvider"}, 512, None, None, 64)
    for name in ("model.onnx", "model.onnx.data"):
        (package / name).touch()
    monkeypatch.setattr(openvino_opening, "import_openvino", refuse)
    monkeypatch.setattr(
        "qwen_edge.runtime.devices.onnx_opening.open_onnx_backend",
        lambda *_, **__: (
            machine.compile(package, settings),
            Choice(settings, "x"),
        ),
    )
    with open_on(GPU, CPU, onnx=OnnxFacts(21, False, 512, 64, 4)) as model:
        assert (model.backend_name, where(model)) == ("onnx", "CPU")
        assert [str(entry) for entry in model.refusals] == ["OpenVINO: OpenVINO is not installed"]
        ask(model.session())


# In the middle of an answer.


@pytest.mark.trust("T-DEV-04")
@situation("it stops while it reads the prompt")
def test_stops_at_the_prompt(machine: Machine, open_on: Open) -> None:
    with open_on(GPU, CPU) as model:
        chat = model.session()
        machine.stop("GPU")
        answer = ask(chat)
        assert where(model) == "CPU"
        assert "DEVICE_LOST" in answer.notices[0] and "CPU goes on" in answer.notices[0]
        assert "DEVICE_LOST" in reasons(model)["GPU"]
        assert ask(chat, "And?").notices == ()
        assert ask(chat, "And?").timings.reused_tokens > 20
    assert machine.num_loads() == {"GPU": 1, "CPU": 1}


@pytest.mark.trust("T-DEV-04")
@situation("it stops at some token of the answer")
@pytest.mark.parametrize("after", [1, 2, 7])
def test_stops_in_the_answer(
    machine: Machine, open_on: Open, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    with open_on(GPU, CPU) as model:
        chat = model.session(system="Be brief.")
        ask(chat)
        answer = ask_and_stop(machine, chat, "GPU", after)
        assert len(answer.token_ids) > 7
        [notice] = answer.notices
        assert notice.startswith("Device 'GPU' stopped at 50 tokens of context: DEVICE_LOST. CPU")
        assert "DEVICE_LOST" in caplog.text and "Loading the model on CPU" in caplog.text
        assert [message["role"] for message in chat.messages][-2:] == ["user", "assistant"]
        assert model.binding.settings["device"] == "CPU"
        assert (model.max_context_tokens, model.prefill_chunk_tokens) == (512, 64)


@situation("it gives no numbers in the middle")
def test_no_numbers_in_the_answer(machine: Machine, open_on: Open) -> None:
    error = ParityError("The model gave 3 of 1,024 logits that are no finite numbers.", "x")
    with open_on(GPU, CPU) as model:
        answer = ask_and_stop(machine, model.session(), "GPU", 3, error)
        assert "no finite numbers" in answer.notices[0]
    with open_on(GPU, CPU, device="GPU") as model, pytest.raises(ParityError):
        ask_and_stop(machine, model.session(), "GPU", 3, error)


@situation("memory runs out in the middle")
def test_no_memory_in_the_answer(machine: Machine, open_on: Open) -> None:
    error = ResourceError("Memory did not suffice on device 'GPU'.", "x")
    with open_on(GPU, CPU) as model:
        answer = ask_and_stop(machine, model.session(), "GPU", 3, error)
        assert "Memory did not suffice" in answer.notices[0]
    with open_on(GPU, CPU, device="GPU") as model, pytest.raises(ResourceError):
        ask_and_stop(machine, model.session(), "GPU", 3, error)


@pytest.mark.trust("T-DEV-04")
@situation("it stops while it warms up")
def test_stops_warming_up(machine: Machine, open_on: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its golden tokens were right: that is known from an earlier time."""
    monkeypatch.setattr(openvino_opening, "check_answers", lambda *_, **__: None)
    machine.dies_at_once = {"GPU": stopped("GPU")}
    with open_on(GPU, CPU, warm_up=True) as model:
        model.wait_until_warm()
        chat = model.session()
        assert "CPU goes on" in ask(chat).notices[0]
        assert where(model) == "CPU"
        assert ask(chat, "And?").notices == ()


@situation("the next one refuses as well")
def test_third_goes_on(machine: Machine, open_on: Open) -> None:
    with open_on(GPU, NPU, CPU) as model:
        machine.refuses = {"NPU": DeviceError("Device 'NPU' refused the model: x.", "x")}
        answer = ask_and_stop(machine, model.session(), "GPU", 3)
        assert where(model) == "CPU" and "CPU goes on" in answer.notices[0]
        assert set(reasons(model)) == {"GPU", "NPU"}
        assert machine.tried == ["GPU", "NPU"]


@pytest.mark.trust("T-DEV-04")
@situation("every one stops")
def test_all_stop(machine: Machine, open_on: Open) -> None:
    with open_on(GPU, CPU) as model:
        chat = model.session(system="Be brief.")
        ask(chat)
        before = chat.messages
        machine.dies_at_once = {"CPU": stopped("CPU"), "GPU": stopped("GPU")}
        with pytest.raises(DeviceError, match="DEVICE_LOST"):
            ask_and_stop(machine, chat, "GPU", 3)
        assert chat.messages == before
        machine.dies_at_once = {}
        assert ask(chat, "And now?").finish_reason in ("stop", "length")
        assert len(chat.messages) == len(before) + 2


@pytest.mark.trust("T-DEV-04")
@situation("the only device, or the one that was asked for, stops")
@pytest.mark.parametrize("device", ["auto", "GPU"])
def test_only_device_is_set_up_again(machine: Machine, open_on: Open, device: str) -> None:
    devices = (GPU,) if device == "auto" else (GPU, CPU)
    with open_on(*devices, device=device) as model:
        chat = model.session()
        answer = ask_and_stop(machine, chat, "GPU", 3)
        assert "GPU was set up again" in answer.notices[0]
        assert (where(model), model.refusals) == ("GPU", ())
        assert ask(chat, "And?").notices == ()
    assert machine.num_loads() == {"GPU": 2}


@pytest.mark.trust("T-DEV-04")
@situation("it stops a second time in the same answer")
def test_asked_for_stops_twice(machine: Machine, open_on: Open) -> None:
    with open_on(GPU, CPU, device="GPU") as model:
        chat = model.session()
        machine.dies_at_once = {"GPU": stopped("GPU")}
        with pytest.raises(DeviceError, match="DEVICE_LOST"):
            ask_and_stop(machine, chat, "GPU", 3)
        assert chat.messages == ()
        machine.dies_at_once = {}
        ask(chat)
    assert "CPU" not in machine.num_loads()


@situation("the package was changed meanwhile")
def test_changed_package(machine: Machine, open_on: Open, package: Path) -> None:
    """The other device would go on with another model."""
    with open_on(GPU, CPU) as model:
        (package / "openvino_model.bin").touch()
        with pytest.raises(DeviceError, match="DEVICE_LOST") as caught:
            ask_and_stop(machine, model.session(), "GPU", 3)
        assert "was changed since it was loaded" in str(caught.value.__cause__)
    assert machine.num_loads() == {"GPU": 1}


# By the length of the prompt.


@pytest.mark.trust("T-DEV-06")
@situation("the prompt is too long for it")
def test_long_prompt(machine: Machine, open_on: Open) -> None:
    with open_on(NPU, CPU) as model:
        assert (model.max_context_tokens, model.max_prompt_tokens) == (512, None)
        chat = model.session()
        assert ask(chat).notices == ()
        assert where(model) == "NPU"
        answer = ask(chat, LONG)
        assert "NPU takes prompts of up to 96 tokens" in answer.notices[0]
        assert where(model) == "CPU"
        assert model.refusals == ()
    refused = pytest.raises(ContextFullError, match="up to 96 on this device")
    with open_on(NPU, CPU, device="NPU") as model, refused:
        ask(model.session(), LONG)


@situation("a longer answer is asked for than it holds")
def test_long_answer_asked_for(machine: Machine, open_on: Open) -> None:
    with open_on(NPU, CPU) as model:
        ask(model.session(), max_new_tokens=100)
        assert where(model) == "NPU"
        answer = ask(model.session(), max_new_tokens=250)
        assert where(model) == "CPU"
        assert "NPU holds 192 tokens with the answer" in answer.notices[0]
    assert machine.num_loads() == {"NPU": 1, "CPU": 1}


@situation("the next prompt is short again")
def test_back_to_the_first(machine: Machine, open_on: Open) -> None:
    with open_on(NPU, CPU) as model:
        short, long = model.session(), model.session()
        for _ in range(2):
            ask(short, max_new_tokens=2)
            assert where(model) == "NPU"
            ask(long, LONG if not long.messages else "On.", max_new_tokens=2)
            assert where(model) == "CPU"
        assert ask(short, "On.", max_new_tokens=2).timings.reused_tokens > 20
        assert ask(long, "On.", max_new_tokens=2).timings.reused_tokens > 120
    assert machine.num_loads() == {"NPU": 1, "CPU": 1}


@situation("the answer outgrows it")
def test_outgrown(machine: Machine, open_on: Open) -> None:
    small = dataclasses.replace(NPU, max_context_tokens=48, max_prompt_tokens=32)
    with open_on(small, CPU) as model:
        chat = model.session()
        answer = ask(chat, max_new_tokens=None)
        assert len(chat.conversation_ids) > 48
        assert "outgrew the 48 tokens of NPU. CPU goes on" in answer.notices[0]
        assert where(model) == "CPU"
    with open_on(small, CPU, device="NPU") as model:
        answer = ask(model.session(), max_new_tokens=None)
        assert (answer.finish_reason, answer.notices) == ("length", ())


@situation("the answer outgrows it, and no other can be loaded")
def test_outgrown_without_another(machine: Machine, open_on: Open) -> None:
    small = dataclasses.replace(NPU, max_context_tokens=48, max_prompt_tokens=32)
    machine.refuses = {"CPU": ResourceError("Running it on CPU takes about 2 GB.", "x")}
    with open_on(small, CPU) as model:
        chat = model.session()
        answer = ask(chat, max_new_tokens=None)
        assert answer.finish_reason == "length"
        assert len(answer.token_ids) > 7
        assert "fills the 48 tokens of NPU" in answer.notices[0]
        assert chat.messages[-1]["role"] == "assistant"
        assert model.max_context_tokens == 48


@pytest.mark.trust("T-DEV-06")
@situation("the prompt is too long for all")
def test_too_long_for_all(machine: Machine, open_on: Open) -> None:
    refused = pytest.raises(ContextFullError, match="holds 512 with the answer")
    with open_on(NPU, CPU) as model, refused:
        ask(model.session(), LONG * 4)
    assert machine.num_loads() == {"NPU": 1}


@situation("memory holds the model on one device only")
def test_one_at_a_time(machine: Machine, open_on: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    full = ResourceError("Running this model on CPU takes about 2 GB of memory.", "x")
    compile_it = machine.compile

    def compile_one(folder: Path, settings: DeviceSettings, **options: Any) -> Engine:
        if any(not engine.is_closed for each in machine.engines.values() for engine in each):
            raise full
        return compile_it(folder, settings, **options)

    monkeypatch.setattr(openvino_opening, "compile_backend", compile_one)
    with open_on(NPU, CPU) as model:
        chat = model.session()
        ask(chat)
        ask(chat, LONG)
        assert where(model) == "CPU"
        assert "released: memory does not hold the model on two" in reasons(model)["NPU"]
        ask(model.session())
        assert where(model) == "CPU"
    assert machine.num_loads() == {"NPU": 1, "CPU": 1}


@situation("memory does not hold it on the other device at all")
def test_no_memory_for_the_other(machine: Machine, open_on: Open) -> None:
    with open_on(NPU, CPU) as model:
        machine.refuses = {"CPU": ResourceError("Running it on CPU takes about 2 GB.", "x")}
        chat = model.session()
        with pytest.raises(ContextFullError, match="CPU: Running it on CPU takes about 2 GB"):
            ask(chat, LONG)
        assert chat.messages == ()
        assert (model.max_context_tokens, model.max_prompt_tokens) == (192, 96)
        ask(chat)
        assert where(model) == "NPU"


def test_every_situation_is_documented_and_every_documented_one_tested() -> None:
    text = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \|[^|]+\|[^|]+\|$", text, re.M)
    listed = [row.strip() for row in rows if not row.startswith(("---", "What happens"))]
    assert listed == list(SITUATIONS)
    assert len(listed) >= 20
