"""Owns the model: one thread loads it, answers and releases it, and tells so by Qt signals.

All that takes time happens in this thread, so that the window never waits. It gets its commands
from a queue, one after the other, and emits signals, which Qt delivers in the window's thread and
in the order they were sent. No widget is known here; read `window.py` for who listens.
"""

import logging
import queue
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from PySide6.QtCore import QObject, Signal

from qwen_edge.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_edge.runtime import Event, Model, Session

_LOGGER = logging.getLogger(__name__)
CHECKING, LOADING = "Checking the files", "Loading the model"
State = Literal["empty", "loading", "ready", "answering", "closed"]


class OpenModel(Protocol):
    """What opens a package: `open_package`, or a stand-in of a test."""

    def __call__(self, folder: Path, *, progress: "Callable[[int], None]") -> "Model":
        """Return a model; calls `progress` with the bytes read since the last call."""
        ...


@dataclass(frozen=True)
class Problem:
    """What went wrong, and what to do about it, in sentences for a person."""

    text: str
    fix: str


@dataclass(frozen=True)
class LoadStep:
    """Where loading is.

    Args:
        folder: What is loaded.
        name: `CHECKING` or `LOADING`.
        share: How much of this step is done, 0 to 1; None where that is not known.
    """

    folder: Path
    name: str
    share: float | None


@dataclass(frozen=True)
class ModelFacts:
    """What a window shows of a model.

    Args:
        folder: The package.
        name: Its name.
        thinking: "switchable", "always" or "never".
        device: Where it runs, such as "CPU"; empty where nothing is known.
        max_context_tokens: How long a conversation can get.
    """

    folder: Path
    name: str
    thinking: str
    device: str
    max_context_tokens: int


@dataclass(frozen=True)
class AnswerEnd:
    """How an answer ended.

    Args:
        reason: "stop", "length" or "cancelled".
        num_tokens: New tokens, thinking included.
        first_token_s: Seconds until the first of them; None where there was none.
        tokens_per_s: Speed after the first; None with fewer than two.
        notices: What the reader should know besides.
    """

    reason: str
    num_tokens: int = 0
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Command:
    """Something to do; `unwanted` is set when nobody waits for it any more."""

    unwanted: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Load(_Command):
    folder: Path


@dataclass(frozen=True, eq=False, kw_only=True)
class _Ask(_Command):
    text: str
    thinking: bool | None


@dataclass(frozen=True, eq=False, kw_only=True)
class _Forget(_Command):
    """Begin a new conversation."""


class _UnwantedError(Exception):
    """Ends the hashing of a package that nobody waits for any more."""


def open_package(
    folder: Path, *, progress: "Callable[[int], None]", threads: int | None = None
) -> "Model":
    """Open a package.

    Args:
        folder: The package.
        progress: Called with the bytes hashed since the last call.
        threads: CPU threads; None for the package's own choice.

    Raises:
        EdgeError: It cannot be opened.
    """
    # Here and not above: the import takes a while, and the window is to be there before.
    from qwen_edge.runtime import load

    return load(folder, threads=threads, progress=progress)


class ModelThread(QObject):
    """A thread that owns at most one model.

    Args:
        open_model: Opens a package.

    State:
        The thread runs until `close`. The methods return at once and may be called from the
        window's thread; what comes of them is told by signals.
    """

    load_stepped = Signal(object)  # LoadStep
    loaded = Signal(object)  # ModelFacts
    load_failed = Signal(object)  # Problem
    reasoned = Signal(str)
    answered = Signal(str)
    answer_ended = Signal(object)  # AnswerEnd; the last signal of an answer, or
    answer_failed = Signal(object)  # Problem; this one

    def __init__(self, open_model: OpenModel = open_package) -> None:
        super().__init__()
        self._open_model = open_model
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._state: State = "empty"
        self._current: _Command | None = None
        self._model: Model | None = None
        self._session: Session | None = None
        # No daemon: a process must not end while the engine is at work in it.
        self._thread = threading.Thread(target=self._work, name="model")
        self._thread.start()

    @property
    def state(self) -> State:
        """What the thread does now."""
        return self._state

    def load(self, folder: Path) -> None:
        """Load a package instead of the one there is; whatever else is under way is given up.

        Raises:
            UsageError: The thread was closed.
        """
        self._begin(
            _Load(folder=folder), "loading", allowed=("empty", "loading", "ready", "answering")
        )

    def ask(self, text: str, *, thinking: bool | None = None) -> None:
        """Answer the next message of the conversation.

        Args:
            text: What the user says.
            thinking: Whether to think first; None for the model's own choice.

        Raises:
            UsageError: There is no model, or it is answering already.
        """
        self._begin(_Ask(text=text, thinking=thinking), "answering", allowed=("ready",))

    def forget(self) -> None:
        """Begin a new conversation.

        Raises:
            UsageError: There is no model, or it is answering.
        """
        self._begin(_Forget(), "ready", allowed=("ready",))

    def stop(self) -> None:
        """End the answer that is being given; its last signal comes within one token."""
        with self._lock:
            if self._state == "answering":
                self._give_up()

    def close(self) -> None:
        """Give up what is under way, release the model and end the thread; does not wait."""
        with self._lock:
            if self._state != "closed":
                self._state = "closed"
                self._give_up()
                self._commands.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the thread to end after `close`; return whether it did."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _begin(self, command: _Command, state: State, *, allowed: tuple[State, ...]) -> None:
        """Put a command into the queue, or refuse it."""
        with self._lock:
            if self._state not in allowed:
                raise _refusal(self._state)
            self._give_up()
            self._state, self._current = state, command
            self._commands.put(command)

    def _give_up(self) -> None:
        """Let the command that is under way end soon. The lock is held."""
        if self._current is not None:
            self._current.unwanted.set()
        session = self._session
        if session is not None:
            session.cancel()

    def _end(self, command: _Command, state: State) -> None:
        """Note what is done, unless something else was asked for in the meantime."""
        with self._lock:
            if self._current is command and self._state != "closed":
                self._state, self._current = state, None

    # What follows runs in the thread.

    def _work(self) -> None:
        """Do what is asked, one after the other, until `close`."""
        try:
            while (command := self._commands.get()) is not None:
                if isinstance(command, _Load):
                    self._load(command)
                elif isinstance(command, _Ask):
                    self._answer(command)
                else:
                    self._open_session()
                    self._end(command, "ready")
        finally:
            self._release()

    def _load(self, command: _Load) -> None:
        if command.unwanted.is_set():
            return
        self._release()  # before the next takes its memory
        self.load_stepped.emit(LoadStep(command.folder, LOADING, None))
        try:
            self._model = self._open_model(command.folder, progress=self._make_progress(command))
            self._open_session()
            facts = _read_facts(command.folder, self._model)
        except _UnwantedError:
            return
        except Exception as error:
            self._end(command, "empty")
            if not command.unwanted.is_set():
                self.load_failed.emit(_describe(error))
            return
        if not command.unwanted.is_set():  # else it is released by whatever comes next
            self._end(command, "ready")
            self.loaded.emit(facts)

    def _make_progress(self, command: _Load) -> "Callable[[int], None]":
        """Return what the library tells how many bytes it has hashed."""
        total = sum(path.stat().st_size for path in command.folder.glob("*") if path.is_file())
        done, shown = 0, -1

        def progress(num_bytes: int) -> None:
            nonlocal done, shown
            if command.unwanted.is_set():
                raise _UnwantedError
            done += num_bytes
            percent = min(100 * done // max(total, 1), 100)
            if percent != shown:
                shown = percent
                self.load_stepped.emit(LoadStep(command.folder, CHECKING, percent / 100))

        return progress

    def _open_session(self) -> None:
        """Begin a conversation that loses its oldest turns when it grows too long."""
        assert self._model is not None
        self._session = self._model.session(on_overflow="drop-oldest")

    def _answer(self, command: _Ask) -> None:
        session = self._session
        assert session is not None
        end = AnswerEnd("cancelled")
        try:
            stream = session.stream(command.text, thinking=command.thinking)
            with closing(stream):
                while not command.unwanted.is_set() and (event := next(stream, None)) is not None:
                    self._show(event)
                    if event.kind == "done":
                        end = _read_end(event)
        except Exception as error:
            self._end(command, "ready")
            self.answer_failed.emit(_describe(error))
            return
        self._end(command, "ready")
        self.answer_ended.emit(end)

    def _show(self, event: "Event") -> None:
        if event.kind == "reasoning":
            self.reasoned.emit(event.text)
        elif event.kind == "answer":
            self.answered.emit(event.text)

    def _release(self) -> None:
        """Let the model go, and wait until its engine is gone too."""
        model, self._model, self._session = self._model, None, None
        if model is not None:
            model.close()
            model.wait_until_warm()  # where it was still warming up, that thread releases it


def _refusal(state: State) -> UsageError:
    """Return why a command is refused in this state."""
    problem, fix = {
        "empty": ("No model is loaded.", "choose the folder of a model package"),
        "loading": ("The model is being loaded.", "wait until it is ready"),
        "answering": ("The model is giving an answer.", "wait for its end, or stop it"),
    }.get(state, ("The model was released.", "start the program again"))
    return UsageError(problem, fix, state=state)


def _describe(error: Exception) -> Problem:
    """Return an error in words for a person; what is no refusal of ours is logged in full."""
    if isinstance(error, EdgeError):
        return Problem(error.problem, error.fix)
    _LOGGER.error("Unexpected error", exc_info=error)
    return Problem(f"{type(error).__name__}: {error}", "this is a fault of the program; report it")


def _read_facts(folder: Path, model: "Model") -> ModelFacts:
    choice = model.device_choice
    device = "" if choice is None else choice.value.device
    return ModelFacts(folder, model.name, model.chat.thinking, device, model.max_context_tokens)


def _read_end(event: "Event") -> AnswerEnd:
    timings = event.timings
    assert timings is not None
    notices = event.notices
    if event.dropped_messages:
        number = len(event.dropped_messages)
        notices = (
            *notices,
            f"The conversation grew long: its {number} oldest messages were left out.",
        )
    return AnswerEnd(
        event.finish_reason or "stop",
        timings.decode_tokens,
        timings.ttft_s,
        timings.decode_tokens_per_s,
        notices,
    )
