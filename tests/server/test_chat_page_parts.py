"""The parts of the chat page that can be tried alone, in a real browser: its modules."""

import importlib.util
import re
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

READ_CUT = """
    const [bytes, done] = [new Uint8Array(arguments[0]), arguments[1]];
    import("/sse.js").then(async ({ readEvents }) => {
        const results = [];
        for (let cut = 0; cut <= bytes.length; cut++) {
            const body = new ReadableStream({start(controller) {
                controller.enqueue(bytes.slice(0, cut));
                controller.enqueue(bytes.slice(cut));
                controller.close();
            }});
            const events = [];
            for await (const event of readEvents(body)) events.push(event);
            results.push(JSON.stringify(events));
        }
        done([...new Set(results)].map(JSON.parse));
    }, (error) => done(String(error)));
"""
GROW = """
    const [samples, done] = [arguments[0], arguments[1]];
    import("/markup.js").then(({ MarkupView }) => {
        const show = (text) => {
            const root = document.createElement("div");
            new MarkupView(root).update(text, false);
            return root;
        };
        const results = samples.map((text) => {
            const root = document.createElement("div");
            const view = new MarkupView(root);
            const flickers = [];
            let before = "";
            for (let length = 1; length <= text.length; length++) {
                view.update(text.slice(0, length), true);
                const now = root.textContent;
                if (!now.startsWith(before)) flickers.push([before.slice(-20), now.slice(-20)]);
                before = now;
            }
            view.update(text, false);
            const whole = show(text);
            return [flickers, root.isEqualNode(whole), whole.innerHTML];
        });
        done(results);
    }, (error) => done(String(error)));
"""
# Text → what it becomes, without the attributes that do not matter here.
SAMPLES = {
    "# A\n\n## B ##\n#c": "<h3>A</h3><h4>B</h4><p>#c</p>",
    "**b** *i* ***bi*** `c*d` __b__ _i_": (
        "<p><strong>b</strong> <em>i</em> <strong><em>bi</em></strong> <code>c*d</code> "
        "<strong>b</strong> <em>i</em></p>"
    ),
    "2**3*4, 5 * 3, a_b_c, \\*no\\*, 1. x": "<p>2**3*4, 5 * 3, a_b_c, *no*, 1. x</p>",
    "重点**加粗**内容": "<p>重点<strong>加粗</strong>内容</p>",
    "a\nb\n\nc": "<p>a\nb</p><p>c</p>",
    "- a\n  - b\n- c\n\n3. d\n4. e": (
        "<ul><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ul>"
        '<ol start="3"><li><p>d</p></li><li><p>e</p></li></ol>'
    ),
    "1. x:\n   ```sh\n   a\n\n     b\n   ```\n2. y": (
        "<ol><li><p>x:</p><figure><figcaption><span>sh</span><button>Copy</button></figcaption>"
        "<pre><code>a\n\n  b</code></pre></figure></li><li><p>y</p></li></ol>"
    ),
    "| a | b |\n|---|---|\n| **1** | x\\|y |\nend": (
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr>"
        "<td><strong>1</strong></td><td>x|y</td></tr></tbody></table></div><p>end</p>"
    ),
    "> q\n> - r\n\n---\n~5 | 6": (
        "<blockquote><p>q</p><ul><li><p>r</p></li></ul></blockquote><hr><p>~5 | 6</p>"
    ),
    "```js\nlet a = `b`;\n``\n": (
        "<figure><figcaption><span>js</span><button>Copy</button></figcaption>"
        "<pre><code>let a = `b`;\n``\n</code></pre></figure>"
    ),
    "[1] and [t](https://e.org/a_(b)) [x](javascript:1) http://e.org/.": (
        '<p>[1] and <a href="https://e.org/a_(b)">t</a> [x](javascript:1) '
        '<a href="http://e.org/">http://e.org/</a>.</p>'
    ),
    "A <b> & <script>x</script>": "<p>A &lt;b&gt; &amp; &lt;script&gt;x&lt;/script&gt;</p>",
}
COSTLY = {
    "brackets": "[" * 19_000,
    "stars": "*a " * 6_000,
    "pairs": "**a *b " * 2_800,
    "ticks": "```" + "a``b`" * 3_900,
    "quotes": "> " * 5_000 + "x",
    "lists": "\n".join("  " * depth + "- x" for depth in range(400)),
    "half links": "[a](http://x.y " * 1_200,
    "bars": "|a|" * 6_000 + "\n|",
    "one line": "word " * 200_000,
}
MAX_COST_S = 0.5


def run(page: Any, script: str, *arguments: object) -> Any:
    """Run JavaScript that calls back."""
    page.driver.set_script_timeout(chromium.PATIENCE_S)
    result = page.driver.execute_async_script(script, *arguments)
    assert not isinstance(result, str), result
    return result


def script_s(page: Any) -> float:
    """Return how long the page's thread has computed JavaScript."""
    metrics = page.cdp("Performance.getMetrics")["metrics"]
    return float(next(m["value"] for m in metrics if m["name"] == "ScriptDuration"))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_events_survive_a_cut_after_every_byte(page: Any, line_end: str) -> None:
    lines = [
        ": comment", "data: Grüße 👩‍💻", "", "event: x", "data:one", "data: two", "data", "",
        "id: 7", "retry: 1", "", "data:  spaced", "", "data: [DONE]", "", "data: not ended",
    ]  # fmt: skip
    stream = line_end.join(lines).encode()
    expected = ["Grüße 👩‍💻", "one\ntwo\n", " spaced", "[DONE]"]
    assert run(page, READ_CUT, list(stream)) == [expected]


def test_markup_is_shown_and_does_not_flicker(page: Any) -> None:
    """Each text grows character by character: nothing that was shown may vanish again."""
    results = run(page, GROW, list(SAMPLES))
    for (text, expected), (flickers, is_same, html) in zip(SAMPLES.items(), results, strict=True):
        plain = html
        for name in ("dir", "title", "target", "rel", "tabindex", "type", "class"):
            plain = re.sub(f' {name}="[^"]*"', "", plain)
        assert plain == expected
        assert is_same, f"{text!r} ends otherwise when it comes in pieces"
        assert flickers == [], f"{text!r} flickers"


def test_no_text_makes_the_page_hang(page: Any) -> None:
    script = """
        const [text, done] = [arguments[0], arguments[1]];
        import("/markup.js").then(({ MarkupView }) => {
            const view = new MarkupView(document.createElement("div"));
            view.update(text.slice(0, -1), true);
            view.update(text, false);
            done(0);
        });
    """
    page.cdp("Performance.enable", timeDomain="threadTicks")  # not what other programs take
    costs = {}
    for name, text in COSTLY.items():
        before_s = script_s(page)
        run(page, script, text)
        costs[name] = script_s(page) - before_s
    print(costs)
    assert min(costs.values()) > 0
    assert {name: cost_s for name, cost_s in costs.items() if cost_s > MAX_COST_S} == {}
