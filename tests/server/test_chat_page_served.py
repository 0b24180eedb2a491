"""The chat page with the server it belongs to and a model, in a real browser.

CHAT_PAGE_URL names a server that is running already, with a model that can think: then no other is
started. It must ask for no key.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "chat_page_browser", Path(__file__).with_name("chat_page_browser.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
chromium = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(chromium)
browser = chromium.browser

pytestmark = chromium.NEEDS_CHROMIUM
GIVEN_URL = os.environ.get("CHAT_PAGE_URL")
ROOTS = [str(Path(__file__).parents[2] / name) for name in ("export", "runtime", "profiles")]
ESCAPE = "\ue00c"
ANSWER = ".answer .text"


@pytest.fixture(scope="module")
def served_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the address of a real server with a model."""
    if GIVEN_URL:
        yield GIVEN_URL.rstrip("/") + "/"
        return
    folder = request.getfixturevalue("demo_package")
    command = [sys.executable, "-m", "qwen_edge.cli", "serve", str(folder)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json", "--stop-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)},
    )
    with process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"] + "/"
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def page(browser: Any, served_url: str) -> Iterator[Any]:
    """Return the page as the real server sends it."""
    yield from chromium.opened(browser, served_url)


def test_a_conversation_with_a_model(page: Any) -> None:
    page.wait(lambda: page.one("#thinking").is_enabled(), "a model")
    name = page.one("#model-name").text
    page.click("#thinking")
    assert page.ask("Hello")
    assert name in page.text(".stats") and "tokens/s" in page.text(".stats")
    assert page.all(".thinking") == []
    page.click("#thinking")
    page.ask("What is 2 + 3?")
    page.wait(lambda: page.text(".thinking summary").startswith("Thought for"), "thinking")
    page.click(".answer .retry")
    page.wait_idle()
    assert len(page.all(".answer")) == 2
    page.all(".user .edit")[0].click()
    page.keys("!", "\ue007")
    page.wait(lambda: len(page.all(".answer")) == 1)
    page.wait_idle()
    assert page.text(ANSWER) and page.all(".problem") == []


def test_an_answer_is_stopped_and_the_next_comes(page: Any) -> None:
    page.wait(lambda: page.one("#thinking").is_enabled(), "a model")
    page.click("#open-settings")
    page.one("#system").send_keys("You are brief.")
    page.one("#temperature").send_keys("0.1")
    page.one("#max-tokens").send_keys("3")
    page.click("#settings-form .main")
    page.ask("Count from one to ten.")
    assert page.text(".note") == "The answer reached the limit of tokens."
    page.send("Hello")
    page.keys(ESCAPE)
    page.wait_idle()
    page.ask("And now?")
    assert page.all(".problem") == []


def test_a_refusal_of_the_server_is_shown(page: Any) -> None:
    page.wait(lambda: page.one("#thinking").is_enabled(), "a model")
    page.expected_errors = ["status of 400"]
    page.click("#open-settings")
    page.one("#temperature").send_keys("2")
    page.js("document.getElementById('temperature').value = '-1'")
    page.js("document.getElementById('settings-form').noValidate = true")
    page.click("#settings-form .main")
    page.ask("Hello")
    assert "temperature" in page.one(".problem .what").text
    assert page.one(".problem .fix").text
