"""The chat page in a real browser: what an answer, a server or a network can do to it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

_SPEC = importlib.util.spec_from_file_location(
    "chat_page_browser", Path(__file__).with_name("chat_page_browser.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
chromium = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(chromium)
browser, server, page, wire = chromium.browser, chromium.server, chromium.page, chromium.wire

pytestmark = chromium.NEEDS_CHROMIUM
ESCAPE = "\ue00c"
ANSWER = ".answer .text"
FIX = "Start it again."
EVIL = """<img src=x onerror="alert(1)"><script>alert(2)</script>

- <svg onload=alert(3)> **<b>bold</b>** `<i>code</i>`

| <td>cell</td> | <a href="javascript:alert(4)">x</a> |
|---|---|
| <iframe src="http://evil.example"> | ![x](http://evil.example/pixel.png) |

```<script>
<script>alert(5)</script>
```
"""
LINKS = """[run](javascript:alert(1)) [data](data:text/html,<script>) [file](file:///etc/passwd)
[rel](/v1/models) [tab](java\tscript:x) [vb](vbscript:x) [upper](JaVaScRiPt:alert(1))
[good](https://example.org/a?b=1) and http://example.org/plain."""


def test_an_answer_never_becomes_html(page: Any, server: Any) -> None:
    server.will_answer(
        wire.reasoning(EVIL), *(wire.content(part) for part in wire.pieces(EVIL)), wire.end()
    )
    page.ask(EVIL.replace("\n", " "))
    forbidden = "img, script, svg, iframe, b, i, [onerror], [onload], [style]"
    assert (
        page.js("return document.querySelectorAll(arguments[0]).length", f"main :is({forbidden})")
        == 0
    )
    assert '<img src=x onerror="alert(1)"><script>alert(2)</script>' in page.text(ANSWER)
    assert "<script>alert(5)</script>" in page.text(".code code")
    assert page.text(".reasoning") == EVIL
    page.open()
    assert (
        page.js("return document.querySelectorAll(arguments[0]).length", f"main :is({forbidden})")
        == 0
    )


def test_only_web_addresses_become_links(page: Any, server: Any) -> None:
    server.will_answer(wire.content(LINKS), wire.end())
    page.ask("Hi")
    links = page.js(
        "return [...document.querySelectorAll('main a')].map(a => [a.href, a.rel, a.target])"
    )
    safe = ["noopener noreferrer", "_blank"]
    assert links == [
        ["https://example.org/a?b=1", *safe],
        ["http://example.org/plain", *safe],
    ]
    assert "[run](javascript:alert(1))" in page.text(ANSWER)


def test_what_is_kept_is_not_trusted(page: Any) -> None:
    kept = {
        "id": "x",
        "changed": 1,
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": "<img src=x onerror=alert(1)>"},
            {"role": "assistant", "content": "Hi", "toolCalls": "none", "timings": {}},
            7,
        ],
    }
    script = "localStorage.setItem(arguments[0], arguments[1])"
    page.js(script, "qwen-edge.conversation.x", json.dumps(kept))
    page.js(script, "qwen-edge.conversation.y", "{")
    page.js(script, "qwen-edge.settings", '{"system": 7, "thinking": "no", "model": null}')
    page.js("sessionStorage.clear()")
    page.open()
    assert page.text(".user .text") == "<img src=x onerror=alert(1)>"
    assert page.text(ANSWER) == "Hi"
    assert page.text(".note") == "The page was closed before the answer was complete."
    assert page.ask("go on") == "You said: go on"


def test_characters_may_be_cut_anywhere_on_the_wire(page: Any, server: Any) -> None:
    text = "Grüße 👩‍💻 шалом 你好 …"
    stream = wire.content(text) + b"".join(wire.end())
    server.will_answer(*(stream[at : at + 1] for at in range(len(stream))))
    assert page.ask("Hi") == text


def test_an_error_in_the_middle_of_an_answer(page: Any, server: Any) -> None:
    failure = wire.event(wire.error("The device was lost.", FIX))
    server.will_answer(wire.content("Half an answer"), failure)
    page.ask("Hi")
    assert page.text(ANSWER) == "Half an answer"
    problem = page.one(".problem")
    assert problem.get_attribute("role") == "alert"
    assert page.one(".problem .what").text == "The device was lost."
    assert page.one(".problem .fix").text == FIX
    page.click(".problem .again")
    page.wait_text(ANSWER, "You said: Hi")
    assert page.all(".problem") == [] and len(page.all(ANSWER)) == 1
    assert server.asked[1].body == server.asked[0].body


def test_a_refusal_is_shown_with_its_fix(page: Any, server: Any) -> None:
    page.expected_errors = ["status of 400"]
    server.will_refuse(400, "The prompt has 9,000 tokens, the model 8,192.", "Shorten it.")
    page.ask("Hi")
    assert page.one(".problem .what").text == "The prompt has 9,000 tokens, the model 8,192."
    assert page.one(".problem .fix").text == "Shorten it."


def test_a_full_queue_is_no_loading_model(page: Any, server: Any) -> None:
    page.expected_errors = ["status of 503"]
    server.will_refuse(503, "All places are taken.", "Try again in 1 s.")
    page.ask("Hi")
    assert page.one(".problem .what").text == "All places are taken."


def test_a_stream_that_just_ends_is_no_whole_answer(page: Any, server: Any) -> None:
    server.will_answer(wire.content("Half an answer"))
    page.ask("Hi")
    assert "broke off" in page.one(".problem .what").text


def test_a_connection_that_breaks_off(page: Any, server: Any) -> None:
    page.expected_errors = ["ERR_INCOMPLETE_CHUNKED_ENCODING"]
    server.will_answer(wire.content("Half an answer"), gate := server.gate(), wire.BREAK)
    page.send("Hi")
    page.wait_text(ANSWER, "Half an answer")
    gate.set()
    page.wait_idle()
    assert page.text(ANSWER) == "Half an answer"
    assert "broke off" in page.one(".problem .what").text
    page.click(".problem .again")
    page.wait_text(ANSWER, "You said: Hi")


def test_a_server_that_has_gone(page: Any, server: Any) -> None:
    page.expected_errors = ["ERR_CONNECTION_REFUSED"]
    page.ask("Hi")
    server.close()
    page.ask("Still there?")
    assert "does not answer" in page.one(".problem .what").text
    assert "qwen-edge serve" in page.one(".problem .fix").text


def test_a_model_that_loads_is_waited_for(page: Any, server: Any) -> None:
    page.expected_errors = ["status of 503"]
    server.health = (503, {"status": "loading", "progress": 0.4})
    page.open()
    page.wait_text("#state-text", "The model is loading: 40 %")
    page.send("Early")
    page.wait(lambda: page.text(".waiting").startswith("Waiting for the model"), "it is said")
    assert server.asked == []
    server.health = (200, {"status": "ok"})
    page.wait_idle()
    assert page.text(ANSWER) == "You said: Early"
    page.wait(lambda: not page.all("#state"), "the note has gone")


def test_a_model_that_loads_again_is_waited_for(page: Any, server: Any) -> None:
    """It was unloaded in the meantime: the request is refused, then repeated."""
    page.expected_errors = ["status of 503"]
    page.ask("Hi")
    server.health = (503, {"status": "loading", "progress": "weights"})
    server.will_refuse(503, "The model is loading.", "Wait.")
    page.send("And now?")
    page.wait_text("#state-text", "The model is loading: weights")
    server.health = (200, {"status": "ok"})
    page.wait_idle()
    assert page.text(ANSWER) == "You said: And now?"


def test_a_model_that_failed_says_why(page: Any, server: Any) -> None:
    page.expected_errors = ["status of 503"]
    failure = wire.error("'model.bin' is damaged.", "Export it again.")["error"]
    server.health = (503, {"status": "failed", "error": failure})
    page.open()
    page.wait_text("#state-text", "The model did not load. 'model.bin' is damaged.")
    assert page.one("#state-fix").text == "Export it again."


def test_waiting_can_be_stopped(page: Any, server: Any) -> None:
    page.expected_errors = ["status of 503"]
    server.health = (503, {"status": "loading"})
    page.open()
    page.send("Early")
    page.wait(lambda: page.all(".waiting"))
    page.keys(ESCAPE)
    page.wait_idle()
    assert page.one(".note").text == "You stopped the answer."


def test_a_key_is_asked_for_and_kept_in_the_tab_only(page: Any, server: Any) -> None:
    page.expected_errors = ["status of 401"]
    server.key = "secret"
    page.open()
    assert page.one("#key-input").get_attribute("type") == "password"
    page.keys("wrong\ue007")
    page.wait_text("#key-problem", "The server did not accept the key.")
    page.keys("secret\ue007")
    page.wait_text("#model-name", "demo")
    assert page.ask("Hi") == "You said: Hi"
    page.open()
    assert page.ask("again") == "You said: again"
    assert "secret" not in page.js("return JSON.stringify(localStorage)")
    server.key = "changed"
    page.send("third")
    page.one("#key-input").send_keys("changed\ue007")
    page.wait_text(ANSWER, "You said: third")


def test_who_has_no_key_can_still_give_one_later(page: Any, server: Any) -> None:
    page.expected_errors = ["status of 401"]
    server.key = "secret"
    page.open()
    page.one("#key-input").send_keys(ESCAPE)
    page.wait_text("#state-text", "This server needs an API key.")
    page.click("#enter-key")
    page.one("#key-input").send_keys("secret\ue007")
    page.wait_text("#model-name", "demo")
    assert page.ask("Hi") == "You said: Hi"


def test_a_key_may_come_in_the_address_and_leaves_it(page: Any, server: Any) -> None:
    page.driver.get("about:blank")
    server.key = "a+b/c="
    page.open("#key=a%2Bb%2Fc%3D")
    page.wait_text("#model-name", "demo")
    assert page.js("return location.href") == page.url


def test_a_browser_that_keeps_nothing(page: Any, server: Any) -> None:
    source = (
        "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError') }"
    )
    script = page.cdp("Page.addScriptToEvaluateOnNewDocument", source=source)
    page.open()
    page.ask("Hi")
    assert "storage is full" in page.one("#storage-note p").text
    assert page.text(ANSWER) == "You said: Hi"
    page.click("#storage-note button")
    assert page.all("#storage-note") == []
    page.cdp("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
