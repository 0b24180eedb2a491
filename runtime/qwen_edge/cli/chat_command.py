"""`qwen-edge chat`: a conversation in the terminal."""

import contextlib
import re
import sys
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.answering import show_events
from qwen_edge.cli.interrupt import interrupts_call, leave_soon
from qwen_edge.cli.options import (
    AnswerOptions,
    answer_options,
    check_answer_options,
    check_text,
    describe_timings,
    load_model,
    sampling_of,
)
from qwen_edge.cli.output import Output, show_error
from qwen_edge.errors import ContextFullError, UsageError, did_you_mean

if TYPE_CHECKING:
    from qwen_edge.runtime.model import Model
    from qwen_edge.runtime.session import Session

_HELP = """\
/think      reason before answering      /nothink   answer at once
/new        start a new conversation     /help      show this
/exit       leave (also Ctrl-D)          Ctrl-C     stop an answer"""
_COMMANDS = ("/think", "/nothink", "/new", "/help", "/exit")
_COMMAND = re.compile(r"/[A-Za-z]*")  # one word: "/etc/hosts holds what?" is a message
_PROMPT = "> "


@click.command("chat")
@click.argument("package")
@answer_options
@click.option("--quiet", is_flag=True, help="No reasoning, no figures.")
def command(package: str, options: AnswerOptions, quiet: bool) -> None:
    """Talk with the model in the folder PACKAGE.

    Lines that begin with / are commands: /think, /nothink, /new, /help, /exit. Ctrl-C stops an
    answer, Ctrl-D leaves. From a pipe each line is one message.

    \b
    Examples:
      qwen-edge chat ./qwen3-4b-core-ultra-int4
      qwen-edge chat ./qwen3-4b-core-ultra-int4 --no-think --system "Answer in one sentence."
    """
    out = Output(is_quiet=quiet)
    check_answer_options(options)
    if sys.stdin is not None and sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - its import gives input() history and line editing
    with leave_soon():
        model = load_model(package, options, out)
    with model:
        out.notice(f"{model.name}. /help lists commands, Ctrl-D leaves.")
        _Conversation(model, options, out).run()


class _Conversation:
    """The loop of one terminal conversation.

    State:
        `_thinking` follows /think and /nothink; /new replaces the session.
    """

    def __init__(self, model: "Model", options: AnswerOptions, out: Output) -> None:
        self._model = model
        self._options = options
        self._out = out
        self._thinking = options.thinking
        model.chat_template.check_thinking(options.thinking)
        self._session = self._start()

    def run(self) -> None:
        """Read lines until the end of input or /exit."""
        while True:
            try:
                line = self._read_line()
                if line is None or line == "/exit":
                    return
                if _COMMAND.fullmatch(line):
                    self._obey(line)
                elif line:
                    self._answer(line)
            except KeyboardInterrupt:
                self._out.notice("\n(Ctrl-D or /exit leaves)")
            except (UsageError, ContextFullError) as error:
                # Of this message only: the conversation is as it was before it.
                show_error(error)
                if isinstance(error, ContextFullError):
                    self._out.notice("Or type /new to start a new conversation.")

    def _start(self) -> "Session":
        return self._model.session(system=self._options.system)

    def _read_line(self) -> str | None:
        """Return the next line without spaces around it, or None at the end of input."""
        if sys.stdin is None:
            return None
        if not sys.stdin.isatty():
            data = sys.stdin.buffer.readline()
            return data.decode("utf-8", errors="surrogateescape").strip() if data else None
        is_plain = not sys.stdout.isatty()  # input() would write its prompt into the result
        if is_plain:
            self._out.prompt(_PROMPT)
        try:
            return input("" if is_plain else _PROMPT).strip()
        except EOFError:
            self._out.notice()
            return None
        except UnicodeDecodeError as error:
            raise UsageError(
                f"The message is not text in {error.encoding}: it holds the byte "
                f"{error.object[error.start]:#04x}.",
                "set the terminal to UTF-8",
            ) from error

    def _obey(self, line: str) -> None:
        if line in ("/think", "/nothink"):
            self._model.chat_template.check_thinking(line == "/think")
            self._thinking = line == "/think"
            self._out.notice("thinking on" if self._thinking else "thinking off")
        elif line == "/new":
            self._session.close()
            self._session = self._start()
            self._out.notice("new conversation")
        elif line == "/help":
            self._out.notice(_HELP)
        else:
            hint = did_you_mean(line, _COMMANDS) or " /help lists the commands."
            self._out.notice(f"There is no command {line!r}.{hint}")

    def _answer(self, text: str) -> None:
        check_text("The message", text)
        with self._out.notice_if_slow("(waiting for the model to warm up)"):
            self._model.wait_until_warm()
        # An exception could leave the session in the middle of a step: it is asked to stop.
        with interrupts_call(self._session.cancel, self._tell_stopping):
            events = self._session.stream(
                text,
                sampling=sampling_of(self._options, self._model, self._thinking),
                max_new_tokens=self._options.max_new_tokens,
                thinking=self._thinking,
                stop=self._options.stop,
            )
            with contextlib.closing(events):
                done = show_events(events, self._out)
        if done.timings is not None:
            self._out.notice(f"[{describe_timings(done.timings, done.finish_reason)}]")

    def _tell_stopping(self) -> None:
        self._out.notice("\n(stopping after the engine's current step …)")
