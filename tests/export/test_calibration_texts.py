"""What calibration reads: the built-in texts, and the files that people give."""

import hashlib
import itertools
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qwen_edge.export
from qwen_edge.errors import UsageError
from qwen_edge.export import calibration_files
from qwen_edge.export.calibration_texts import CalibrationText, read_calibration, spread_evenly
from qwen_edge.runtime.chat import ChatTemplate, Thinking
from qwen_edge.runtime.text_tokenizer import TextTokenizer

EXPORT = Path(qwen_edge.export.__file__).parent
SHARED_CHARS = 30
PROSE = "The gulls came back in March, when the harbour was still closed. "
CHAT = {
    "messages": [
        {"role": "user", "content": "Where is the key?"},
        {"role": "assistant", "content": "<think>\nUnder the mat?\n</think>\n\nUnder the mat."},
    ]
}
Read = Callable[..., CalibrationText]


@pytest.fixture(scope="module")
def template_source() -> str:
    config = json.loads((EXPORT / "demo" / "tokenizer_config.json").read_text(encoding="utf-8"))
    return str(config["chat_template"])


@pytest.fixture(scope="module")
def read(demo_tokenizer: TextTokenizer, template_source: str) -> Read:
    def run(
        path: Path | None = None, thinking: Thinking = "switchable", **sizes: int
    ) -> CalibrationText:
        template = ChatTemplate(template_source, demo_tokenizer, thinking=thinking)
        return read_calibration(path, demo_tokenizer, template, thinking, **sizes)

    return run


@pytest.fixture
def show(demo_tokenizer: TextTokenizer) -> Callable[[tuple[int, ...]], str]:
    """Return what decodes a sample with its control tokens."""
    names = {i: text.encode() for text, i in demo_tokenizer.added_tokens.items()}

    def run(sample: tuple[int, ...]) -> str:
        parts = [names.get(i) or demo_tokenizer.token_bytes(i) for i in sample]
        return b"".join(parts).decode(errors="replace")  # a sample may end inside a character

    return run


def write_lines(path: Path, *documents: object, fill: int = 40) -> Path:
    """Write documents, and a long text so that there is enough of it."""
    lines = [json.dumps(one, ensure_ascii=False) for one in (*documents, {"text": PROSE * fill})]
    path.write_bytes("\n".join(lines).encode())
    return path


def test_built_in_texts_are_samples_of_many_kinds(read: Read) -> None:
    text = read()
    assert text.source == "built-in"
    assert text.notes == ()
    assert len(text.samples) > 80
    assert text.num_tokens > 15_000
    assert all(2 <= len(sample) <= 512 for sample in text.samples)
    assert len(set(text.samples)) == len(text.samples)


def test_conversations_are_as_the_model_writes_them(
    read: Read, show: Callable[[tuple[int, ...]], str]
) -> None:
    """The last answer has its thought and its end, and no further answer is begun."""
    chats = [text for text in map(show, read(max_tokens=4_096).samples) if "<|im_start|>" in text]
    assert len(chats) == 23
    assert all(text.endswith("<|im_end|>") for text in chats)
    assert any("<think>\nBayes. Prior" in text for text in chats)
    assert any("<think>\n\n</think>\n\nIt stays dry" in text for text in chats)
    assert any("# Tools" in text and '<tool_call>\n{"name": "run_query"' in text for text in chats)
    assert any("<tool_response>\n" in text for text in chats)


def test_a_model_that_never_thinks_reads_no_thoughts(
    read: Read, show: Callable[[tuple[int, ...]], str]
) -> None:
    text = read(thinking="never")
    assert "Bayes. Prior" not in "".join(map(show, text.samples))
    assert text.notes == ()
    assert text.sha256 == read().sha256


def test_without_a_template_there_are_no_conversations(demo_tokenizer: TextTokenizer) -> None:
    text = read_calibration(None, demo_tokenizer, None, "never", max_samples=1_000)
    joined = "".join(demo_tokenizer.decode(sample) for sample in text.samples)
    assert "Bayes. Prior" not in joined
    assert "bicycle shop" in joined


def test_nothing_is_shared_with_what_quality_is_measured_on() -> None:
    def read_all(folder: str, chats: str) -> list[str]:
        texts = []
        for entry in files("qwen_edge.export").joinpath(folder).iterdir():
            content = entry.read_text(encoding="utf-8")
            if entry.name == chats:
                entries = json.loads(content) if chats.endswith(".json") else None
                entries = entries or [json.loads(line) for line in content.splitlines()]
                texts += [m["content"] for one in entries for m in one["messages"]]
            else:
                texts.append(content)
        return texts

    measured = read_all("quality/texts", "chats.json")
    fitted = read_all("calibration_texts", "conversations.jsonl")
    assert len(measured) > 10
    assert len(fitted) > 50
    runs = {text[i : i + SHARED_CHARS] for text in measured for i in range(len(text))}
    shared = {
        part
        for text in fitted
        for i in range(len(text) - SHARED_CHARS + 1)
        if (part := text[i : i + SHARED_CHARS]) in runs
    }
    assert shared == set()


def test_plain_text_is_cut_and_nothing_is_lost(
    tmp_path: Path, read: Read, demo_tokenizer: TextTokenizer
) -> None:
    path = tmp_path / "möwen.md"
    content = "".join(f"Line {i}. {PROSE}\r\n" for i in range(60))
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    text = read(path, max_tokens=100)
    joined = [token for sample in text.samples for token in sample]
    expected = demo_tokenizer.encode(content.replace("\r\n", "\n"))
    assert joined == expected[: len(joined)]
    assert len(expected) - len(joined) < 16
    assert text.source == "möwen.md"
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(text.notes) == 1
    assert f"has {len(text.samples)} samples" in text.notes[0]
    assert "128 were asked for" in text.notes[0]


def test_a_last_piece_that_is_hardly_any_is_left_out(
    tmp_path: Path, read: Read, demo_tokenizer: TextTokenizer
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(PROSE * 40, encoding="utf-8")
    num_tokens = len(demo_tokenizer.encode(PROSE * 40))
    whole = num_tokens // 4
    assert [len(sample) for sample in read(path, max_tokens=whole - 2).samples] == [whole - 2] * 4
    tail = num_tokens - 4 * (whole - 10)
    assert [len(sample) for sample in read(path, max_tokens=whole - 10).samples][4:] == [tail]


def test_more_than_needed_is_taken_evenly(
    tmp_path: Path, read: Read, show: Callable[[tuple[int, ...]], str]
) -> None:
    """Of a huge text only so much is turned into tokens as makes the samples."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{i:05} {PROSE}\n" for i in range(4_000)), encoding="utf-8")
    for max_tokens in (128, 4_096):  # the second leaves no stretch that is not read
        text = read(path, max_samples=8, max_tokens=max_tokens)
        assert [len(sample) for sample in text.samples] == [max_tokens] * 8
        assert len(text.notes) == 1
        assert text.notes[0].startswith(f"8 samples of at most {max_tokens:,} tokens were taken")
    starts = [int(show(sample)[:5]) for sample in read(path, max_samples=8, max_tokens=128).samples]
    assert starts == [0, *range(501, 4_000, 500)]


def test_more_documents_than_needed_are_taken_evenly(
    tmp_path: Path, read: Read, show: Callable[[tuple[int, ...]], str]
) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{i:03} {PROSE * 9}"}) for i in range(100)))
    text = read(path, max_samples=4)
    assert [int(show(sample)[:3]) for sample in text.samples] == [12, 37, 62, 87]
    assert "4 samples" in text.notes[0]


def test_every_form_of_a_document(
    tmp_path: Path, read: Read, show: Callable[[tuple[int, ...]], str]
) -> None:
    tool = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}
    path = write_lines(
        tmp_path / "all.JSONL",
        CHAT,
        {"prompt": "Where is the lamp?", "completion": "On the table.", "id": 7},
        {"prompt": [{"role": "user", "content": "A?"}], "completion": [CHAT["messages"][1]]},
        {"text": "Two\u2028lines <|im_start|>"},
        {
            "messages": [
                CHAT["messages"][0],
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "mat"},
            ],
            "tools": [tool],
        },
    )
    samples = read(path).samples
    end = "<|im_end|>"
    thought = "<think>\nUnder the mat?\n</think>\n\nUnder the mat."
    asked = f"<|im_start|>user\nWhere is the key?{end}\n<|im_start|>assistant\n"
    assert show(samples[0]) == f"{asked}{thought}{end}"
    assert show(samples[1]) == (
        f"<|im_start|>user\nWhere is the lamp?{end}\n"
        f"<|im_start|>assistant\n<think>\n\n</think>\n\nOn the table.{end}"
    )
    assert show(samples[2]) == f"<|im_start|>user\nA?{end}\n<|im_start|>assistant\n{thought}{end}"
    assert show(samples[3]) == "Two\u2028lines <|im_start|>"
    assert len(samples[3]) > 8  # a text about a control token, not the token
    assert '"name": "find"' in show(samples[4])
    assert f'{asked}<tool_call>\n{{"name": "find", "arguments": {{"x": 1}}}}' in show(samples[4])
    assert show(samples[4]).endswith("</tool_response><|im_end|>\n<|im_start|>assistant\n")


def test_a_list_of_documents_and_a_model_without_thoughts(
    tmp_path: Path, read: Read, show: Callable[[tuple[int, ...]], str]
) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([CHAT, {"text": PROSE * 40}], indent=1), encoding="utf-8")
    text = read(path, thinking="never")
    assert show(text.samples[0]).count("Under the mat") == 1
    assert "thoughts in 'list.json' were left out" in text.notes[0]


def test_a_pair_needs_no_template_but_a_conversation_does(
    tmp_path: Path, demo_tokenizer: TextTokenizer
) -> None:
    pair = {"prompt": "Where is the lamp? ", "completion": "On the table."}
    path = write_lines(tmp_path / "a.jsonl", pair)
    text = read_calibration(path, demo_tokenizer, None, "never")
    assert demo_tokenizer.decode(text.samples[0]) == "Where is the lamp? On the table."
    path = write_lines(tmp_path / "b.jsonl", pair, CHAT)
    with pytest.raises(
        UsageError, match=r"Line 2 of 'b.jsonl' is a conversation.*no chat template"
    ):
        read_calibration(path, demo_tokenizer, None, "never")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty|have 1 tokens|have 2 tokens"),
        (b"too short", "in all; fewer than 512"),
        ("Grüße ".encode("latin-1") * 200, r"not UTF-8 \(byte 2 is 0xFC\)"),
        (b"GGUF\0\0\0\x03" * 100, "NUL at byte 4"),
        ((PROSE * 50).encode("utf-16"), "NUL at byte"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, read: Read, content: bytes, problem: str
) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=problem):
        read(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "a"', "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"text": ' + "1" * 5_000 + "}", "line 2 is not JSON"),
        ("[1]", "line 2: it is a JSON list; expected an object"),
        ('{"txt": "a"}', "line 2: it has no 'messages'.*found 'txt'"),
        ('{"prompt": "a"}', "line 2: it has no 'messages'"),
        ('{"prompt": "a", "completion": []}', "line 2: it has no 'messages'"),
        ('{"messages": {}}', "line 2: its messages are a JSON object"),
        ('{"messages": []}', "line 2: The conversation is empty"),
        ('{"messages": [{"role": "usr", "content": ""}]}', r"the role 'usr'.*mean 'user'"),
        ('{"messages": [{"role": "tool", "content": ""}]}', "no tool call comes before it"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content of type int"),
        ('{"text": "\\ud800"}', "line 2: The text holds the lone surrogate"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": {}}', "its tools are no list"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}', "line 2.*no name"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, read: Read, line: str, problem: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"text": "{PROSE * 40}"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=problem) as caught:
        read(path)
    assert "'lines.jsonl' cannot be read in 1 place" in caught.value.problem


def test_all_malformed_lines_are_counted(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("no\n" * 20, encoding="utf-8")
    with pytest.raises(UsageError, match=r"in 20 places: line 1 is.*; line 8 is.*; and 12 more"):
        read(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{\n", "'a.json' is not JSON .line 2"),
        ('{"text": "a"}', "is a JSON object; expected a list"),
        ('[{"text": "a"}, 7]', "entry 2: it is a JSON number; expected an object"),
    ],
)
def test_a_malformed_list_is_refused(
    tmp_path: Path, read: Read, content: str, problem: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=problem):
        read(path)


def test_what_the_template_refuses_is_named(tmp_path: Path, demo_tokenizer: TextTokenizer) -> None:
    source = (
        "{{ raise_exception('only one message') if messages|length > 1 }}{{ messages[0].role }}"
    )
    path = write_lines(tmp_path / "a.jsonl", CHAT)
    with pytest.raises(UsageError, match=r"does not take line 1 of 'a.jsonl': .*only one message"):
        read_calibration(path, demo_tokenizer, ChatTemplate(source, demo_tokenizer), "never")


def test_too_few_samples_and_a_missing_or_huge_file(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"nowhere.*cannot be read"):
        read(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="max_samples is 0"):
        read(max_samples=0)
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({"text": PROSE * 4}) for _ in range(100)))
    with pytest.raises(UsageError, match="fewer than 512") as caught:
        read(path, max_samples=2)
    assert "take more than 2 samples" in caught.value.fix
    monkeypatch.setattr(calibration_files, "MAX_FILE_BYTES", 1_000)
    with pytest.raises(UsageError, match=r"at most 1.0 kB are read"):
        read(path)


@given(st.integers(0, 300), st.integers(1, 40))
def test_an_even_spread_is_even(size: int, count: int) -> None:
    """In order, without repeats, its ends left out alike, its gaps equal but for one."""
    taken = spread_evenly(range(size), count)
    assert len(taken) == min(size, count)
    assert taken == sorted(set(taken))
    if size <= count:
        return
    gaps = [b - a for a, b in itertools.pairwise(taken)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert abs(taken[0] - (size - 1 - taken[-1])) <= 1
