"""Tokenizer files of a package: complete, the same in every run, and right."""

import hashlib
import importlib
import json
import lzma
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from qwen_edge.errors import CheckpointError, MissingExtraError, ParityError
from qwen_edge.export import tokenizer_files
from qwen_edge.export.tokenizer_agreement import (
    ORDINARY_TEXTS,
    UNUSUAL_TEXTS,
    Disagreement,
    check_ordinary,
    find_disagreements,
)
from qwen_edge.export.tokenizer_files import TokenizerReport, write_tokenizer_files

ROOT = Path(__file__).parents[2]
DEMO = Path(tokenizer_files.__file__).parent / "demo"
DEMO_VOCAB = int(json.loads((DEMO / "config.json").read_text(encoding="utf-8"))["vocab_size"])
QWEN3 = ROOT / "tests" / "data" / "qwen3_tokenizer"
OPENVINO_FILES = (
    "openvino_detokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_tokenizer.xml",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the demo model's tokenizer, to be changed by a test."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def write(source: Path, output: Path, vocab_size: int = DEMO_VOCAB) -> TokenizerReport:
    return write_tokenizer_files(source, output, vocab_size=vocab_size)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def change_config(source: Path, **values: object) -> None:
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(config), encoding="utf-8")


def read_rt_info(folder: Path, name: str) -> dict[str, Any]:
    ov = importlib.import_module("openvino")
    model = ov.Core().read_model(folder / f"{name}.xml")
    return {key: model.get_rt_info(key).value for key in model.get_rt_info()}


# --- what is written


def test_every_file_is_written(source: Path, output: Path) -> None:
    report = write(source, output)
    assert sorted(digests(output)) == [
        "chat_template.jinja",
        *OPENVINO_FILES,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (output / name).read_bytes() == (source / name).read_bytes()
    assert report.disagreements == ()
    assert report.chat_template_from == "tokenizer_config.json"
    assert 0 < report.num_ids <= DEMO_VOCAB


def test_other_programs_find_what_they_need_inside_the_converted_tokenizer(
    source: Path, output: Path
) -> None:
    write(source, output)
    info = read_rt_info(output, "openvino_tokenizer")
    assert info["chat_template"] == (output / "chat_template.jinja").read_text(encoding="utf-8")
    end = Tokenizer.from_file(str(output / "tokenizer.json")).token_to_id("<|im_end|>")
    assert int(info["eos_token_id"]) == end
    text = (output / "openvino_tokenizer.xml").read_text(encoding="utf-8")
    assert str(output) not in text
    assert str(source) not in text


def test_genai_loads_the_files(source: Path, output: Path) -> None:
    genai = pytest.importorskip("openvino_genai")
    write(source, output)
    tokenizer = genai.Tokenizer(str(output))
    original = Tokenizer.from_file(str(output / "tokenizer.json"))
    encoded = tokenizer.encode("<|im_start|>user\nHallo<|im_end|>").input_ids.data[0].tolist()
    assert encoded == original.encode("<|im_start|>user\nHallo<|im_end|>").ids
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.get_eos_token() == "<|im_end|>"


def test_two_runs_write_the_same_bytes(source: Path, output: Path, tmp_path: Path) -> None:
    """OpenVINO numbers nodes from the start of the process; the names must not show it."""
    again = tmp_path / "again"
    again.mkdir()
    write(source, output)
    write(source, again)
    assert digests(output) == digests(again)


SCRIPT = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from qwen_edge.export.tokenizer_files import write_tokenizer_files
write_tokenizer_files(Path(sys.argv[1]), Path(sys.argv[2]), vocab_size=int(sys.argv[3]))
"""


def test_a_process_without_torch_writes_the_same_bytes_in_silence(
    source: Path, output: Path, tmp_path: Path
) -> None:
    write(source, output)
    other = tmp_path / "other"
    other.mkdir()
    roots = [str(ROOT / top) for top in ("export", "runtime", "profiles")]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), str(other), str(DEMO_VOCAB)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots), "PYTHONHASHSEED": "5"},
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert digests(other) == digests(output)


def test_the_full_qwen3_tokenizer(tmp_path: Path, output: Path) -> None:
    source = tmp_path / "qwen3"
    source.mkdir()
    with lzma.open(QWEN3 / "tokenizer.json.xz") as packed:
        (source / "tokenizer.json").write_bytes(packed.read())
    shutil.copyfile(QWEN3 / "tokenizer_config.json", source / "tokenizer_config.json")
    report = write(source, output, vocab_size=151_936)
    assert report == TokenizerReport(151_669, "tokenizer_config.json", ())


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")  # transformers'
def test_vocabulary_and_merges_become_a_tokenizer(source: Path, output: Path) -> None:
    """Older fine-tunes have vocab.json and merges.txt only."""
    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    original = Tokenizer.from_file(str(source / "tokenizer.json"))
    (source / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    (source / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (source / "tokenizer.json").unlink()
    assert write(source, output).disagreements == ()
    built = Tokenizer.from_file(str(output / "tokenizer.json"))
    for text in (*ORDINARY_TEXTS, *UNUSUAL_TEXTS):
        assert built.encode(text).ids == original.encode(text).ids


def test_without_a_config_the_essentials_are_written(source: Path, output: Path) -> None:
    (source / "tokenizer_config.json").unlink()
    report = write(source, output)
    assert report.chat_template_from is None
    assert not (output / "chat_template.jinja").exists()
    config = json.loads((output / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.trust("T-IN-15")
def test_code_of_the_checkpoint_is_never_run(source: Path, output: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    change_config(
        source,
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    )
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass EvilTokenizer: pass\n"
    (source / "evil.py").write_text(code, encoding="utf-8")
    write(source, output)
    assert not canary.exists()
    assert not (output / "evil.py").exists()


def test_a_changed_tokenizer_is_converted_as_it_is(source: Path, output: Path) -> None:
    """The class that AutoTokenizer picks would put Qwen's own normaliser back."""
    path = source / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["normalizer"] == {"type": "NFC"}
    path.write_text(json.dumps(content | {"normalizer": None}), encoding="utf-8")
    assert write(source, output).disagreements == ()


# --- chat templates


@pytest.mark.parametrize(
    ("files", "in_config", "expected"),
    [
        ({}, "config", ("config", "tokenizer_config.json")),
        ({"chat_template.jinja": "file ü\r\n"}, "config", ("file ü\r\n", "chat_template.jinja")),
        (
            {"chat_template.json": '{"chat_template": "old"}'},
            None,
            ("old", "chat_template.json"),
        ),
        ({"chat_template.json": "{}"}, "config", ("config", "tokenizer_config.json")),
        (
            {},
            [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "main"}],
            ("main", "tokenizer_config.json"),
        ),
        ({}, [{"name": "tool_use", "template": "tools"}], ("tools", "tokenizer_config.json")),
        ({}, [{"name": "rag", "template": "only"}], ("only", "tokenizer_config.json")),
        ({}, None, (None, None)),
    ],
)
def test_where_the_chat_template_comes_from(
    source: Path,
    output: Path,
    files: dict[str, str],
    in_config: object,
    expected: tuple[str | None, str | None],
) -> None:
    change_config(source, chat_template=in_config)
    for name, text in files.items():
        (source / name).write_bytes(text.encode())
    report = write(source, output)
    path = output / "chat_template.jinja"
    written = path.read_bytes().decode() if path.exists() else None
    assert (written, report.chat_template_from) == expected
    info = read_rt_info(output, "openvino_tokenizer")
    assert info.get("chat_template") == (None if written is None else written)


@pytest.mark.parametrize("value", [7, {}, [], [{"name": "x"}], ["text"]])
def test_odd_chat_templates_are_refused(source: Path, output: Path, value: object) -> None:
    change_config(source, chat_template=value)
    with pytest.raises(CheckpointError, match="expected a text or a list of named texts"):
        write(source, output)


def test_a_chat_template_in_another_encoding_is_refused(source: Path, output: Path) -> None:
    (source / "chat_template.jinja").write_bytes("ü".encode("latin-1"))
    with pytest.raises(CheckpointError, match="is not UTF-8 text"):
        write(source, output)


# --- broken tokenizers


def test_ids_beyond_the_embedding_are_refused(source: Path, output: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        write(source, output, vocab_size=1000)
    assert "has 24 tokens beyond the model's vocabulary of 1,000" in caught.value.problem
    assert "= 1,000" in caught.value.problem
    assert caught.value.facts["num_beyond"] == 24


DEMO_TOKENIZER = (DEMO / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        DEMO_TOKENIZER[: len(DEMO_TOKENIZER) // 2],
        DEMO_TOKENIZER + b"}",
        b"\xff\xfe" + DEMO_TOKENIZER,
        b"[" * 200_000,
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
        b'{"version": "1.0", "model": {"type": "Unknown"}}',
    ],
)
@pytest.mark.trust("T-IN-10")
def test_broken_tokenizers_are_refused(source: Path, output: Path, content: bytes) -> None:
    (source / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        write(source, output)
    assert len(caught.value.problem) < 600
    assert "tokenizer files" in caught.value.fix


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
@pytest.mark.trust("T-IN-10")
def test_broken_configs_are_refused(source: Path, output: Path, content: bytes) -> None:
    (source / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'tokenizer_config\.json'"):
        write(source, output)


class PanicException(BaseException):
    """Stands for a panic of the Rust library, which is no Exception."""


@pytest.mark.trust("T-TOK-04")
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PanicException("index out of bounds"), CheckpointError),
        (RuntimeError("no\nmore"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_panic_of_the_library_is_an_error_and_ctrl_c_is_not(
    source: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    expected: type[BaseException],
) -> None:
    class Tokenizers:
        class Tokenizer:
            @staticmethod
            def from_file(path: str) -> None:
                raise raised

    monkeypatch.setitem(sys.modules, "tokenizers", Tokenizers)
    with pytest.raises(expected):
        write(source, output)


def test_no_tokenizer_at_all(source: Path, output: Path) -> None:
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"Found: tokenizer_config\.json"):
        write(source, output)


def test_a_missing_library_is_named(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    with pytest.raises(MissingExtraError, match="needs 'openvino_tokenizers'") as caught:
        write(source, output)
    assert caught.value.fix == "pip install 'qwen-edge[export]'"


# --- agreement


@pytest.fixture(scope="module")
def original() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_agreement_of_a_tokenizer_with_itself(original: Tokenizer) -> None:
    found = find_disagreements(original, lambda t: original.encode(t).ids, original.decode)
    assert found == ()
    check_ordinary(found)


def test_a_difference_in_ordinary_text_is_an_error(original: Tokenizer) -> None:
    found = find_disagreements(original, lambda t: original.encode(t).ids[1:], original.decode)
    assert {item.step for item in found} == {"encode"}
    with pytest.raises(ParityError) as caught:
        check_ordinary(found)
    assert f"{len(ORDINARY_TEXTS)} of {len(ORDINARY_TEXTS)} ordinary texts" in caught.value.problem
    assert "encode of 'Hello, world!" in caught.value.problem


def test_a_difference_in_decoding_is_found(original: Tokenizer) -> None:
    found = find_disagreements(
        original, lambda t: original.encode(t).ids, lambda ids: original.decode(ids) + "x"
    )
    assert {item.step for item in found} == {"decode"}
    with pytest.raises(ParityError, match="decode of"):
        check_ordinary(found)


def test_a_difference_in_unusual_text_is_reported(original: Tokenizer) -> None:
    def encode(text: str) -> list[int]:
        ids: list[int] = original.encode(text).ids
        return [*ids, 0] if text == "strange" else ids

    found = find_disagreements(original, encode, original.decode, extra_texts=["strange"])
    check_ordinary(found)
    assert [(item.text, item.step, item.is_ordinary) for item in found] == [
        ("strange", "encode", False)
    ]
    assert list(found[0].actual) == [*found[0].expected, 0]


def test_what_is_found_decides(
    source: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unusual = Disagreement("odd", "encode", (1,), (2,), is_ordinary=False)
    monkeypatch.setattr(tokenizer_files, "find_disagreements", lambda *_: (unusual,))
    assert write(source, output).disagreements == (unusual,)
    assert "differs at encode of 'odd': (2,) instead of (1,)" in caplog.text
    ordinary = replace(unusual, is_ordinary=True)
    monkeypatch.setattr(tokenizer_files, "find_disagreements", lambda *_: (ordinary,))
    with pytest.raises(ParityError, match=r"encode of 'odd' gives \[2\] where \[1\] is expected"):
        write(source, output)


def test_a_broken_conversion_writes_no_report(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that goes wrong must stop the export, not end in a strange package."""
    module = importlib.import_module("openvino_tokenizers")
    monkeypatch.setattr(module, "convert_tokenizer", lambda *_, **__: 1 / 0)
    with pytest.raises(CheckpointError, match="cannot convert this tokenizer: division by zero"):
        write(source, output)
