"""What a model name stands for: the demo, a folder, a hub id, or a mistake."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen_edge.errors import CheckpointError, UsageError
from qwen_edge.export.integrity import SourceFile, describe_mismatch, hash_git_blob, hash_sha256
from qwen_edge.export.source import fetch_source, resolve_source
from qwen_edge.export.source_card import read_card
from qwen_edge.export.transfer import TransferLimits

CHECKPOINT = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"12345",
    "model-00002-of-00002.safetensors": b"678",
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "notes.txt": b"mine",
    "code.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80",
}


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "my-model", CHECKPOINT)


def test_demo_is_embedded() -> None:
    source = resolve_source("demo")
    assert (source.kind, source.id, source.revision) == ("embedded", "demo", None)
    fetched = fetch_source(source)
    assert (fetched.folder / "config.json").is_file()
    assert "model.safetensors" in fetched.files
    assert source.download_bytes == 0
    assert source.total_bytes > 1_000_000


def test_folder(checkpoint: Path) -> None:
    source = resolve_source(str(checkpoint))
    assert (source.kind, source.id, source.revision) == ("folder", "my-model", None)
    assert source.notices == ("The licence of the checkpoint is unknown: its card states none.",)
    fetched = fetch_source(source)
    assert fetched.folder == checkpoint
    assert set(fetched.files) == set(CHECKPOINT) - {"notes.txt", "code.py", "pytorch_model.bin"}
    assert fetched.files["model-00001-of-00002.safetensors"].size_bytes == 5
    assert fetched.license == "unknown"


def test_the_id_of_a_folder_is_its_name_without_the_path(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    assert resolve_source(".").id == "my-model"
    monkeypatch.chdir(checkpoint.parent)
    assert resolve_source("./my-model/").id == "my-model"


def test_an_existing_folder_wins_over_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "Qwen" / "Qwen3-4B", CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    assert resolve_source("Qwen/Qwen3-4B").kind == "folder"


@dataclass(frozen=True)
class Broken:
    name: str
    removed: tuple[str, ...]
    added: dict[str, bytes]
    problem: str
    fix: str


SHARDS = tuple(name for name in CHECKPOINT if name.endswith(".safetensors"))
BROKEN = [
    Broken("no-config", ("config.json",), {}, "'config.json' is missing", "config.json"),
    Broken("pickled", SHARDS, {}, "no weights in the safetensors format", "safe_serialization"),
    Broken(
        "gguf", (*SHARDS, "pytorch_model.bin"), {"a.gguf": b""}, "no weights", "original checkpoint"
    ),
    Broken("nothing", (*SHARDS, "pytorch_model.bin"), {}, "no weights", "*.safetensors"),
    Broken("empty", tuple(CHECKPOINT), {}, "It is empty", "config.json"),
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
@pytest.mark.trust("T-IN-15")
def test_folders_that_are_no_checkpoint(checkpoint: Path, case: Broken) -> None:
    for name in case.removed:
        (checkpoint / name).unlink()
    make_folder(checkpoint, case.added)
    with pytest.raises(CheckpointError) as caught:
        resolve_source(str(checkpoint))
    assert case.problem in caught.value.problem
    assert case.fix in caught.value.fix
    assert all(repr(name) in repr(caught.value.facts["present"]) for name in case.added)


def test_what_is_there_is_listed(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    make_folder(checkpoint, {f"extra-{i:02}.txt": b"" for i in range(20)})
    with pytest.raises(CheckpointError, match=r"Found: code\.py, extra-00\.txt, .* and 15 more"):
        resolve_source(str(checkpoint))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *SHARDS])
@pytest.mark.trust("T-IN-04")
def test_pipes_are_refused_and_not_waited_for(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with pytest.raises(CheckpointError, match=f"{name!r} in .* is not a regular file"):
        resolve_source(str(checkpoint))


@dataclass(frozen=True)
class Mistake:
    model: str
    expected: str


MISTAKES = [
    Mistake("./Qwen/Qwen3-4B", "Did you mean the hub id 'Qwen/Qwen3-4B'?"),
    Mistake("Qwen/Qwen3-4B/", "Did you mean the hub id 'Qwen/Qwen3-4B'?"),
    Mistake("models\\qwen", "There is no folder 'models\\\\qwen'"),
    Mistake("C:/models/qwen", "There is no folder 'C:/models/qwen'"),
    Mistake("~/no-such-folder-here", "There is no folder"),
    Mistake("a/b/c", "There is no folder 'a/b/c'"),
    Mistake("Qwen3-4B", "Did you mean 'Qwen/Qwen3-4B'?"),
    Mistake("qwen3-0.6b", "Did you mean 'Qwen/Qwen3-0.6B'?"),
    Mistake("dmeo", "Did you mean 'demo'?"),
    Mistake("", "neither a folder nor a hub id"),
    Mistake("org/na me", "neither a folder nor a hub id"),
    Mistake("org/../x", "There is no folder"),
    Mistake("org--x/y", "neither a folder nor a hub id"),
    Mistake("https://hub.example/Qwen/Qwen3-4B", "is an address"),
    Mistake("https://hub.example/Qwen/Qwen3-4B/tree/main", "is an address"),
    Mistake("hf://Qwen/Qwen3-4B", "is an address"),
    Mistake("a\0b", "neither a folder nor a hub id"),
    Mistake("x" * 5000, "neither a folder nor a hub id"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.model[:20] or "empty")
def test_mistaken_names(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        resolve_source(mistake.model)
    assert mistake.expected in caught.value.problem
    assert caught.value.fix


def test_an_address_is_turned_into_an_id() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_source("https://hub.example/Qwen/Qwen3-4B/tree/main")
    assert caught.value.fix == "write 'Qwen/Qwen3-4B'"


def test_a_file_is_not_a_folder(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        resolve_source(str(checkpoint / "config.json"))


def test_revisions_belong_to_hubs(checkpoint: Path) -> None:
    for model in ("demo", str(checkpoint)):
        with pytest.raises(UsageError, match="has no revisions, but 'v1' was asked for"):
            resolve_source(model, revision="v1")


# --- licences


APACHE = "                                 Apache License\n                           Version 2.0, "
APACHE += "January 2004\n"


@pytest.mark.trust("T-SUP-03")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ("unknown", None)),
        ({"README.md": "---\nlicense: mit\nlicense_link: x\n---\n# Hi"}, ("mit", "x")),
        ({"README.md": "\ufeff---\r\nlicense: mit\r\n---\r\n"}, ("mit", None)),
        ({"README.md": "# No block\nlicense: mit"}, ("unknown", None)),
        ({"README.md": "---\nlicense: [\n---\n"}, ("unknown", None)),
        ({"README.md": "---\n- a\n---\n"}, ("unknown", None)),
        ({"README.md": "---\n" + "[" * 50_000 + "\n---\n"}, ("unknown", None)),
        (
            {"README.md": "---\nlicense: !!python/object/apply:os.getcwd []\n---\n"},
            ("unknown", None),
        ),
        ({"LICENSE": APACHE}, ("apache-2.0", "LICENSE")),
        ({"LICENSE.txt": "MIT License\n\nCopyright"}, ("mit", "LICENSE.txt")),
        ({"LICENSE": "Tongyi Qianwen RESEARCH LICENSE"}, ("unknown", "LICENSE")),
        ({"README.md": "---\nlicense: other\n---\n", "LICENSE": APACHE}, ("other", None)),
    ],
)
def test_licence_of_a_folder(
    tmp_path: Path, files: dict[str, str], expected: tuple[str, str | None]
) -> None:
    make_folder(tmp_path, {name: text.encode() for name, text in files.items()})
    card = read_card(tmp_path)
    assert (card.license, card.license_link) == expected


# --- digests


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    oid = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert hash_git_blob(path) == oid
    assert hash_sha256(path) == sha
    assert describe_mismatch(path, SourceFile("file", 6)) is None
    assert describe_mismatch(path, SourceFile("file", 6, sha256=sha)) is None
    assert describe_mismatch(path, SourceFile("file", 6, git_oid=oid)) is None
    wrong = describe_mismatch(path, SourceFile("file", 6, sha256="0" * 64))
    assert wrong == f"has the SHA-256 {sha} where {'0' * 64} is expected"
    size = describe_mismatch(path, SourceFile("file", 7))
    assert size == "has 6 bytes where 7 are expected"
    assert describe_mismatch(tmp_path, SourceFile("file", 7)) == "is not a regular file"


@pytest.mark.parametrize(
    "values",
    [
        {"max_attempts": 0},
        {"first_wait_s": -1.0},
        {"max_wait_s": -1.0},
        {"timeout_s": 0.0},
    ],
)
def test_limits_have_ranges(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        TransferLimits(**values)  # type: ignore[arg-type]
