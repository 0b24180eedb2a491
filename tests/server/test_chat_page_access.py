"""The chat page in a real browser: by keyboard, on a phone, in the dark, and when it is long."""

import importlib.util
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
ENTER, ESCAPE, TAB, SPACE = "\ue007", "\ue00c", "\ue004", " "
ANSWER = ".answer .text"
LONG_WORD = "Donaudampfschifffahrtsgesellschaft" * 5
WIDE = f"""# {LONG_WORD}

{LONG_WORD} and `{LONG_WORD}` and https://example.org/{LONG_WORD}

- {LONG_WORD}
  1. {LONG_WORD}

> {LONG_WORD}

| {LONG_WORD} | b | c | d | e | f | g | h |
|---|---|---|---|---|---|---|---|
| 1 | 2 | 3 | 4 | 5 | 6 | 7 | {LONG_WORD} |

```
{LONG_WORD * 3}
```
"""


def tab_to(page: Any, wanted: str) -> None:
    """Press Tab until something has the focus."""
    for _ in range(30):
        if wanted in page.focused():
            return
        page.keys(TAB)
    raise AssertionError(f"Tab never came to {wanted}")


def test_everything_is_done_by_keyboard(page: Any, server: Any) -> None:
    assert page.focused() == "prompt", "one can write at once"
    page.keys("Hi", ENTER)
    page.wait_text(ANSWER, "You said: Hi")
    page.wait_idle()
    assert page.focused() == "prompt"
    tab_to(page, "edit")
    page.keys(ENTER, "!", ENTER)
    page.wait_text(ANSWER, "You said: Hi!")
    page.wait_idle()
    tab_to(page, "retry")
    page.keys(ENTER)
    page.wait(lambda: len(server.asked) == 3)
    page.wait_idle()
    tab_to(page, "thinking")
    page.keys(SPACE)
    tab_to(page, "open-settings")
    page.keys(ENTER)
    assert page.focused() == "system", "the dialog has the focus"
    page.keys(ESCAPE)
    assert page.focused() == "open-settings", "it gives the focus back"
    tab_to(page, "new-chat")
    page.keys(ENTER)
    assert page.focused() == "prompt"
    assert page.ask("New") == "You said: New"
    assert server.asked[3].body["chat_template_kwargs"] == {"enable_thinking": False}


def test_what_has_the_focus_is_seen(page: Any, server: Any) -> None:
    server.will_answer(wire.reasoning("Hm"), wire.content("```\nx\n```"), wire.end())
    page.ask("Hi")
    style = """
        const e = document.activeElement;
        const outer = e.id === "prompt" ? e.closest("form") : e;
        const style = getComputedStyle(outer);
        return [e.tagName + "." + e.className + "#" + e.id,
                style.outlineStyle !== "none" || style.boxShadow !== "none"];
    """
    seen = {}
    for _ in range(20):
        page.keys(TAB)
        name, is_marked = page.js(style)
        seen[name] = is_marked
    assert all(is_marked for name, is_marked in seen.items() if "BODY" not in name), seen
    reached = " ".join(seen)
    for name in ("SUMMARY", "copy-code", "edit", "copy", "retry", "#prompt", "#thinking", "#send"):
        assert name in reached, f"Tab does not reach {name}"
    for name in ("#new-chat", "#open-history", "#open-settings"):
        assert name in reached, f"Tab does not reach {name}"


def test_everything_has_a_name(page: Any, server: Any) -> None:
    page.ask("Hi")
    page.click("#open-settings")
    tree = page.cdp("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "checkbox", "combobox", "spinbutton", "link"}
    nodes = [node for node in tree if node.get("role", {}).get("value") in roles]
    unnamed = [node for node in nodes if not node.get("name", {}).get("value")]
    assert len(nodes) > 5 and unnamed == []
    page.keys(ESCAPE)


def test_a_screen_reader_hears_finished_paragraphs(page: Any, server: Any) -> None:
    gate = server.gate()
    server.will_answer(
        wire.content("First **one**.\n\nSec"), gate, wire.content("ond."), wire.end()
    )
    page.send("Hi")
    page.wait_text(ANSWER, "First one.Sec")
    heard = "return [...document.querySelectorAll('[aria-live=polite] p')].map(p => p.textContent)"
    assert page.js(heard) == ["First one."]
    gate.set()
    page.wait_idle()
    assert page.js(heard) == ["First one.", "Second."]


def test_enter_that_ends_a_word_in_an_ime_does_not_send(page: Any, server: Any) -> None:
    page.one("#prompt").click()
    page.cdp("Input.imeSetComposition", text="ni", selectionStart=2, selectionEnd=2)
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    page.cdp("Input.dispatchKeyEvent", type="rawKeyDown", **key)
    page.cdp("Input.insertText", text="你")
    assert page.one("#prompt").get_attribute("value") == "你"
    # Safari ends the composition first: only the code of the key tells.
    late = "{key: 'Enter', keyCode: 229, bubbles: true, cancelable: true}"
    page.js(f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {late}))")
    assert page.all(".user") == [] and server.asked == []
    page.keys(ENTER)
    page.wait_text(ANSWER, "You said: 你")


def test_enter_during_an_answer_keeps_what_was_typed(page: Any, server: Any) -> None:
    gate = server.gate()
    server.will_answer(wire.content("Wait"), gate, wire.end())
    page.send("Hi")
    page.wait_text(ANSWER, "Wait")
    page.keys("Next", ENTER)
    assert page.one("#prompt").get_attribute("value") == "Next"
    gate.set()
    page.wait_idle()
    page.keys(ENTER)
    page.wait_text(ANSWER, "You said: Next")


def test_a_phone_has_no_sideways_scroll_and_big_targets(page: Any, server: Any) -> None:
    page.phone(320)
    page.open()
    call = {"index": 0, "id": "1", "function": {"name": LONG_WORD, "arguments": f'"{LONG_WORD}"'}}
    server.will_answer(
        wire.reasoning(LONG_WORD), wire.content(WIDE), wire.delta(tool_calls=[call]), wire.end()
    )
    page.ask(LONG_WORD)
    page.click(".thinking summary")
    sideways = "const p = document.scrollingElement; return p.scrollWidth - innerWidth"
    assert page.js(sideways) <= 0
    small = """
        const all = document.querySelectorAll("button, select, summary, textarea, .switch");
        return [...all].filter(e => e.checkVisibility())
            .map(e => [e.id || e.className || e.textContent, e.getBoundingClientRect()])
            .filter(([, box]) => box.height < 44 || box.width < 44)
            .map(([name, box]) => [name, box.width, box.height]);
    """
    assert page.js(small) == []
    of_dialog = (
        "const d = document.querySelector('dialog[open]'); return d.scrollWidth - d.clientWidth"
    )
    for opener in ("#open-settings", "#open-history"):
        page.click(opener)
        assert page.js(small) == []
        assert page.js(of_dialog) <= 0
        assert page.js(sideways) <= 0
        page.keys(ESCAPE)
    page.click(".user .edit")
    assert page.js(sideways) <= 0


def test_dark_where_the_system_is(page: Any) -> None:
    def lightness() -> list[int]:
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        return [sum(map(int, colour[4:-1].split(","))) for colour in page.js(script)]

    def emulate(scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.cdp("Emulation.setEmulatedMedia", features=[feature])

    emulate("light")
    paper, ink = lightness()
    assert paper > 600 > 150 > ink
    emulate("dark")
    paper, ink = lightness()
    assert paper < 150 < 600 < ink


def test_right_to_left_text_runs_right_to_left(page: Any, server: Any) -> None:
    server.will_answer(wire.content("שלום עולם\n\nHello\n\n- אחת\n"), wire.end())
    page.ask("مرحبا")
    direction = """
        const found = [...document.querySelectorAll(arguments[0])];
        return found.map(e => getComputedStyle(e).direction);
    """
    assert page.js(direction, ".user .text") == ["rtl"]
    assert page.js(direction, ".markup > p") == ["rtl", "ltr"]
    assert page.js(direction, ".markup li") == ["rtl"]


def test_the_page_follows_until_the_reader_scrolls_up(page: Any, server: Any) -> None:
    lines = wire.content("line\n\n" * 60)
    gates = [server.gate() for _ in range(3)]
    server.will_answer(lines, gates[0], lines, gates[1], lines, gates[2], wire.end())
    place = """
        const p = document.scrollingElement;
        return [p.scrollTop, p.scrollHeight - p.clientHeight - p.scrollTop];
    """
    num_lines = "return document.querySelectorAll('.markup p').length"
    page.send("Hi")
    page.wait(lambda: page.js(num_lines) == 60)
    page.wait(lambda: page.js(place)[1] <= 4, "at the end")
    page.cdp("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=300, deltaX=0, deltaY=-200)
    page.wait(lambda: page.js(place)[1] > 100, "scrolled")
    page.wait(lambda: page.all("#to-end"), "a way back")
    top = page.js(place)[0]
    gates[0].set()
    page.wait(lambda: page.js(num_lines) == 120)
    assert page.js(place)[0] == top, "the text ran away from the reader"
    page.click("#to-end")
    page.wait(lambda: page.js(place)[1] <= 4, "at the end again")
    gates[1].set()
    page.wait(lambda: page.js(num_lines) == 180)
    page.wait(lambda: page.js(place)[1] <= 4, "following again")
    gates[2].set()
    page.wait_idle()


def test_a_long_answer_stays_fast(page: Any, server: Any) -> None:
    """4,000 pieces, 100 kB: what is finished is not touched again, and frames draw many pieces."""
    paragraph = "Some words with **bold** and `code` in a paragraph of a long answer. " * 4
    text = (paragraph + "\n\n- one\n- two\n\n```\ncode\n```\n\n") * 300
    server.will_answer(
        wire.content("Begin.\n\n"),
        gate := server.gate(),
        *(wire.content(part) for part in wire.pieces(text, 25)),
        wire.end(),
    )
    page.send("Hi")
    page.wait_text(ANSWER, "Begin.")
    page.js("""
        window.updates = window.touched = 0;
        const all = {childList: true, subtree: true, characterData: true, attributes: true};
        const watch = (name, count) => {
            new MutationObserver(count).observe(document.querySelector(name), all);
        };
        watch(".markup p", () => window.touched++);
        watch(".user .text", () => window.touched++);
        watch(".markup", () => window.updates++);
    """)
    gate.set()
    page.wait_idle()
    assert len(page.text(ANSWER)) > 80_000
    assert page.js("return window.touched") == 0
    assert page.js("return window.updates") < len(text) // 25 // 2


def test_a_very_long_message_is_text(page: Any, server: Any) -> None:
    text = "<b>x</b> " * 60_000
    page.js("document.getElementById('prompt').value = arguments[0]", text)
    server.will_answer(wire.content(text), wire.end())
    page.keys(ENTER)
    page.wait(lambda: page.text(ANSWER) == text, "the whole answer")
    page.wait_idle()
    assert page.text(".user .text") == text
    assert server.asked[0].body["messages"][0]["content"] == text
