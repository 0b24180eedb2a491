"""The window of samples/desktop: what a person sees and can do, with and without a model."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.runtime import Model

QtCore = pytest.importorskip("PySide6.QtCore", exc_type=ImportError)
QtTest = pytest.importorskip("PySide6.QtTest", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)

WaitUntil = Callable[..., None]


class Window:
    """A window with its thread, and what a person does with it."""

    def __init__(self, settings: Any, open_model: Any, folder_to_choose: str = "") -> None:
        from model_thread import ModelThread
        from window import ChatWindow

        self.folder_to_choose = folder_to_choose
        self.models = ModelThread(open_model)
        self.view = ChatWindow(self.models, settings, lambda: self.folder_to_choose)
        self.view.show()

    def type(self, text: str) -> None:
        """Type a question and press Enter."""
        QtTest.QTest.keyClicks(self.view.input, text)
        QtTest.QTest.keyClick(self.view.input, QtCore.Qt.Key.Key_Return)

    def click(self, button: Any) -> None:
        """Press a button, which must be there and usable."""
        assert button.isVisible() and button.isEnabled()
        QtTest.QTest.mouseClick(button, QtCore.Qt.MouseButton.LeftButton)

    @property
    def shows_a_problem(self) -> bool:
        """Whether the page is up that says what is wrong."""
        return bool(self.view.problem_page.isVisible())


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """Return settings of one test's own."""
    return QtCore.QSettings(str(tmp_path / "settings.ini"), QtCore.QSettings.Format.IniFormat)


@pytest.fixture
def open_window(app: Any, desktop: Path, settings: Any) -> Iterator[Callable[..., Window]]:
    """Return a function that opens a window; all are closed at the end."""
    opened: list[Window] = []

    def make(open_model: Any = None, folder_to_choose: str = "") -> Window:
        from model_thread import open_package

        opened.append(Window(settings, open_model or open_package, folder_to_choose))
        return opened[-1]

    yield make
    for window in opened:
        window.view.close()
        assert window.models.wait(120)
        window.view.deleteLater()


def make_opener(answers: list[str], step_s: float = 0.0) -> Any:
    """Return what opens a fake model with these answers, as slow as asked."""

    def open_model(folder: Path, *, progress: Any) -> Model:
        model = Model.fake(answers)
        forward = model.backend.forward

        def step(token_ids: Any) -> Any:
            time.sleep(step_s)
            return forward(token_ids)

        model.backend.forward = step  # type: ignore[method-assign]
        return model

    return open_model


def test_a_real_package_answers_and_is_remembered(
    open_window: Callable[..., Window], wait_until: WaitUntil, demo_package: Path, settings: Any
) -> None:
    window = open_window(folder_to_choose=str(demo_package))
    view = window.view
    assert window.shows_a_problem and not view.send_button.isEnabled()
    window.click(view.other_button)
    wait_until(lambda: window.models.state == "ready")
    wait_until(lambda: view.send_button.isEnabled())
    assert view.device.text() == "on CPU"
    view.think_box.setChecked(False)
    window.type("What is 17 + 25?")
    wait_until(lambda: view.status.text() == "Ready")
    assert "42" in view.transcript.answer.text
    assert re.fullmatch(r"[\d,.]+ tokens/s · first after [\d.]+ s", view.speed.text())
    view.close()
    assert window.models.wait(120)

    again = open_window()
    again.view.open_remembered()
    wait_until(lambda: again.view.device.text() == "on CPU")
    assert again.view.title.text() == view.title.text()


def test_a_missing_model_is_told_of_and_another_can_be_chosen(
    open_window: Callable[..., Window], wait_until: WaitUntil, demo_package: Path, tmp_path: Path
) -> None:
    window = open_window(folder_to_choose=str(demo_package))
    view = window.view
    view.load(tmp_path / "gone")
    wait_until(lambda: window.shows_a_problem)
    assert "gone" in view.problem.text()
    assert view.fix.isVisible() and len(view.fix.text()) > len("What to do: ")
    assert not view.send_button.isEnabled() and not view.bar.isVisible()
    window.click(view.retry_button)
    wait_until(lambda: window.models.state == "empty")
    wait_until(lambda: window.shows_a_problem)
    window.click(view.other_button)
    wait_until(lambda: view.send_button.isEnabled())
    assert not window.shows_a_problem


def test_a_damaged_model_is_told_of(
    open_window: Callable[..., Window], wait_until: WaitUntil, demo_package: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(demo_package, tmp_path / "damaged")
    weights = damaged / "openvino_model.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    window = open_window()
    window.view.load(damaged)
    wait_until(lambda: window.models.state == "empty")
    wait_until(lambda: window.shows_a_problem)
    assert "openvino_model.bin" in window.view.problem.text()
    assert window.view.retry_button.isVisible()


def test_choosing_nothing_changes_nothing(
    open_window: Callable[..., Window], wait_until: WaitUntil, settings: Any
) -> None:
    window = open_window(make_opener(["x"]), folder_to_choose="")
    window.click(window.view.choose_button)
    assert window.models.state == "empty"
    assert settings.value("package") is None


def test_the_window_is_usable_while_a_model_is_loaded(
    open_window: Callable[..., Window], wait_until: WaitUntil, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(bytes(100))

    def open_model(folder: Path, *, progress: Callable[[int], None]) -> Model:
        for _ in range(50):
            progress(2)
            time.sleep(0.02)
        return Model.fake(["fine"])

    window = open_window(open_model)
    view = window.view
    view.load(tmp_path)
    assert view.bar.isVisible()
    wait_until(lambda: 10 < view.bar.value() < 90)
    assert view.status.text().startswith("Checking the files: ")
    window.type("A question")
    assert view.input.toPlainText() == "A question", "it is kept until there is a model"
    assert "wait" in view.status.text().lower()
    wait_until(lambda: view.send_button.isEnabled())
    assert not view.bar.isVisible()
    window.click(view.send_button)
    wait_until(lambda: view.status.text() == "Ready")
    assert view.transcript.answer.text == "fine"


def test_a_second_question_waits_in_the_editor(
    open_window: Callable[..., Window], wait_until: WaitUntil, tmp_path: Path
) -> None:
    window = open_window(make_opener(["so " * 1000, "fine"], step_s=0.01))
    view = window.view
    view.load(tmp_path)
    wait_until(lambda: view.send_button.isEnabled())
    window.type("First?")
    wait_until(lambda: view.transcript.answer.text)
    assert not view.send_button.isVisible() and not view.new_button.isEnabled()
    window.type("Second?")
    assert view.input.toPlainText() == "Second?"
    assert "giving an answer" in view.status.text()
    window.click(view.stop_button)
    wait_until(lambda: view.send_button.isEnabled())
    assert view.status.text() == "Stopped"
    window.click(view.send_button)
    wait_until(lambda: view.status.text() == "Ready")
    assert view.transcript.answer.text == "fine"


def test_escape_stops_an_answer(
    open_window: Callable[..., Window], wait_until: WaitUntil, tmp_path: Path
) -> None:
    window = open_window(make_opener(["so " * 1000], step_s=0.01))
    window.view.load(tmp_path)
    wait_until(lambda: window.view.send_button.isEnabled())
    window.type("First?")
    wait_until(lambda: window.view.transcript.answer.text)
    QtTest.QTest.keyClick(window.view.input, QtCore.Qt.Key.Key_Escape)
    wait_until(lambda: window.view.status.text() == "Stopped")


def test_thinking_is_shown_apart_and_folded_away(
    open_window: Callable[..., Window], wait_until: WaitUntil, tmp_path: Path
) -> None:
    window = open_window(make_opener(["<think>\nWell, well.\n</think>\n\nBlue.", "Red."]))
    view = window.view
    view.load(tmp_path)
    wait_until(lambda: view.send_button.isEnabled())
    assert view.think_box.isEnabled() and view.think_box.isChecked()
    window.type("Why?")
    wait_until(lambda: view.status.text() == "Ready")
    first = view.transcript.answer
    assert first.thinking_label.text() == "Well, well." and first.text_label.text() == "Blue."
    assert first.toggle.isVisible() and not first.thinking_label.isVisible()
    window.click(first.toggle)
    assert first.thinking_label.isVisible()
    view.think_box.setChecked(False)
    window.type("And now?")
    wait_until(lambda: view.transcript.answer is not first and view.status.text() == "Ready")
    second = view.transcript.answer
    assert second.text_label.text() == "Red." and not second.toggle.isVisible()


def test_a_question_that_is_refused_comes_back_into_the_editor(
    open_window: Callable[..., Window], wait_until: WaitUntil, tmp_path: Path
) -> None:
    def open_model(folder: Path, *, progress: Any) -> Model:
        return Model.fake(["x"], max_context_tokens=100)

    window = open_window(open_model)
    view = window.view
    view.load(tmp_path)
    wait_until(lambda: view.send_button.isEnabled())
    question = "why " * 50
    view.ask(question)
    wait_until(lambda: view.send_button.isVisible() and view.send_button.isEnabled())
    assert view.status.text() == "The question was not answered"
    assert view.input.toPlainText() == question
    notices = [label.text() for label in view.findChildren(type(view.problem), "notice")]
    assert len(notices) == 1 and "tokens" in notices[0]


def test_a_new_conversation_is_empty(
    open_window: Callable[..., Window], wait_until: WaitUntil, tmp_path: Path
) -> None:
    window = open_window(make_opener(["first", "second"]))
    view = window.view
    view.load(tmp_path)
    wait_until(lambda: view.send_button.isEnabled())
    for _ in range(2):
        window.type("?")
        wait_until(lambda: view.status.text() == "Ready" and view.send_button.isVisible())
        assert view.transcript.answer.text == "first"
        window.click(view.new_button)
        assert view.transcript.answer is None
        wait_until(lambda: window.models.state == "ready")


def test_text_is_not_taken_for_markup(app: Any, desktop: Path) -> None:
    from transcript import Transcript

    transcript = Transcript()
    transcript.add_question("<h1>big</h1>")
    transcript.answer.add_text("<img src='file:///etc/hostname'><b>bold</b>")
    transcript.end_answer()
    for label in (transcript.answer.text_label, transcript.answer.thinking_label):
        assert label.textFormat() == QtCore.Qt.TextFormat.PlainText
    assert transcript.answer.text_label.text().startswith("<img")


def test_the_page_follows_the_end_until_the_reader_goes_elsewhere(
    app: Any, desktop: Path, wait_until: WaitUntil
) -> None:
    from transcript import Transcript

    transcript = Transcript()
    transcript.resize(300, 200)
    transcript.show()
    bar = transcript.verticalScrollBar()
    transcript.add_question("why " * 40)
    transcript.answer.add_text("word " * 400)
    wait_until(lambda: bar.maximum() > 200)
    wait_until(lambda: bar.value() == bar.maximum())
    for width in (1600, 300):  # nothing empty below the text, however wide the window
        transcript.resize(width, 60)
        wait_until(lambda: transcript.widget().width() > width - 60)  # noqa: B023
        body = transcript.widget()
        assert body.height() == body.layout().heightForWidth(body.width()) > 60
    bar.setValue(0)
    longest = bar.maximum()
    transcript.answer.add_text("line\n" * 50)
    wait_until(lambda: bar.maximum() > longest)
    assert bar.value() == 0
    transcript.add_question("Another?")
    wait_until(lambda: bar.value() == bar.maximum())
    transcript.close()
