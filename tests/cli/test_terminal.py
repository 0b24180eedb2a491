"""The program at a real terminal: a pseudo-terminal with a process of its own."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

import pty

# A model that remembers a name: what it answers depends on all it was fed.
DRIVER = """
import fcntl, re, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C and Ctrl-D mean what they mean
from qwen_edge.runtime import fake_model, loading
from qwen_edge.runtime.model import Model

def make_script(tokenizer, answers):
    control = tokenizer.added_tokens
    header = "<|im_start|>assistant\\n"
    def next_token(ids):
        text = "".join(
            {i: n for n, i in control.items()}.get(i) or tokenizer.decode([i]) for i in ids
        )
        before, _, said = text.rpartition(header)
        question = before.rpartition("user\\n")[2]
        names = re.findall("I am (\\\\w+)", before)
        if "story" in question:
            time.sleep(0.02)
            return tokenizer.encode("so ")[len(said) % 3]
        if "slowly" in question:
            end_s = time.monotonic() + 2.5
            while time.monotonic() < end_s:  # one step that Ctrl-C cannot cut short
                pass
        wanted = f"You are {names[-1]}." if names else "I do not know."
        if "thinking" in question:
            wanted = "<think>\\nhm\\n</think>\\n\\n\\x1b[31mred"
        ids = tokenizer.encode(wanted + "<|im_end|>", allow_special=True)
        done = tokenizer.encode(said, allow_special=True)
        return ids[len(done)]
    return next_token

fake_model.make_script = make_script
loading.load = lambda path, **options: Model.fake(["x"])
from qwen_edge.cli import main
main(sys.argv[1:])
"""


class Terminal:
    """A process at a pseudo-terminal; `expect` waits for text that it writes."""

    def __init__(self, arguments: list[str], env: dict[str, str], driver: str = DRIVER) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", driver, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**env, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        """Type into the terminal."""
        os.write(self.master, text.encode())

    def expect(self, wanted: str, timeout_s: float = 15.0) -> str:
        """Return what was written up to `wanted`, and forget it."""
        end_s = time.monotonic() + timeout_s
        while wanted not in self.text:
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"{wanted!r} did not come; got {self.text!r}"
            if select.select([self.master], [], [], left_s)[0]:
                try:
                    self.text += os.read(self.master, 4096).decode(errors="replace")
                except OSError:  # how Linux says that the other side is gone
                    assert wanted in self.text, f"ended without {wanted!r}: {self.text!r}"
        before, _, self.text = self.text.partition(wanted)
        return before

    def wait(self) -> int:
        """Return the exit code."""
        return self.process.wait(timeout=15)

    def close(self) -> None:
        """End the process if it is still there."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def chat(fake_package: Any, program_environment: dict[str, str]) -> Iterator[Terminal]:
    """Return a terminal in which `qwen-edge chat` waits for the first message."""
    terminal = Terminal(["chat", fake_package("x").folder], program_environment)
    terminal.expect("Ctrl-D leaves.")
    terminal.expect("> ")
    yield terminal
    terminal.close()


def test_a_name_is_recalled_until_a_new_conversation(chat: Terminal) -> None:
    chat.type("I am Ada\n")
    chat.expect("You are Ada.")
    chat.expect("> ")
    chat.type("Who am I?\n")
    chat.expect("You are Ada.")
    assert "reused" in chat.expect("> ")
    chat.type("/new\n")
    chat.expect("new conversation")
    chat.type("Who am I?\n")
    chat.expect("I do not know.")
    chat.type("/exit\n")
    assert chat.wait() == 0


def test_commands_and_a_typing_error(chat: Terminal) -> None:
    for line, answer in (
        ("/help", "stop an answer"),
        ("/think", "thinking on"),
        ("/nothink", "thinking off"),
        ("/hepl", "Did you mean '/help'?"),
    ):
        chat.type(f"{line}\n")
        chat.expect(answer)
        chat.expect("> ")
    chat.type("\x04")
    assert chat.wait() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Terminal) -> None:
    chat.type("I am Ada\n")
    chat.expect("You are Ada.")
    chat.type("Tell me a story\n")
    chat.expect("so so so")
    chat.type("\x03")
    chat.expect("stopped by you")
    chat.expect("> ")
    chat.type("Who am I?\n")
    chat.expect("You are Ada.")  # the conversation is whole
    chat.expect("> ")
    chat.type("\x04")
    assert chat.wait() == 0


def test_ctrl_c_during_a_long_step_is_answered_at_once(chat: Terminal) -> None:
    chat.type("Think slowly\n")
    chat.expect("Think slowly")
    time.sleep(0.5)
    chat.type("\x03")
    chat.expect("(stopping after the engine's current step …)", timeout_s=5)
    chat.expect("stopped by you")
    chat.expect("> ")
    chat.type("I am Di\n")
    chat.expect("You are Di.")


def test_ctrl_c_while_loading_gives_the_cursor_back(
    fake_package: Any, program_environment: dict[str, str]
) -> None:
    """A bar hides the cursor, and one call of the engine outlasts the usual way out."""
    stuck = "__import__('hashlib').pbkdf2_hmac('sha256', b'x', b'y', 2_000_000_000)"
    driver = DRIVER.replace('Model.fake(["x"])', stuck)
    assert driver != DRIVER
    arguments = ["run", fake_package("x").folder, "Hello"]
    terminal = Terminal(arguments, program_environment, driver)
    try:
        terminal.expect("\x1b[?25l")
        terminal.expect("load")
        time.sleep(0.3)
        terminal.type("\x03")
        terminal.expect("\x1b[?25h")
        terminal.expect("Cancelled.")
        assert terminal.wait() == 130
    finally:
        terminal.close()


def test_ctrl_c_at_the_prompt_explains_how_to_leave(chat: Terminal) -> None:
    chat.type("half a line")
    chat.expect("half a line")
    # readline answers Ctrl-C only once it waits for a key; one that comes before is answered at
    # the next key. The echo above may be the terminal's own, so press again, as a person would.
    for is_last in (False, False, False, False, True):
        chat.type("\x03")
        try:
            chat.expect("(Ctrl-D or /exit leaves)", timeout_s=3)
            break
        except AssertionError:
            if is_last:
                raise
    chat.expect("> ")
    chat.type("I am Bo\n")
    chat.expect("You are Bo.")
    chat.expect("> ")
    chat.type("\x04")
    assert chat.wait() == 0


def test_reasoning_is_faint_and_the_model_cannot_steer_the_terminal(chat: Terminal) -> None:
    chat.type("Test thinking\n")
    chat.expect("\x1b[2m")
    reasoning = chat.expect("\\x1b[31mred")
    assert "hm" in reasoning.replace("\x1b[0m", "").replace("\x1b[2m", "")
    chat.expect("> ")
    chat.type("\x04")
    assert chat.wait() == 0


def test_no_color_is_obeyed(fake_package: Any, program_environment: dict[str, str]) -> None:
    env = program_environment | {"NO_COLOR": "1"}
    terminal = Terminal(["run", fake_package("x").folder, "thinking"], env)
    try:
        assert "\x1b[2m" not in terminal.expect("red")
        assert terminal.wait() == 0
    finally:
        terminal.close()


def test_tables_fit_the_terminal(program_environment: dict[str, str], tmp_path: Path) -> None:
    terminal = Terminal(["profiles"], program_environment)
    try:
        text = terminal.expect("For this machine")
        assert "\t" not in text
        assert max(len(line) for line in text.splitlines()) <= 100
        assert terminal.wait() == 0
    finally:
        terminal.close()
