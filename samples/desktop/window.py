"""The window: shows the conversation and what the model does, and sends what the user wants.

It waits for nothing: whatever takes time is asked of a `ModelThread`, and its signals change what
is shown. Read `transcript.py` for how a conversation looks.
"""

from collections.abc import Callable
from pathlib import Path

from model_thread import AnswerEnd, LoadStep, ModelFacts, ModelThread, Problem, State
from PySide6.QtCore import QSettings, Qt, Signal, Slot
from PySide6.QtGui import QCloseEvent, QKeyEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)
from transcript import TextLabel, Transcript

from qwen_edge.errors import UsageError

FOLDER_KEY, GEOMETRY_KEY = "package", "geometry"
ChooseFolder = Callable[[], str]

STYLE = """
#header, #footer { background: palette(window); }
#title { font-weight: 600; font-size: 15px; }
#device, #status, #speed { color: palette(placeholder-text); }
#transcript, #body, #notice-page { background: palette(base); }
#question { background: palette(window); border-radius: 10px; padding: 8px 12px; }
#thinking {
  color: palette(placeholder-text); border: 0 solid palette(mid); border-left-width: 3px;
  margin: 0 0 6px 6px; padding-left: 10px;
}
#toggle { border: none; color: palette(placeholder-text); padding: 0; }
#notice {
  color: palette(text); border: 1px solid palette(mid); border-radius: 6px; padding: 8px 10px;
}
#problem { font-size: 15px; }
#input {
  background: palette(base); border: 1px solid palette(mid); border-radius: 8px; padding: 6px;
}
#bar { border: none; background: palette(midlight); }
#bar::chunk { background: palette(highlight); }
"""


class QuestionEdit(QPlainTextEdit):
    """Where the question is typed: Enter sends it, Shift+Enter begins a new line."""

    submitted = Signal()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802 (a name of Qt's)
        """Tell that Enter was pressed; leave everything else to the editor."""
        is_enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if is_enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.submitted.emit()
        else:
            super().keyPressEvent(event)


class ChatWindow(QMainWindow):
    """The window of the program.

    Args:
        models: Loads and answers; closed with the window.
        settings: Where the folder and the window's place are remembered.
        choose_folder: Asks the user for a folder; returns "" where none was chosen.
    """

    def __init__(
        self,
        models: ModelThread,
        settings: QSettings,
        choose_folder: ChooseFolder | None = None,
    ) -> None:
        super().__init__()
        self._models = models
        self._settings = settings
        self._choose_folder = choose_folder or self._ask_for_folder
        self._folder: Path | None = None
        self._facts: ModelFacts | None = None
        # By the signals that have arrived: the thread itself may be further.
        self._state: State = "empty"
        self._question = ""
        self.setWindowTitle("Chat")
        self.setStyleSheet(STYLE)
        self.resize(760, 620)
        self._make_parts()
        self._lay_out()
        self._connect()
        geometry = settings.value(GEOMETRY_KEY)
        if geometry is not None:
            self.restoreGeometry(geometry)
        self.show_problem("Choose the folder of a model package to begin.", can_retry=False)
        self._show_buttons()
        self.input.setFocus()

    def open_remembered(self) -> None:
        """Load the package of the last time, where there was one."""
        folder = self._settings.value(FOLDER_KEY, "")
        if isinstance(folder, str) and folder:
            self.load(Path(folder))

    def load(self, folder: Path) -> None:
        """Load a package and remember it for the next time."""
        self._folder = folder
        self._settings.setValue(FOLDER_KEY, str(folder))
        self._models.load(folder)
        self._show_loading(LoadStep(folder, "Opening", None))

    def ask(self, text: str) -> None:
        """Send a question; one that is refused is told of and stays in the editor."""
        try:
            self._models.ask(text, thinking=self._wants_thinking())
        except UsageError as error:
            self.status.setText(f"{error.problem} {error.fix.capitalize()}.")
            return
        self._question = text
        self._state = "answering"
        self.input.clear()
        self.transcript.add_question(text)
        self.status.setText("Reading the question …")
        self.speed.clear()
        self._show_buttons()

    @Slot()
    def choose(self) -> None:
        """Ask for a folder and load it."""
        folder = self._choose_folder()
        if folder:
            self.load(Path(folder))

    @Slot()
    def retry(self) -> None:
        """Load the same folder again."""
        if self._folder is not None:
            self.load(self._folder)

    @Slot()
    def begin_anew(self) -> None:
        """Forget the conversation."""
        try:
            self._models.forget()
        except UsageError as error:
            self.status.setText(f"{error.problem} {error.fix.capitalize()}.")
            return
        self.transcript.clear()
        self.speed.clear()
        self.status.setText("Ready")
        self.input.setFocus()

    def show_problem(self, text: str, fix: str = "", *, can_retry: bool = True) -> None:
        """Show a page that says what is wrong and offers another folder."""
        self.problem.setText(text)
        self.fix.setText(fix and f"What to do: {fix}")
        self.fix.setVisible(bool(fix))
        self.retry_button.setVisible(can_retry)
        self.pages.setCurrentWidget(self.problem_page)
        self.bar.hide()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 (a name of Qt's)
        """Let the model go; the window does not wait for it."""
        self._settings.setValue(GEOMETRY_KEY, self.saveGeometry())
        self._settings.sync()
        self._models.close()
        super().closeEvent(event)

    def _make_parts(self) -> None:
        self.title, self.device = QLabel("No model"), QLabel()
        self.choose_button = QPushButton("Choose &model…")
        self.new_button = QPushButton("&New conversation")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(4)
        self.transcript = Transcript()
        self.problem, self.fix = TextLabel("problem"), TextLabel("fix")
        self.other_button = QPushButton("Choose a folder…")
        self.retry_button = QPushButton("Try again")
        self.input = QuestionEdit()
        self.input.setPlaceholderText("Ask something")
        self.input.setAccessibleName("Question")
        self.input.setTabChangesFocus(True)
        self.input.setFixedHeight(72)
        self.think_box = QCheckBox("&Think first")
        self.send_button, self.stop_button = QPushButton("&Send"), QPushButton("St&op")
        self.send_button.setDefault(True)
        self.status, self.speed = QLabel(), QLabel()
        for name in ("title", "device", "bar", "input", "status", "speed"):
            getattr(self, name).setObjectName(name)

    def _lay_out(self) -> None:
        buttons = [self.new_button, self.choose_button]
        header = make_row("header", [self.title, self.device, None, *buttons])
        self.problem_page = QWidget()
        self.problem_page.setObjectName("notice-page")
        page = QVBoxLayout(self.problem_page)
        page.setContentsMargins(48, 24, 48, 24)
        page.addStretch(2)
        page.addWidget(self.problem)
        page.addWidget(self.fix)
        page.addSpacing(8)
        page.addWidget(make_row("choices", [self.other_button, self.retry_button, None], margin=0))
        page.addStretch(3)
        self.pages = QStackedWidget()
        self.pages.addWidget(self.problem_page)
        self.pages.addWidget(self.transcript)
        below = make_row("below", [self.think_box, None, self.stop_button, self.send_button])
        editor = QWidget()
        row = QHBoxLayout(editor)
        row.setContentsMargins(12, 10, 12, 0)
        row.addWidget(self.input)
        footer = make_row("footer", [self.status, None, self.speed])
        body = QWidget()
        column = QVBoxLayout(body)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        for part in (header, self.bar, self.pages, editor, below, footer):
            column.addWidget(part, 1 if part is self.pages else 0)
        self.setCentralWidget(body)

    def _connect(self) -> None:
        self.choose_button.clicked.connect(self.choose)
        self.other_button.clicked.connect(self.choose)
        self.retry_button.clicked.connect(self.retry)
        self.new_button.clicked.connect(self.begin_anew)
        self.send_button.clicked.connect(self._send)
        self.input.submitted.connect(self._send)
        self.stop_button.clicked.connect(self._models.stop)
        QShortcut(QKeySequence(Qt.Key.Key_Escape), self, self._models.stop)
        QShortcut(QKeySequence(QKeySequence.StandardKey.New), self, self.begin_anew)
        self._models.load_stepped.connect(self._show_loading)
        self._models.loaded.connect(self._show_model)
        self._models.load_failed.connect(self._show_failure)
        self._models.reasoned.connect(self._add_thinking)
        self._models.answered.connect(self._add_text)
        self._models.answer_ended.connect(self._end_answer)
        self._models.answer_failed.connect(self._fail_answer)

    def _ask_for_folder(self) -> str:
        start = "" if self._folder is None else str(self._folder.parent)
        return QFileDialog.getExistingDirectory(self, "Folder of a model package", start)

    def _wants_thinking(self) -> bool | None:
        is_free = self._facts is not None and self._facts.thinking == "switchable"
        return self.think_box.isChecked() if is_free else None

    @Slot()
    def _send(self) -> None:
        text = self.input.toPlainText().strip()
        if text:
            self.ask(text)

    @Slot(object)
    def _show_loading(self, step: LoadStep) -> None:
        if step.folder != self._folder:
            return  # of a package that was given up for another
        self._facts, self._state = None, "loading"
        self.title.setText(step.folder.name)
        self.title.setToolTip(str(step.folder))
        self.device.clear()
        self.speed.clear()
        if step.share is None:
            self.bar.setRange(0, 0)
            self.status.setText(f"{step.name} …")
        else:
            self.bar.setRange(0, 100)
            self.bar.setValue(round(step.share * 100))
            self.status.setText(f"{step.name}: {step.share:.0%}")
        self.bar.show()
        self.transcript.clear()
        self.pages.setCurrentWidget(self.transcript)
        self._show_buttons()

    @Slot(object)
    def _show_model(self, facts: ModelFacts) -> None:
        if facts.folder != self._folder:
            return
        self._facts, self._state = facts, "ready"
        self.title.setText(facts.name)
        self.device.setText(facts.device and f"on {facts.device}")
        self.think_box.setEnabled(facts.thinking == "switchable")
        self.think_box.setChecked(facts.thinking != "never")
        self.bar.hide()
        self.status.setText("Ready")
        self._show_buttons()

    @Slot(object)
    def _show_failure(self, problem: Problem) -> None:
        self._state = "empty"
        self.title.setText("No model")
        self.status.setText("No model is loaded")
        self.show_problem(problem.text, problem.fix)
        self._show_buttons()

    @Slot(str)
    def _add_thinking(self, text: str) -> None:
        self.status.setText("Thinking …")
        if self.transcript.answer is not None:
            self.transcript.answer.add_thinking(text)

    @Slot(str)
    def _add_text(self, text: str) -> None:
        self.status.setText("Answering …")
        if self.transcript.answer is not None:
            self.transcript.answer.add_text(text)

    @Slot(object)
    def _end_answer(self, end: AnswerEnd) -> None:
        if self._state != "answering":
            return  # it was given up for another package
        self._state = "ready"
        self.transcript.end_answer()
        reasons = {"cancelled": "Stopped", "length": "Cut off: the longest answer was reached"}
        self.status.setText(reasons.get(end.reason, "Ready"))
        self.speed.setText(describe_speed(end))
        for notice in end.notices:
            self.transcript.add_notice(notice)
        self._show_buttons()
        self.input.setFocus()

    @Slot(object)
    def _fail_answer(self, problem: Problem) -> None:
        if self._state != "answering":
            return
        self._state = "ready"
        self.transcript.end_answer()
        self.transcript.add_notice("\n".join(filter(None, (problem.text, problem.fix))))
        self.status.setText("The question was not answered")
        if not self.input.toPlainText():
            self.input.setPlainText(self._question)
        self._show_buttons()

    def _show_buttons(self) -> None:
        self.send_button.setVisible(self._state != "answering")
        self.send_button.setEnabled(self._state == "ready")
        self.stop_button.setVisible(self._state == "answering")
        self.new_button.setEnabled(self._state == "ready")


def make_row(name: str, parts: list[QWidget | None], *, margin: int = 12) -> QWidget:
    """Return widgets side by side; None is the space between left and right."""
    row = QWidget()
    row.setObjectName(name)
    layout = QHBoxLayout(row)
    layout.setContentsMargins(margin, 8, margin, 8)
    for part in parts:
        if part is None:
            layout.addStretch()
        else:
            layout.addWidget(part)
    return row


def describe_speed(end: AnswerEnd) -> str:
    """Return how fast an answer was, or an empty text where there was none."""
    parts = []
    if end.tokens_per_s is not None:
        parts.append(f"{end.tokens_per_s:,.1f} tokens/s")
    if end.first_token_s is not None:
        parts.append(f"first after {end.first_token_s:.1f} s")
    return " · ".join(parts)
