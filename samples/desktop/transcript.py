"""The conversation as it is shown: questions, answers with their thinking apart, and notices.

Text comes in small pieces and is drawn a few times a second, since laying out a long answer for
each of them would keep the window busy. All text is plain: what a model writes is not trusted to
be markup. This module knows no model.
"""

from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

DRAW_INTERVAL_MS = 40
_END_MARGIN_PX = 24  # so near to the end counts as being there
_SHORT_CHARACTERS = 36  # a question that needs no second line in the smallest window


class TextLabel(QLabel):
    """Plain text of any length, which can be selected and copied.

    Args:
        name: What the style sheet calls it.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setObjectName(name)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(True)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse
            | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        # Not Minimum: that is as high as a narrow column, and leaves an empty page below.
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)


class AnswerView(QWidget):
    """One answer: what the model thinks, which can be folded away, and what it says.

    State:
        Text that was added is drawn at the next `draw`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thinking, self._text = "", ""
        self._has_news = False
        self.toggle = QToolButton()
        self.toggle.setObjectName("toggle")
        self.toggle.setText("Thinking")
        self.toggle.setCheckable(True)
        self.toggle.setChecked(True)
        self.toggle.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.toggle.toggled.connect(self._fold)
        self.thinking_label = TextLabel("thinking")
        self.text_label = TextLabel("answer")
        self.thinking_label.setAccessibleName("Thinking")
        self.text_label.setAccessibleName("Answer")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 48, 0)
        layout.setSpacing(6)
        for part in (self.toggle, self.thinking_label, self.text_label):
            layout.addWidget(part)
            part.hide()
        self._fold(True)

    @property
    def thinking(self) -> str:
        """What the model has thought so far."""
        return self._thinking

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self._text

    def add_thinking(self, text: str) -> None:
        """Add to what the model thinks."""
        self._thinking += text
        self._has_news = True

    def add_text(self, text: str) -> None:
        """Add to what it says."""
        self._text += text
        self._has_news = True

    def draw(self) -> None:
        """Show what was added since the last time."""
        if not self._has_news:
            return
        self._has_news = False
        has_thought = bool(self._thinking.strip())
        self.toggle.setVisible(has_thought)
        self.thinking_label.setText(self._thinking.strip())
        self.thinking_label.setVisible(has_thought and self.toggle.isChecked())
        self.text_label.setText(self._text.strip())
        self.text_label.setVisible(bool(self._text.strip()))

    def end(self) -> None:
        """Show all there is, and fold the thinking away where there is an answer."""
        self.draw()
        if self._text.strip():
            self.toggle.setChecked(False)

    def _fold(self, is_open: bool) -> None:
        self.toggle.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self.thinking_label.setVisible(is_open and bool(self._thinking.strip()))


class Transcript(QScrollArea):
    """All of a conversation, the newest at the end.

    State:
        While an answer is open its text is drawn every `DRAW_INTERVAL_MS`. The view follows the
        end, unless the reader has scrolled away from it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("transcript")
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Conversation")
        self._body = QWidget()
        self._body.setObjectName("body")
        self._layout = QVBoxLayout(self._body)
        self._layout.setContentsMargins(20, 16, 20, 16)
        self._layout.setSpacing(14)
        self._layout.addStretch()
        self.setWidget(self._body)
        self.answer: AnswerView | None = None
        self._follows = True
        self._timer = QTimer(self)
        self._timer.setInterval(DRAW_INTERVAL_MS)
        self._timer.timeout.connect(self._draw)
        bar = self.verticalScrollBar()
        bar.valueChanged.connect(self._note_place)
        bar.rangeChanged.connect(self._keep_place)

    def add_question(self, text: str) -> None:
        """Show what the user says, and begin an answer to it."""
        label = TextLabel("question")
        label.setText(text)
        label.setAccessibleName("Question")
        is_short = len(text) <= _SHORT_CHARACTERS and "\n" not in text
        label.setWordWrap(not is_short)
        label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        row = QWidget()
        layout = QHBoxLayout(row)
        layout.setContentsMargins(48, 0, 0, 0)
        layout.addStretch(1)
        layout.addWidget(label, 0 if is_short else 4)
        self._follows = True
        self._add(row)
        self.answer = AnswerView()
        self._add(self.answer)
        self._timer.start()

    def end_answer(self) -> None:
        """Note that nothing more comes."""
        self._timer.stop()
        if self.answer is not None:
            self.answer.end()

    def add_notice(self, text: str) -> None:
        """Show a sentence that is neither a question nor an answer."""
        label = TextLabel("notice")
        label.setText(text)
        self._add(label)

    def clear(self) -> None:
        """Remove everything."""
        self._timer.stop()
        self.answer = None
        while self._layout.count() > 1:  # the last one is the stretch
            item = self._layout.takeAt(0)
            widget = item.widget() if item is not None else None
            if widget is not None:
                widget.hide()
                widget.deleteLater()

    def _add(self, widget: QWidget) -> None:
        self._layout.insertWidget(self._layout.count() - 1, widget)

    def _draw(self) -> None:
        if self.answer is not None:
            self.answer.draw()

    def _note_place(self, value: int) -> None:
        self._follows = value >= self.verticalScrollBar().maximum() - _END_MARGIN_PX

    def _keep_place(self, _minimum: int, maximum: int) -> None:
        if self._follows:
            self.verticalScrollBar().setValue(maximum)
