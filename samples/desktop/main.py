"""A chat window for a model package: `python main.py [--model FOLDER]`.

Needs `pip install qwen-edge PySide6-Essentials`. This module reads the command line, puts thread
and window together, and sees to it that the program ends. Read `model_thread.py` first.
"""

import argparse
import functools
import json
import os
import sys
import threading
import time
from pathlib import Path

from model_thread import AnswerEnd, ModelFacts, ModelThread, OpenModel, Problem, open_package
from PySide6.QtCore import QObject, QSettings
from PySide6.QtWidgets import QApplication
from window import ChatWindow

# A step of the engine cannot be interrupted; one that never ends must not keep the program.
MAX_LEAVING_S = 30.0


class SelfCheck(QObject):
    """Asks one question with the window open, writes what came of it to a file, and leaves.

    For a build: the finished program is run like this before it is given away.

    Args:
        window: Shown already.
        models: What the window listens to.
        file: Where the findings go, as JSON.
        started_s: When the program began, as `time.monotonic` says it.
    """

    QUESTION = "What is 17 + 25?"

    def __init__(
        self, window: ChatWindow, models: ModelThread, file: Path, started_s: float
    ) -> None:
        super().__init__(window)
        self._window, self._file, self._started_s = window, file, started_s
        self._found: dict[str, object] = {"window_s": self._seconds()}
        models.loaded.connect(self._ask)
        models.load_failed.connect(self._fail)
        models.answer_ended.connect(self._end)
        models.answer_failed.connect(self._fail)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started_s, 3)

    def _ask(self, facts: ModelFacts) -> None:
        self._found |= {"loaded_s": self._seconds(), "name": facts.name, "device": facts.device}
        self._window.ask(self.QUESTION)

    def _end(self, end: AnswerEnd) -> None:
        answer = self._window.transcript.answer
        self._found |= {
            "answered_s": self._seconds(),
            "answer": "" if answer is None else answer.text.strip(),
            "tokens": end.num_tokens,
            "tokens_per_s": end.tokens_per_s,
        }
        self._leave(0)

    def _fail(self, problem: Problem) -> None:
        self._found |= {"problem": problem.text, "fix": problem.fix}
        self._leave(1)

    def _leave(self, exit_code: int) -> None:
        self._file.write_text(json.dumps(self._found, indent=1) + "\n", encoding="utf-8")
        self._window.close()
        QApplication.exit(exit_code)


def main(arguments: list[str] | None = None, open_model: OpenModel | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        arguments: The command line without the program's name; None for the process's own.
        open_model: Opens a package; None for the library.
    """
    started_s = time.monotonic()
    options = read_options(arguments)
    app = QApplication.instance() or QApplication(sys.argv[:1])
    settings = make_settings(options.settings)
    models = ModelThread(open_model or functools.partial(open_package, threads=options.threads))
    window = ChatWindow(models, settings)
    window.show()
    check = None
    if options.self_check is not None:
        check = SelfCheck(window, models, options.self_check, started_s)
    if options.model is not None:
        window.load(options.model)
    else:
        window.open_remembered()
    exit_code = app.exec()
    del check
    return leave(models, exit_code)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a model package")
    parser.add_argument("--threads", type=int, help="CPU threads; default: the package's choice")
    parser.add_argument("--settings", type=Path, help="file of the settings, instead of the usual")
    parser.add_argument("--self-check", type=Path, help="answer one question, tell FILE, leave")
    return parser.parse_args(arguments)


def make_settings(file: Path | None) -> QSettings:
    """Return where the program remembers things: a file, or the system's usual place."""
    if file is not None:
        return QSettings(str(file), QSettings.Format.IniFormat)
    return QSettings("qwen-edge samples", "desktop chat")


def leave(models: ModelThread, exit_code: int, *, max_s: float = MAX_LEAVING_S) -> int:
    """Release the model and return the exit code; end the process where that takes too long.

    Args:
        models: Closed here, and waited for.
        exit_code: What the process is to end with.
        max_s: The longest that the engine may take to come out of its step.
    """
    timer = threading.Timer(max_s, os._exit, [exit_code])
    timer.daemon = True
    timer.start()
    models.close()
    models.wait(max_s)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
