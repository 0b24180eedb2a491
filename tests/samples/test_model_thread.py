"""The thread that owns the model, in samples/desktop: commands, signals, giving up, leaving."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import DeviceError, PackageError, UsageError
from qwen_edge.runtime import Model

QtCore = pytest.importorskip("PySide6.QtCore", exc_type=ImportError)

FOLDER = Path("a package")
Open = Callable[..., Model]


class Listener:
    """Keeps what a thread signals, and in which thread it arrived."""

    def __init__(self, models: Any) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.threads: set[int] = set()
        for name in (
            "load_stepped",
            "loaded",
            "load_failed",
            "reasoned",
            "answered",
            "answer_ended",
            "answer_failed",
        ):
            getattr(models, name).connect(self._make_slot(name))

    def _make_slot(self, name: str) -> Callable[[Any], None]:
        def keep(value: Any) -> None:
            self.heard.append((name, value))
            self.threads.add(threading.get_ident())

        return keep

    def all(self, name: str) -> list[Any]:
        """Return what was signalled under a name."""
        return [value for heard, value in self.heard if heard == name]

    def text(self, name: str) -> str:
        """Return the texts that were signalled under a name, joined."""
        return "".join(self.all(name))


class SlowModel:
    """Opens fake models whose every call of the engine takes a while, and counts the calls."""

    def __init__(self, answers: list[str], step_s: float = 0.0, **options: Any) -> None:
        self.answers, self.step_s, self.options = answers, step_s, options
        self.opened: list[Model] = []
        self.num_calls = 0

    def __call__(self, folder: Path, *, progress: Callable[[int], None]) -> Model:
        model = Model.fake(self.answers, **self.options)
        forward = model.backend.forward

        def step(token_ids: Any) -> Any:
            self.num_calls += 1
            time.sleep(self.step_s)
            return forward(token_ids)

        model.backend.forward = step  # type: ignore[method-assign]
        self.opened.append(model)
        return model


@pytest.fixture
def start(app: Any, desktop: Path) -> Iterator[Callable[[Open], tuple[Any, Listener]]]:
    """Return a function that starts a thread and listens to it; all are closed at the end."""
    from model_thread import ModelThread

    started = []

    def make(open_model: Open) -> tuple[Any, Listener]:
        models = ModelThread(open_model)
        started.append(models)
        return models, Listener(models)

    yield make
    for models in started:
        models.close()
        assert models.wait(120)


@pytest.fixture
def loaded(
    start: Callable[[Open], tuple[Any, Listener]], wait_until: Callable[..., None]
) -> Callable[[Open], tuple[Any, Listener]]:
    """Return a function that starts a thread and loads a model into it."""

    def make(open_model: Open) -> tuple[Any, Listener]:
        models, listener = start(open_model)
        models.load(FOLDER)
        wait_until(lambda: listener.all("loaded"))
        return models, listener

    return make


def test_qt_keeps_count_of_what_signals_carry(app: Any) -> None:
    """PySide6 6.12.0 loses a reference to True with each signal: Python before 3.12 then aborts."""
    if sys.version_info >= (3, 12):
        pytest.skip("True is immortal from Python 3.12 on")

    class Sender(QtCore.QObject):  # type: ignore[misc]
        sent = QtCore.Signal(object)

    sender = Sender()
    sender.sent.connect(lambda value: None)
    before = sys.getrefcount(True)
    for number in range(50):
        sender.sent.emit(number)
    assert abs(sys.getrefcount(True) - before) < 10


def test_an_answer_is_streamed_in_order_to_the_window_s_thread(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    models, listener = loaded(SlowModel(["<think>\nhm\n</think>\n\nIt is blue."]))
    [facts] = listener.all("loaded")
    assert (facts.name, facts.thinking, facts.folder) == ("fake", "switchable", FOLDER)
    models.ask("Why?", thinking=True)
    assert models.state == "answering"
    wait_until(lambda: listener.all("answer_ended"))
    assert models.state == "ready"
    assert listener.text("reasoned").strip() == "hm"
    assert listener.text("answered").strip() == "It is blue."
    assert len(listener.all("answered")) > 3, "not token by token"
    names = [name for name, _ in listener.heard]
    assert names.index("answered") > max(i for i, name in enumerate(names) if name == "reasoned")
    assert names[-1] == "answer_ended"
    [end] = listener.all("answer_ended")
    assert end.reason == "stop" and end.num_tokens > 10 and end.tokens_per_s > 0
    assert listener.threads == {threading.get_ident()}


def test_without_thinking_nothing_is_thought(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    models, listener = loaded(SlowModel(["Blue."]))
    models.ask("Why?", thinking=False)
    wait_until(lambda: listener.all("answer_ended"))
    assert listener.text("reasoned") == ""
    assert listener.text("answered") == "Blue."


def test_stop_ends_an_answer_within_one_token(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    slow = SlowModel(["so " * 1000], step_s=0.03)
    models, listener = loaded(slow)
    models.ask("Why?")
    wait_until(lambda: len(listener.all("answered")) >= 3)
    num_calls = slow.num_calls
    models.stop()
    wait_until(lambda: listener.all("answer_ended"))
    assert slow.num_calls - num_calls <= 1
    [end] = listener.all("answer_ended")
    assert end.reason == "cancelled"
    models.ask("And now?")
    assert len(listener.all("answer_ended")) == 1
    models.stop()
    wait_until(lambda: len(listener.all("answer_ended")) == 2)


def test_an_answer_that_is_stopped_before_it_began_costs_nothing(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    slow = SlowModel(["so " * 1000], step_s=0.2)
    models, listener = loaded(slow)
    models.ask("Why?")
    models.stop()
    wait_until(lambda: listener.all("answer_ended"))
    assert slow.num_calls <= 1
    assert listener.text("answered") == ""


def test_reading_a_long_question_is_stopped_too(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    slow = SlowModel(["fine"], step_s=0.2, max_context_tokens=32_768)
    models, listener = loaded(slow)
    models.ask("x" * 16_384)
    wait_until(lambda: slow.num_calls >= 2)
    num_calls = slow.num_calls
    models.stop()
    wait_until(lambda: listener.all("answer_ended"))
    assert slow.num_calls - num_calls <= 1
    assert listener.text("answered") == ""


def test_a_second_question_is_refused(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    models, listener = loaded(SlowModel(["one two three", "no"], step_s=0.01))
    models.ask("First?")
    with pytest.raises(UsageError, match="giving an answer") as caught:
        models.ask("Second?")
    assert "stop" in caught.value.fix
    with pytest.raises(UsageError, match="giving an answer"):
        models.forget()
    wait_until(lambda: listener.all("answer_ended"))
    assert listener.text("answered") == "one two three"


def test_nothing_is_asked_without_a_model(start: Callable[..., Any]) -> None:
    models, _ = start(SlowModel(["x"]))
    with pytest.raises(UsageError, match="No model") as caught:
        models.ask("Hello?")
    assert "folder" in caught.value.fix
    models.stop()
    assert models.state == "empty"
    models.close()
    with pytest.raises(UsageError, match="released"):
        models.load(FOLDER)


def test_the_conversation_goes_on_until_it_is_forgotten(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    models, listener = loaded(SlowModel(["first", "second"]))
    expected = ["first", "second", "first"]
    for number in range(3):
        if number == 2:
            models.forget()
            wait_until(lambda: models.state == "ready")
        models.ask("?")
        wait_until(lambda: len(listener.all("answer_ended")) == number + 1)  # noqa: B023
        assert listener.text("answered") == "".join(expected[: number + 1])


def test_a_question_that_does_not_fit_is_told_of_and_the_model_stays(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    models, listener = loaded(SlowModel(["fine"], max_context_tokens=200))
    models.ask("x" * 400)
    wait_until(lambda: listener.all("answer_failed"))
    [problem] = listener.all("answer_failed")
    assert "199" in problem.text and "shorten" in problem.fix
    models.ask("short")
    wait_until(lambda: listener.all("answer_ended"))
    assert listener.text("answered") == "fine"


def test_a_package_that_cannot_be_opened_leaves_room_for_another(
    start: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    good = SlowModel(["fine"])

    def open_model(folder: Path, *, progress: Any) -> Model:
        if folder.name == "broken":
            raise PackageError("It is broken.", "make it anew")
        if folder.name == "bug":
            raise ZeroDivisionError("oh")
        return good(folder, progress=progress)

    models, listener = start(open_model)
    for number, (name, text, fix) in enumerate(
        [("broken", "It is broken.", "make it anew"), ("bug", "ZeroDivisionError: oh", "report")]
    ):
        models.load(Path(name))
        wait_until(lambda: len(listener.all("load_failed")) == number + 1)  # noqa: B023
        problem = listener.all("load_failed")[-1]
        assert problem.text == text and fix in problem.fix
        assert models.state == "empty"
    models.load(Path("good"))
    wait_until(lambda: listener.all("loaded"))
    assert models.state == "ready"


def test_an_answer_that_the_device_breaks_is_told_of(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    slow = SlowModel(["a long answer"])
    models, listener = loaded(slow)
    forward = slow.opened[0].backend.forward

    def fail(token_ids: Any) -> Any:
        if slow.num_calls == 3:
            raise DeviceError("The device is gone.", "load the model again")
        return forward(token_ids)

    slow.opened[0].backend.forward = fail  # type: ignore[method-assign]
    models.ask("?")
    wait_until(lambda: listener.all("answer_failed"))
    assert listener.all("answer_failed")[0].text == "The device is gone."
    assert listener.all("answer_ended") == []
    assert models.state == "ready"


@pytest.mark.trust("T-EMB-08")
def test_checking_is_shown_and_given_up_for_another_package(
    start: Callable[..., Any], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    for folder in (big, small):
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(1000))
    was_given_up = threading.Event()
    slow = SlowModel(["fine"])

    def open_model(folder: Path, *, progress: Callable[[int], None]) -> Model:
        try:
            for _ in range(100_000 if folder == big else 10):
                progress(1 if folder == big else 100)
                time.sleep(0.001)
        except Exception:
            was_given_up.set()
            raise
        return slow(folder, progress=progress)

    models, listener = start(open_model)
    models.load(big)
    wait_until(lambda: len(listener.all("load_stepped")) > 3)
    models.load(small)
    wait_until(lambda: listener.all("loaded"))
    assert was_given_up.is_set()
    assert [facts.folder for facts in listener.all("loaded")] == [small]
    assert listener.all("load_failed") == []
    shares = [step.share for step in listener.all("load_stepped") if step.folder == small]
    assert shares[0] is None and shares[-1] == 1
    assert shares[1:] == sorted(shares[1:])


def test_a_model_is_released_before_the_next_one_is_opened(
    start: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    """Two at a time may be more than memory holds."""
    slow = SlowModel(["so " * 1000], step_s=0.01)
    seen: list[bool] = []

    def open_model(folder: Path, *, progress: Any) -> Model:
        seen.extend(model.is_closed for model in slow.opened)
        return slow(folder, progress=progress)

    models, listener = start(open_model)
    models.load(Path("first"))
    wait_until(lambda: listener.all("loaded"))
    models.ask("?")
    wait_until(lambda: listener.all("answered"))
    models.load(Path("second"))
    wait_until(lambda: len(listener.all("loaded")) == 2)
    assert seen == [True]
    assert [end.reason for end in listener.all("answer_ended")] == ["cancelled"]
    models.ask("?")


def test_close_while_answering_releases_the_model_soon(
    loaded: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    slow = SlowModel(["so " * 1000], step_s=0.03)
    models, listener = loaded(slow)
    models.ask("?")
    wait_until(lambda: listener.all("answered"))
    num_calls = slow.num_calls
    models.close()
    models.close()
    assert models.wait(120)
    assert slow.num_calls - num_calls <= 1
    [model] = slow.opened
    assert model.is_closed
    with pytest.raises(UsageError):
        model.session()


@pytest.mark.trust("T-EMB-08")
def test_close_while_checking_gives_up(
    start: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    def open_model(folder: Path, *, progress: Callable[[int], None]) -> Model:
        while True:
            progress(1)
            time.sleep(0.001)

    models, listener = start(open_model)
    models.load(FOLDER)
    wait_until(lambda: listener.all("load_stepped"))
    models.close()
    assert models.wait(120)


@pytest.mark.trust("T-EMB-08")
def test_close_does_not_wait_for_an_engine_that_compiles(start: Callable[..., Any]) -> None:
    """Nothing interrupts it; the model that comes of it is released at once."""
    has_begun, may_go_on = threading.Event(), threading.Event()
    slow = SlowModel(["x"])

    def open_model(folder: Path, *, progress: Any) -> Model:
        has_begun.set()
        may_go_on.wait(600)
        return slow(folder, progress=progress)

    models, listener = start(open_model)
    models.load(FOLDER)
    assert has_begun.wait(120)
    models.close()  # were it to wait, it would be for ever
    assert not models.wait(0.05)
    may_go_on.set()
    assert models.wait(120)
    assert slow.opened[0].is_closed
    assert listener.all("loaded") == []
