"""`qwen-edge chat`: a conversation in the terminal."""

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.answer_options import (
    AnswerFlags,
    answer_flags,
    check_flags,
    check_with_model,
    given_sampling,
    options_of,
    speculate_option,
)
from qwen_edge.cli.answering import describe_end, show_events
from qwen_edge.cli.help_sections import SectionedCommand
from qwen_edge.cli.interrupt import interrupts_call, leave_soon
from qwen_edge.cli.options import LoadOptions, draft_option, load_model, load_options
from qwen_edge.cli.output import Output, show_error
from qwen_edge.cli.texts import check_text
from qwen_edge.errors import ContextFullError, EdgeError, UsageError, did_you_mean
from qwen_edge.runtime.decoding.sampling import SamplingParams

if TYPE_CHECKING:
    from qwen_edge.runtime.chat import Message
    from qwen_edge.runtime.model import Model
    from qwen_edge.runtime.session import Session

_HELP = """\
/think      reason before answering      /nothink   answer at once
/new        start a new conversation     /undo      forget the last turn
/retry      answer the last turn anew    /save FILE keep the conversation, for --resume
/help       show this                    /exit      leave (also Ctrl-D)
Ctrl-C      stop an answer"""
_COMMANDS = ("/think", "/nothink", "/new", "/undo", "/retry", "/save", "/help", "/exit")
# One word, or /save with a path: "/etc/hosts holds what?" is a message.
_COMMAND = re.compile(r"/[A-Za-z_]*|/save\s.+")
_PROMPT = "> "


@click.command("chat", cls=SectionedCommand)
@click.argument("package")
@load_options
@draft_option
@answer_flags
@speculate_option
@click.option(
    "--resume",
    metavar="FILE",
    help="Go on with a conversation that /save FILE has written, without computing it again.",
)
@click.option("--quiet", is_flag=True, help="No reasoning, no figures.")
def command(
    package: str, load: LoadOptions, flags: AnswerFlags, resume: str | None, quiet: bool
) -> None:
    """Talk with the model in the folder PACKAGE.

    Lines that begin with / are commands: /help lists them. Ctrl-C stops an answer, Ctrl-D
    leaves. From a pipe each line is one message.

    \b
    Examples:
      qwen-edge chat ./qwen3-4b-core-ultra-int4
      qwen-edge chat ./qwen3-4b-core-ultra-int4 --no-think --system "Answer in one sentence."
    """
    out = Output(is_quiet=quiet)
    check_flags(package, load, flags)
    _check_resume(resume, flags.system)
    if sys.stdin is not None and sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - its import gives input() history and line editing
    with leave_soon():
        model = load_model(package, load, out)
    with model:
        conversation = _Conversation(model, flags, out, resume)
        out.notice(f"{model.name}. /help lists commands, Ctrl-D leaves.")
        conversation.run()


def _check_resume(resume: str | None, system: str | None) -> None:
    """Refuse a conversation that is not there, or has a system message of its own."""
    if resume is None:
        return
    if not Path(resume).is_file():
        raise UsageError(
            f"--resume {resume!r}: there is no such file.",
            "check the path; /save FILE in a chat writes one",
            path=resume,
        )
    if system is not None:
        raise UsageError(
            "--system is for a new conversation; the one of --resume has its own.",
            "leave one of the two out",
        )


class _Conversation:
    """The loop of one terminal conversation.

    State:
        `_thinking` follows /think and /nothink; /new replaces the session. `_asked` is what was
        asked last and can be asked again, also where the answer was stopped before it began.
    """

    def __init__(self, model: "Model", flags: AnswerFlags, out: Output, resume: str | None) -> None:
        self._model = model
        self._flags = flags
        self._out = out
        self._thinking = flags.thinking
        self._asked: Sequence[Message] = ()
        self._num_retries = 0
        check_with_model(model, options_of(flags, thinking=flags.thinking), flags.system)
        self._session = self._start() if resume is None else self._resume(resume)

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
                    self._ask(line)
            except KeyboardInterrupt:
                self._out.notice("\n(Ctrl-D or /exit leaves)")
            except (UsageError, ContextFullError) as error:
                # Of this message only: the conversation is as it was before it.
                show_error(error)
                if isinstance(error, ContextFullError):
                    self._out.notice("Or type /new to start a new conversation.")

    def _start(self) -> "Session":
        return self._model.session(system=self._flags.system)

    def _resume(self, name: str) -> "Session":
        session = self._model.load_session(name)
        num_turns = sum(message["role"] == "user" for message in session.messages)
        self._out.notice(f"going on after {num_turns:,} turn{'' if num_turns == 1 else 's'}")
        return session

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
        name, _, rest = line.partition(" ")
        if name in ("/think", "/nothink", "/no_think"):  # the last is how Qwen3 writes it
            self._model.chat_template.check_thinking(name == "/think")
            self._thinking = name == "/think"
            self._out.notice("thinking on" if self._thinking else "thinking off")
        elif name == "/new":
            self._session.close()
            self._session = self._start()
            self._asked = ()
            self._out.notice("new conversation")
        elif name == "/undo":
            self._undo()
        elif name == "/retry":
            self._retry()
        elif name == "/save":
            self._save(rest.strip())
        elif name == "/help":
            self._out.notice(_HELP)
        else:
            hint = did_you_mean(name, _COMMANDS) or " /help lists the commands."
            self._out.notice(f"There is no command {name!r}.{hint}")

    def _undo(self) -> None:
        """Forget the last question with its answer."""
        if not self._find_last_turn():
            self._out.notice("there is no turn to forget")
            return
        self._session.rollback()
        self._asked = ()
        self._out.notice("the last turn is forgotten")

    def _retry(self) -> None:
        """Answer the last question anew; the earlier answer stays until there is another."""
        asked = self._asked or self._find_last_turn()
        if not asked:
            self._out.notice("there is no turn to answer anew")
            return
        self._num_retries += 1
        self._answer(asked)

    def _find_last_turn(self) -> "Sequence[Message]":
        """Return the conversation up to its last question; empty where there is none."""
        messages = self._session.messages
        places = [i for i, message in enumerate(messages) if message["role"] == "user"]
        return messages[: places[-1] + 1] if places else ()

    def _save(self, name: str) -> None:
        """Write the conversation to a file."""
        if not name:
            raise UsageError("/save needs the path of a file.", "type /save conversation.qes")
        path = Path(name).expanduser()
        try:
            self._session.save(path)
        except EdgeError as error:  # such as a full disk, which is no reason to end the chat
            show_error(error)
            return
        self._out.notice(f'saved; to go on later: --resume "{path}"')

    def _ask(self, text: str) -> None:
        """Answer a new message."""
        check_text("The message", text)
        self._num_retries = 0
        self._asked = [*self._session.messages, {"role": "user", "content": text}]
        self._answer(self._asked)

    def _answer(self, messages: "Sequence[Message]") -> None:
        """Answer the last message of a conversation."""
        options = options_of(self._flags, thinking=self._thinking)
        if self._flags.seed is not None:  # each try has one of its own, or all would be the same
            seed = SamplingParams(seed=self._flags.seed).for_answer(self._num_retries).seed
            options["sampling"] = {**given_sampling(self._flags), "seed": seed}
        with self._out.notice_if_slow("(waiting for the model to warm up)"):
            self._model.wait_until_warm()
        # An exception could leave the session in the middle of a step: it is asked to stop.
        with interrupts_call(self._session.cancel, self._tell_stopping):
            events = self._session.stream(messages, **options)
            with contextlib.closing(events):
                done = show_events(events, self._out)
        self._out.notice(f"[{describe_end(done)}]")

    def _tell_stopping(self) -> None:
        self._out.notice("\n(stopping after the engine's current step …)")
