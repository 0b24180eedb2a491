"""`qwen-edge run` with a scripted model: prompts, output, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli.output import Output
from qwen_edge.cli.texts import read_standard_input

THINKING = "<think>\nLet me see.\n</think>\n\nIt is blue."


def test_the_answer_goes_to_stdout_and_figures_to_stderr(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package("It is blue.").folder, "Why?")
    assert outcome.code == 0
    assert outcome.out == "It is blue.\n"
    assert "tokens" in outcome.err and "prompt tokens computed" in outcome.err


def test_reasoning_goes_to_stderr(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package(THINKING).folder, "Why?", "--think")
    assert (outcome.code, outcome.out) == (0, "It is blue.\n")
    assert "Let me see." in outcome.err


def test_quiet_leaves_the_answer_only(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package(THINKING).folder, "Why?", "--think", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "It is blue.\n", "")


def test_json_is_one_document_with_figures(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package(THINKING).folder, "Why?", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    assert data["answer"] == "It is blue."
    assert data["reasoning"].strip() == "Let me see."
    assert data["finish_reason"] == "stop"
    assert data["new_tokens"] > 0
    assert data["backend"] == "fake"


@pytest.mark.parametrize("command", ["run", "chat"])
@pytest.mark.parametrize(
    ("arguments", "backend", "device"),
    [
        ([], "auto", "auto"),
        (["--backend", "onnx"], "onnx", "auto"),
        (["--backend", "OpenVINO", "--device", "gpu"], "openvino", "GPU"),
        (["--device", "dmlexecutionprovider"], "auto", "DmlExecutionProvider"),
    ],
    ids=["default", "onnx", "case", "provider"],
)
def test_backend_and_device_reach_the_loader(
    cli: Any, fake_package: Any, command: str, arguments: list[str], backend: str, device: str
) -> None:
    package = fake_package("Fine.")
    outcome = cli(command, package.folder, *arguments, stdin="Hello\n")
    assert (outcome.code, outcome.out) == (0, "Fine.\n")
    [options] = package.options
    assert (options["backend"], options["device"]) == (backend, device)


def prompt_of(package: Any) -> str:
    """Return what the model was asked, as the tokenizer reads it back."""
    model = package.models[-1]
    text: str = model.tokenizer.decode(model.backend.cached_ids)
    return text


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["Why?"], b"", "Why?"),
        ([], b"Why so?\n", "Why so?"),
        (["Sum up:"], b"one\ntwo\n\n", "Sum up:\n\none\ntwo"),
        ([""], b"from the pipe", "from the pipe"),
        (["kept"], b" \n ", "kept"),
        ([], b"\xef\xbb\xbfwith a mark", "with a mark"),
        ([], "größer\r\n".encode("utf-16"), "größer"),
    ],
    ids=["argument", "pipe", "both", "empty-argument", "blank-pipe", "utf-8-mark", "utf-16"],
)
def test_the_prompt_comes_from_argument_and_pipe(
    cli: Any, fake_package: Any, arguments: list[str], stdin: bytes, expected: str
) -> None:
    package = fake_package("Yes.")
    outcome = cli("run", package.folder, *arguments, stdin=stdin)
    assert (outcome.code, outcome.out) == (0, "Yes.\n")
    assert f"user\n{expected}" in prompt_of(package).replace("<|im_start|>", "")


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        ([], b"", 2, "There is no prompt: none was given"),
        ([""], b"", 2, "There is no prompt: it is empty"),
        ([" \n"], b"", 2, "There is no prompt: it is empty"),
        ([], b"\x7fELF\xd0", 2, "not text in UTF-8: byte 0xd0 at position 4"),
        ([], b"a\0b", 2, "Standard input holds a NUL at character 1"),
        (["a\0b"], b"", 2, "The prompt holds a NUL at character 1"),
        (["x\udcff"], b"", 2, "the byte 0xff at character 1"),
        (["x\ud83d"], b"", 2, "U+D83D at character 1"),
        (["x", "y", "z"], b"", 2, "More arguments than expected: y z"),
        (["x", "--max-new-tokens", "0"], b"", 2, "max_new_tokens is 0"),
        (["x", "--temperature", "-1"], b"", 2, "temperature is -1.0"),
        (["x", "--temperature", "nan"], b"", 2, "temperature is nan"),
        (["x", "--top-p", "0"], b"", 2, "top_p is 0.0"),
        (["x", "--top-k", "-1"], b"", 2, "top_k is -1"),
        (["x", "--top-k", "few"], b"", 2, "--top-k: 'few' is not a whole number"),
        (["x", "--min-p", "2"], b"", 2, "min_p is 2.0"),
        (["x", "--seed", "-1"], b"", 2, "seed is -1"),
        (["x", "--threads", "0"], b"", 2, "threads is 0"),
        (["x", "--stop", ""], b"", 2, "Stop string 1"),
        (["x", "--system", "y\udcff"], b"", 2, "--system is not UTF-8"),
        (["x", "--device", "NPUU"], b"", 2, "Unknown device 'NPUU'. Did you mean 'NPU'?"),
        (["x", "--device", "DlmExecutionProvider"], b"", 2, "Did you mean 'DmlExecutionProvider'?"),
        (["x", "--backend", "onx"], b"", 2, "backend is 'onx'. Did you mean 'onnx'?"),
        (["x", "--sed", "1"], b"", 2, "no option '--sed'. Did you mean '--seed'?"),
        (["x" * 5000], b"", 7, "5,0"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_refusals_say_what_and_what_to_do(
    cli: Any, fake_package: Any, arguments: list[str], stdin: bytes, code: int, words: str
) -> None:
    package = fake_package("Never said.")
    outcome = cli("run", package.folder, *arguments, stdin=stdin)
    assert outcome.code == code
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert lines[0].startswith("Error: ") and words in lines[0]
    assert lines[1].startswith("Fix: ")
    assert "Traceback" not in outcome.err
    assert package.models == [] or code == 7  # refused before a model is loaded


def test_with_json_a_refusal_is_one_line_of_json(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package("No.").folder, "x", "--temperature", "9e9", "--json")
    assert (outcome.code, outcome.out) == (2, "")
    [line] = outcome.err.splitlines()
    error = json.loads(line)
    assert error["error"] == "UsageError"
    assert error["facts"]["field"] == "temperature"
    assert error["exit_code"] == 2 and error["fix"]


def test_a_wrong_option_is_json_too(cli: Any) -> None:
    outcome = cli("run", "--json", "--sed", "1")
    assert (outcome.code, outcome.out) == (2, "")
    assert json.loads(outcome.err)["problem"].startswith("There is no option '--sed'")


def test_a_prompt_after_two_dashes_is_no_option(cli: Any, fake_package: Any) -> None:
    package = fake_package("Fine.")
    outcome = cli("run", package.folder, "--", "--json")
    assert (outcome.code, outcome.out) == (0, "Fine.\n")
    assert "user\n--json" in prompt_of(package).replace("<|im_start|>", "")
    outcome = cli("run", package.folder, "--seed", "-1", "--", "--json")
    assert outcome.err.startswith("Error: seed is -1")


def test_too_much_input_is_refused_without_being_kept(
    cli: Any, fake_package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "qwen_edge.cli.texts.read_standard_input.__kwdefaults__", {"max_bytes": 1_000}
    )
    outcome = cli("run", fake_package("No.").folder, stdin=b"a" * 1_001)
    assert (outcome.code, outcome.out) == (7, "")
    assert "more than 1.0 kB" in outcome.err


def test_a_closed_stdin_is_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert read_standard_input(Output(), "") == ""


def test_stop_ends_the_answer(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package("one two three").folder, "Count", "--stop", " three")
    assert (outcome.code, outcome.out) == (0, "one two\n")


def test_a_cut_off_answer_says_so(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package("one two three").folder, "Count", "--max-new-tokens", "3")
    assert (outcome.code, outcome.out) == (0, "one\n")
    assert "cut off by the length limit" in outcome.err


@pytest.mark.parametrize("command", ["run", "chat", "verify"])
@pytest.mark.parametrize(
    ("make", "words", "fix"),
    [
        (lambda folder: None, "There is no folder", "qwen-edge export"),
        (lambda folder: folder.write_text("x"), "is a file; a model package is a folder", "give"),
        (lambda folder: folder.mkdir(), "the folder is empty", "qwen-edge export"),
        (
            lambda folder: (folder.mkdir(), (folder / "model.safetensors").touch()),
            "it holds a checkpoint, which must be exported first",
            "qwen-edge export",
        ),
    ],
    ids=["missing", "file", "empty", "checkpoint"],
)
def test_what_is_no_package_is_refused(
    cli: Any,
    tmp_path: Path,
    command: str,
    make: Callable[[Path], object],
    words: str,
    fix: str,
) -> None:
    folder = tmp_path / "mein Modell ü"
    make(folder)
    outcome = cli(command, folder, *(["x"] if command == "run" else []))
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("Error: ") and words in outcome.err
    assert "mein Modell ü" in outcome.err
    assert f"Fix: {fix}" in outcome.err or fix in outcome.err.split("Fix: ")[1]


@pytest.mark.parametrize("model", ["Qwen/Qwen3-4B", "demo"])
def test_a_models_name_is_no_package(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli("run", model, "x")
    assert (outcome.code, outcome.out) == (3, "")
    assert "reads like the name of a model" in outcome.err
    assert f"Fix: qwen-edge export {model}" in outcome.err


def test_a_mistyped_package_is_suggested(cli: Any, fake_package: Any) -> None:
    outcome = cli("run", fake_package("No.").folder.replace("fake", "fkae"), "x")
    assert (outcome.code, outcome.out) == (3, "")
    assert "Did you mean 'fake package ü'?" in outcome.err
