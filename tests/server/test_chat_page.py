"""The chat page in a real browser: what a person does with it, against a scripted server."""

import importlib.util
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
browser, server, page, wire = chromium.browser, chromium.server, chromium.page, chromium.wire

pytestmark = chromium.NEEDS_CHROMIUM
ENTER, ESCAPE, TAB, SHIFT = "\ue007", "\ue00c", "\ue004", "\ue008"
ANSWER = ".answer .text"


def test_an_answer_arrives_piece_by_piece(page: Any, server: Any) -> None:
    first, second = server.gate(), server.gate()
    server.will_answer(wire.content("Hel"), first, wire.content("lo"), second, wire.end())
    page.send("Hi")
    page.wait_text(ANSWER, "Hel")
    first.set()
    page.wait_text(ANSWER, "Hello")
    assert page.js("return document.querySelector('.answer').ariaBusy") == "true"
    assert page.all("#stop")
    second.set()
    page.wait_idle()
    assert page.js("return document.querySelector('.answer').ariaBusy") == "false"
    assert page.text(ANSWER) == "Hello"
    assert page.text(".user .text") == "Hi"


def test_the_model_and_its_speed_are_shown(page: Any) -> None:
    page.ask("Hi")
    stats = "demo · 12.3 tokens/s · first token after 0.84 s · 25 tokens"
    assert page.text(".stats").replace("\xa0", " ") == stats
    title = page.one(".stats").get_attribute("title")
    assert "42 prompt tokens read, 30 taken from the cache" in title
    assert "97 of 8192 tokens of context used" in title
    assert page.one("#model-name").text == "demo"
    assert page.one("#model-facts").text == "CPU · 8,192 tokens"


def test_what_is_asked_of_the_server(page: Any, server: Any) -> None:
    page.ask("One")
    page.ask("Two")
    assert server.asked[1].body == {
        "model": "demo",
        "messages": [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "You said: One"},
            {"role": "user", "content": "Two"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": True},
    }


def test_thinking_is_folded_away_and_can_be_looked_at(page: Any, server: Any) -> None:
    thinking, answering = server.gate(), server.gate()
    server.will_answer(
        wire.reasoning("Let me "), wire.reasoning("see."), thinking, wire.content("Yes."), answering
    )
    page.send("Hi")
    page.wait(lambda: page.text(".thinking summary").startswith("Thinking…"), "thinking")
    page.wait_text(".reasoning", "Let me see.")
    assert not page.all(".reasoning")
    page.click(".thinking summary")
    assert page.one(".reasoning").text == "Let me see."
    thinking.set()
    page.wait_text(ANSWER, "Yes.")
    assert page.text(".thinking summary").startswith("Thought for ")
    assert page.all(".reasoning"), "what was unfolded stays so"
    page.keys(ESCAPE)
    page.wait_idle()


def test_the_switch_for_thinking(page: Any, server: Any) -> None:
    page.wait(lambda: page.one("#thinking").is_enabled())
    page.click("#thinking")
    page.ask("Hi")
    assert server.asked[0].body["chat_template_kwargs"] == {"enable_thinking": False}
    page.open()
    page.wait(lambda: page.one("#thinking").is_enabled())
    assert not page.one("#thinking").is_selected(), "the choice was not kept"


@pytest.mark.parametrize(("thinking", "is_on"), [("always", True), ("never", False)])
def test_no_switch_where_the_model_cannot(
    page: Any, server: Any, thinking: str, is_on: bool
) -> None:
    server.models = [wire.model("fixed", thinking)]
    page.open()
    page.wait_text("#model-name", "fixed")
    assert not page.one("#thinking").is_enabled()
    assert page.one("#thinking").is_selected() == is_on
    page.ask("Hi")
    assert "chat_template_kwargs" not in server.asked[0].body


def test_a_model_is_chosen_where_there_are_several(page: Any, server: Any) -> None:
    server.models = [wire.model("one"), wire.model("two")]
    page.open()
    page.one("#model").send_keys("two")
    page.ask("Hi")
    page.open()
    page.wait(lambda: page.all("#model"))
    page.ask("again")
    assert [asked.body["model"] for asked in server.asked] == ["two", "two"]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_request(page: Any, server: Any, how: str) -> None:
    server.will_answer(wire.content("A long "), server.gate(), wire.content("story"))
    page.send("Hi")
    page.wait_text(ANSWER, "A long ")
    if how == "button":
        page.click("#stop")
    else:
        page.keys(ESCAPE)
    assert server.asked[0].is_closed.wait(10), "the server was not told"
    page.wait_idle()
    assert page.one(".note").text == "You stopped the answer."
    assert page.focused() == "prompt"
    page.ask("go on")
    assert server.asked[1].body["messages"][1] == {"role": "assistant", "content": "A long "}


def test_stop_while_nothing_has_come_yet(page: Any, server: Any) -> None:
    server.will_answer(server.gate())
    page.send("Hi")
    page.wait(lambda: server.asked)
    page.wait(lambda: page.text(".waiting").startswith("Reading"), "a sign of life")
    page.keys(ESCAPE)
    assert server.asked[0].is_closed.wait(10)
    page.ask("again")
    assert [m["role"] for m in server.asked[1].body["messages"]] == ["user", "user"]


def test_stop_while_the_model_thinks(page: Any, server: Any) -> None:
    server.will_answer(wire.reasoning("Hm"), server.gate())
    page.send("Hi")
    page.wait_text(".reasoning", "Hm")
    page.keys(ESCAPE)
    assert server.asked[0].is_closed.wait(10)
    page.wait_idle()
    assert page.text(".thinking summary").startswith("Thought for")


def test_a_message_is_edited_and_the_talk_goes_on_from_there(page: Any, server: Any) -> None:
    page.ask("One")
    page.ask("Two")
    page.one("#prompt").send_keys("not yet sent")
    page.all(".user .edit")[0].click()
    field = page.one(".editor textarea")
    assert field.get_attribute("value") == "One"
    field.clear()
    field.send_keys("Uno", SHIFT + ENTER)
    page.keys(SHIFT, "\ue000", "!", ENTER)
    page.wait(lambda: len(server.asked) == 3)
    page.wait_idle()
    assert server.asked[2].body["messages"] == [{"role": "user", "content": "Uno\n!"}]
    assert [e.text for e in page.all(".user .text")] == ["Uno\n!"]
    assert len(page.all(ANSWER)) == 1
    assert page.one("#prompt").get_attribute("value") == "not yet sent"


def test_editing_can_be_given_up(page: Any, server: Any) -> None:
    page.ask("One")
    page.click(".user .edit")
    page.keys("nonsense", ESCAPE)
    assert page.one(".user .text").text == "One"
    assert "edit" in page.focused()
    assert len(server.asked) == 1


def test_an_answer_is_asked_for_again(page: Any, server: Any) -> None:
    page.ask("One")
    server.will_answer(wire.content("Better."), wire.end())
    page.ask("Two")
    assert len(page.all(".answer .retry")) == 1, "only the last can be retried"
    page.click(".answer .retry")
    page.wait(lambda: len(server.asked) == 3)
    page.wait_idle()
    assert server.asked[2].body == server.asked[1].body
    assert [e.text for e in page.all(ANSWER)] == ["You said: One", "You said: Two"]


def test_an_answer_and_a_code_block_are_copied(page: Any, server: Any) -> None:
    page.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite"], origin=page.url)
    text = "Use **this**:\n\n```python\nprint(1)\n\nprint(2)\n```\n"
    server.will_answer(wire.content(text), wire.end())
    page.ask("Hi")
    read = "return navigator.clipboard.readText()"
    page.click(".answer .actions .copy")
    page.wait_text(".answer .actions .copy", "Copied")
    assert page.js(read) == text
    page.click(".copy-code")
    page.wait_text(".copy-code", "Copied")
    assert page.js(read) == "print(1)\n\nprint(2)"


def test_tool_calls_are_shown_and_can_be_given_results(page: Any, server: Any) -> None:
    tools = '[{"type":"function","function":{"name":"weather"}}]'
    page.click("#open-settings")
    page.one("#tools").send_keys(tools[:-1], ENTER)
    page.click("#settings-form .main")
    assert "not JSON" in page.one("#tools-problem").text
    page.one("#tools").send_keys("]")
    page.click("#settings-form .main")
    first = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}
    server.will_answer(
        wire.delta(tool_calls=[first]),
        *(
            wire.delta(tool_calls=[{"index": 0, "function": {"arguments": part}}])
            for part in wire.pieces('{"place": "Köln", "days": 3}')
        ),
        wire.end("tool_calls"),
    )
    page.send("Weather?")
    page.wait_text(".call .arguments", '{\n  "place": "Köln",\n  "days": 3\n}')
    assert server.asked[0].body["tools"] == [{"type": "function", "function": {"name": "weather"}}]
    assert page.one(".call h3").text == "Tool call: weather"
    page.one(".call .result").send_keys("rain")
    page.click(".send-results")
    page.wait(lambda: len(server.asked) == 2)
    page.wait_idle()
    _, call, result = server.asked[1].body["messages"]
    function = {"name": "weather", "arguments": '{"place": "Köln", "days": 3}'}
    assert call["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert result == {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    assert page.text(ANSWER) == "You said: rain"
    assert page.one(".result-shown pre").text == "rain"


def test_settings_are_sent_and_kept(page: Any, server: Any) -> None:
    page.click("#open-settings")
    page.one("#system").send_keys("Be brief.")
    page.one("#temperature").send_keys("0.5")
    page.one("#max-tokens").send_keys("64")
    page.click("#settings-form .main")
    page.open()
    page.ask("Hi")
    body = server.asked[0].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_completion_tokens"]) == (0.5, 64)
    page.click("#open-settings")
    page.keys("more", ESCAPE)
    page.click("#open-settings")
    assert page.one("#system").get_attribute("value") == "Be brief.", "Esc keeps nothing"
    page.keys(ESCAPE)


def test_conversations_are_kept_opened_and_deleted(page: Any, server: Any) -> None:
    server.will_answer(wire.reasoning("Hm."), wire.content("**Yes**"), wire.end())
    page.ask("First")
    page.open()
    assert page.text(ANSWER) == "Yes"
    assert page.text(".reasoning") == "Hm."
    page.click("#new-chat")
    assert page.all(".message") == []
    page.ask("Second")
    page.click("#open-history")
    assert [e.text for e in page.all(".conversations .title")] == ["Second", "First"]
    page.all(".conversations .open")[1].click()
    assert page.one(".user .text").text == "First"
    page.click("#open-history")
    page.all(".conversations .delete")[1].click()
    assert len(page.all(".conversations .title")) == 2, "the second press deletes"
    page.all(".conversations .delete")[1].click()
    assert [e.text for e in page.all(".conversations .title")] == ["Second"]
    assert page.all(".message") == [] and page.js("return localStorage.length") == 1
    page.click("#delete-all")
    page.click("#delete-all")
    assert page.one("#no-conversations").text == "There are no conversations yet."
    assert page.js("return localStorage.length") == 0


def test_a_closed_page_keeps_the_question(page: Any, server: Any) -> None:
    server.will_answer(wire.content("Half an "), server.gate())
    page.send("Hi")
    page.wait_text(ANSWER, "Half an ")
    page.open()
    assert page.text(".user .text") == "Hi"
    assert page.text(".note") == "The page was closed before the answer was complete."
    assert server.asked[0].is_closed.wait(10)


def test_a_deleted_conversation_does_not_come_back(page: Any, server: Any) -> None:
    """The answer that was running when it was deleted has still to be put away."""
    server.will_answer(wire.content("Half"), server.gate())
    page.send("Hi")
    page.wait_text(ANSWER, "Half")
    page.click("#open-history")
    page.click(".conversations .delete")
    page.click(".conversations .delete")
    assert server.asked[0].is_closed.wait(10)
    page.keys(ESCAPE)
    page.ask("New")
    titles = "return Object.values(localStorage).filter(t => t.includes('messages')).join()"
    assert '"Hi"' not in page.js(titles)
