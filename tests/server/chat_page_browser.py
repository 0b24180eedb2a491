"""The browser of the chat page's tests: a real Chromium without a screen, and what one does in it.

The fixtures are imported by the test modules. A test that ends has also shown that the page
reported no error and asked nobody but its own server for anything.
"""

import importlib.util
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "chat_page_server", Path(__file__).with_name("chat_page_server.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
wire = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(wire)

PATIENCE_S = 60
POLL_S = 0.02
HAS_CHROMIUM = bool(shutil.which("chromium") and shutil.which("chromedriver"))
NEEDS_CHROMIUM = pytest.mark.skipif(
    not HAS_CHROMIUM, reason="chromium or chromedriver is not installed"
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1100,800",
)


class Page:
    """The page in the browser, with what people do there."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url
        self.expected_errors: list[str] = []  # parts of messages that the browser may log

    def open(self, fragment: str = "") -> None:
        """Load the page."""
        self.driver.get(self.url + fragment)

    def js(self, script: str, *arguments: object) -> Any:
        """Run JavaScript: the body of a function."""
        return self.driver.execute_script(script, *arguments)

    def cdp(self, command: str, **parameters: object) -> Any:
        """Tell the browser something that no page can."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def all(self, selector: str) -> list[Any]:
        """Return the elements that can be seen."""
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def one(self, selector: str) -> Any:
        """Return the only element that can be seen, once there is one."""
        self.wait(lambda: len(self.all(selector)) == 1, f"one {selector}")
        return self.all(selector)[0]

    def text(self, selector: str) -> str:
        """Return the text of the last element of a kind, seen or not."""
        script = "return [...document.querySelectorAll(arguments[0])].at(-1)?.textContent ?? ''"
        return str(self.js(script, selector))

    def wait(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait until something is so."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"waited in vain: {what}"
            time.sleep(POLL_S)

    def wait_text(self, selector: str, text: str) -> None:
        """Wait until the last element of a kind has exactly this text."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (found := self.text(selector)) != text:
            assert time.monotonic() < deadline_s, f"{selector} is {found!r}, not {text!r}"
            time.sleep(POLL_S)

    def click(self, selector: str) -> None:
        """Press the only such thing; the bars of the page may be in front of where it is."""
        element = self.one(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str:
        """Return the id, or else the classes, of what has the focus."""
        return str(self.js("const e = document.activeElement; return e.id || e.className"))

    def send(self, text: str) -> None:
        """Write a message and press Enter."""
        self.one("#prompt").send_keys(text, "\ue007")

    def wait_idle(self) -> None:
        """Wait until no answer is being written."""
        self.wait(lambda: self.all("#send"), "the end of the answer")

    def ask(self, text: str) -> str:
        """Send a message and return the answer's text."""
        self.send(text)
        self.wait_idle()
        return self.text(".answer .text")

    def phone(self, width: int = 320, height: int = 568) -> None:
        """Make the window that of a phone."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2,
            mobile=True,
        )
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=True)

    def check(self) -> None:
        """Check what no test may leave behind: errors, and requests to anybody else."""
        logged = [entry["message"] for entry in self.driver.get_log("browser")]
        unexpected = [m for m in logged if not any(part in m for part in self.expected_errors)]
        assert not unexpected, f"the browser logged {unexpected}"
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                assert url.startswith((self.url, "data:", "about:")), f"the page asked for {url}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a browser with an empty profile."""
    from selenium import webdriver

    profile: Path = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def server() -> Iterator[Any]:
    """Return a stand-in of its own, on a port of its own: the browser keeps nothing for it yet."""
    server = wire.StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.close()
    thread.join()


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Page]:
    """Return the page, loaded and ready, of the stand-in."""
    yield from opened(browser, server.url)


def opened(browser: Any, url: str) -> Iterator[Page]:
    """Yield the page of a server; what is true of every test is checked at its end."""
    page = Page(browser, url)
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    page.open()
    yield page
    page.check()
    browser.get("about:blank")
    for command in ("clearDeviceMetricsOverride", "setEmulatedMedia"):
        page.cdp(f"Emulation.{command}")
    page.cdp("Emulation.setTouchEmulationEnabled", enabled=False)
