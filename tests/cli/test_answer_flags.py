"""Options about the answer: what they refuse before a model is loaded, and what they do."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.session import Session
from qwen_edge.runtime.text_model import TextModel

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: tools and schemas, right and wrong ones."""
    folder = tmp_path / "Ablage ü"
    folder.mkdir()
    for name, text in {
        "tools.json": json.dumps([WEATHER]),
        "twice.json": json.dumps([WEATHER, WEATHER]),
        "broken.json": "[{",
        "empty.json": "[]",
        "schema.json": '{"type": "object", "properties": {"ok": {"type": "boolean"}}}',
        "deep.json": '{"not": ' * 2_000 + "{}" + "}" * 2_000,
        "grammar.lark": 'start: "yes" | "no"',
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin1.json").write_bytes(b'{"title": "gr\xfc\xdfe"}')
    (folder / "utf16.json").write_text('{"type": "integer"}', encoding="utf-16")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json-schema", "schema.json", "--regex", "a"], "--json-schema and --regex were given"),
        (["--json-object", "--choice", "a"], "--json-object and --choice were given"),
        (["--json-schema", "none.json"], "'none.json' cannot be read: No such file"),
        (["--json-schema", "."], "'.' cannot be read: Is a directory"),
        (["--json-schema", "latin1.json"], "not text in UTF-8: byte 0xfc"),
        (["--json-schema", '{"type": '], "--json-schema is no JSON"),
        (["--json-schema", "empty.json"], "--json-schema is a JSON list; expected an object"),
        (["--json-schema", "deep.json"], "nested too deeply"),
        (["--regex", ""], "regex got ''"),
        (["--regex", "a\udcff"], "--regex is not UTF-8"),
        (["--choice", ""], "choice got ''"),
        (["--grammar", "none.lark"], "'none.lark' cannot be read"),
        (["--thinking-budget", "9", "--no-think"], "thinking_budget is 9, but thinking is"),
        (["--thinking-budget", "-1"], "thinking_budget is -1"),
        (["--on-overflow", "drop"], "--on-overflow: 'drop' is not one of"),
        (["--sampling", "typical_p=2"], "typical_p is 2; expected a number"),
        (["--sampling", "typcal_p=0.9"], "no setting 'typcal_p'. Did you mean 'typical_p'?"),
        (["--sampling", "typical_p"], "expected NAME=VALUE"),
        (["--sampling", "typical_p=much"], "is no JSON"),
        (["--sampling", "top_p=0.9"], "top_p has an option of its own"),
        (["--sampling", 'logit_bias={"a": 1}'], "logit_bias"),
        (["--tools", "broken.json"], "--tools 'broken.json' is no JSON"),
        (["--tools", "empty.json"], "holds an empty list"),
        (["--tools", "schema.json"], "holds a JSON dict; expected a list"),
        (["--tools", "twice.json"], "'get_weather' is there 2 times"),
        (["--tools", "tools.json", "--json-object"], "may also be a tool call"),
        (["--tool-choice", "required"], "no tools to choose from"),
        (["--logprobs", "2"], "--logprobs shows its result in JSON only"),
        (["--logprobs", "5000", "--json"], "num_logprobs is 5000"),
        (["-n", "2"], "-n shows its result in JSON only"),
        (["-n", "0", "--json"], "-n: 0 is not in the range"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_no_model_could_do_is_refused_before_loading(
    cli: Any, fake_package: Any, files: Path, arguments: list[str], words: str
) -> None:
    package = fake_package("No.")
    outcome = cli("run", package.folder, "x", *arguments)
    assert (outcome.code, outcome.out, package.models) == (2, "", [])
    if "--json" in arguments:
        error = json.loads(outcome.err)
        assert words in error["problem"] and error["fix"]
    else:
        first, second = outcome.err.splitlines()[:2]
        assert first.startswith("Error: ") and words in first
        assert second.startswith("Fix: ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--draft", "{folder}"], 2, "--draft is the package itself"),
        (["--draft", "{folder}/../fake package ü"], 2, "--draft is the package itself"),
        (["--draft", "{folder}x"], 3, "Did you mean 'fake package ü'?"),
        (["--draft", ".", "--no-speculate"], 2, "--no-speculate forbids guessing"),
    ],
    ids=["itself", "itself-by-another-way", "typo", "contradiction"],
)
def test_a_draft_that_makes_no_sense_is_refused_before_loading(
    cli: Any, fake_package: Any, arguments: list[str], code: int, words: str
) -> None:
    package = fake_package("No.")
    filled = [argument.format(folder=package.folder) for argument in arguments]
    outcome = cli("run", package.folder, "x", *filled)
    assert (outcome.code, outcome.out, package.models) == (code, "", [])
    assert words in outcome.err


def test_a_draft_reaches_the_loader(cli: Any, fake_package: Any, files: Path) -> None:
    package = fake_package("Yes.")
    assert cli("run", package.folder, "x", "--draft", files).code == 0
    assert package.options[0]["draft"] == files


@pytest.mark.parametrize(
    ("arguments", "answer", "expected"),
    [
        (["--json-schema", "schema.json"], '{"ok": true}', '{"ok": true}'),
        (["--json-schema", "utf16.json"], "12", "12"),
        (["--json-schema", '{"enum": ["a"]}'], "free text", '"a"'),
        (["--regex", "[0-9]{3}"], "12345", "123"),
        (["--choice", "blau", "--choice", "größer"], "größer", "größer"),
        (["--grammar", "grammar.lark"], "no", "no"),
    ],
    ids=["schema", "utf-16", "inline", "regex", "choice", "grammar"],
)
def test_the_answer_has_the_form_asked_for(
    cli: Any, fake_package: Any, files: Path, arguments: list[str], answer: str, expected: str
) -> None:
    outcome = cli("run", fake_package(answer).folder, "x", *arguments)
    assert (outcome.code, outcome.out) == (0, expected + "\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--regex", "(a"], "unclosed group"),
        (["--grammar", "schema.json"], "expected Lark rules"),
        (["--json-schema", '{"type": "objct"}'], "objct"),
    ],
    ids=["regex", "grammar", "schema"],
)
def test_a_form_that_is_none_is_refused_before_the_first_token(
    cli: Any, fake_package: Any, files: Path, arguments: list[str], words: str
) -> None:
    package = fake_package("No.")
    outcome = cli("run", package.folder, "x", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err and "\nFix: " in outcome.err
    assert not package.models[0].backend.cached_ids


def test_calls_are_the_result_one_line_each(cli: Any, fake_package: Any, files: Path) -> None:
    answer = f"I look it up.{PARIS}\n{PARIS.replace('Paris', 'Köln')}"
    outcome = cli("run", fake_package(answer).folder, "x", "--tools", "tools.json")
    assert outcome.code == 0
    calls = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(call["name"], call["arguments"]) for call in calls] == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "Köln"}),
    ]
    assert calls[0]["id"] != calls[1]["id"]
    assert "I look it up." in outcome.err


def test_without_a_call_the_text_is_the_result(cli: Any, fake_package: Any, files: Path) -> None:
    options = ("--tools", "tools.json")
    outcome = cli("run", fake_package("It rains.").folder, "x", *options)
    assert (outcome.code, outcome.out) == (0, "It rains.\n")


def test_a_call_that_is_cut_off_is_text_and_said(cli: Any, fake_package: Any, files: Path) -> None:
    options = ("--tools", "tools.json", "--max-new-tokens", "30")
    outcome = cli("run", fake_package(PARIS).folder, "x", *options)
    assert outcome.code == 0
    assert outcome.out.startswith("<tool_call>")
    assert "cut off by the length limit in the middle of a tool call" in outcome.err


def test_a_choice_of_tool_is_checked_against_the_tools(
    cli: Any, fake_package: Any, files: Path
) -> None:
    options = ("--tools", "tools.json", "--tool-choice")
    outcome = cli("run", fake_package(PARIS).folder, "x", *options, "get_wether")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Did you mean 'get_weather'?" in outcome.err
    outcome = cli("run", fake_package(PARIS).folder, "x", *options, "get_weather")
    assert json.loads(outcome.out)["name"] == "get_weather"


def test_calls_in_json(cli: Any, fake_package: Any, files: Path) -> None:
    options = ("--tools", "tools.json", "--json")
    outcome = cli("run", fake_package(PARIS).folder, "x", *options)
    data = json.loads(outcome.out)
    assert data["finish_reason"] == "tool_calls"
    [call] = data["tool_calls"]
    assert (call["name"], call["arguments"]) == ("get_weather", {"city": "Paris"})


def test_the_seed_is_told_and_repeats_the_answer(cli: Any, fake_package: Any) -> None:
    package = fake_package("x")
    flat = ("--temperature", "100", "--top-k", "0", "--top-p", "1", "--max-new-tokens", "12")
    first = json.loads(cli("run", package.folder, "x", *flat, "--json").out)
    again = cli("run", package.folder, "x", *flat, "--json", "--seed", str(first["seed"]))
    assert json.loads(again.out)["answer"] == first["answer"]
    assert json.loads(again.out)["seed"] == first["seed"]
    other = json.loads(cli("run", package.folder, "x", *flat, "--json").out)
    assert other["seed"] != first["seed"]


def test_several_answers_have_seeds_of_their_own(cli: Any, fake_package: Any) -> None:
    options = ("--json", "-n", "2", "--seed", "5")
    outcome = cli("run", fake_package("Yes.").folder, "x", *options)
    assert [(each["answer"], each["seed"]) for each in json.loads(outcome.out)] == [
        ("Yes.", 5),
        ("Yes.", 6),
    ]


def test_log_probabilities_are_shown_for_each_token(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package("Yes").folder, "x", "--json", "--logprobs", "2")
    tokens = json.loads(outcome.out)["logprobs"]
    assert [token["token"] for token in tokens[:3]] == ["Y", "e", "s"]
    assert tokens[0]["logprob"] == tokens[0]["top"][0]["logprob"] > tokens[0]["top"][1]["logprob"]


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the settings that each stream is given, None for the package's."""
    given: list[Any] = []
    stream = Session.stream

    def spy(self: Session, prompt: Any, **options: Any) -> Any:
        given.append({**self._defaults, **options}.get("sampling"))
        return stream(self, prompt, **options)

    monkeypatch.setattr(Session, "stream", spy)
    return given


def test_settings_reach_the_sampler_over_the_packages_own(
    cli: Any, fake_package: Any, sampling: list[Any]
) -> None:
    rare = ("--sampling", "dry-multiplier=0.8", "--sampling", 'logit_bias={"5": 3, "6": -1}')
    outcome = cli("run", fake_package("Yes.").folder, "x", "--min-p", "0.1", *rare)
    assert outcome.code == 0
    [params] = sampling
    assert params == {"min_p": 0.1, "dry_multiplier": 0.8, "logit_bias": {5: 3, 6: -1}}


def test_settings_follow_a_soft_switch_in_the_prompt(
    cli: Any, fake_package: Any, sampling: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one setting given, the others are still those of the mode the model will be in."""
    asked = []

    def defaults(self: Any, thinking: bool | None = None) -> SamplingParams:
        asked.append(thinking)
        return SamplingParams()

    monkeypatch.setattr(TextModel, "sampling_defaults", defaults)
    folder = fake_package("Yes.").folder
    for arguments in (["x"], ["x /no_think"], ["x", "--no-think"]):
        cli("run", folder, *arguments, "--min-p", "0.1")
    assert asked == [True, False, False]


def test_without_settings_the_packages_own_hold(
    cli: Any, fake_package: Any, sampling: list[Any]
) -> None:
    assert cli("run", fake_package("Yes.").folder, "x").code == 0
    assert sampling == [{}]
