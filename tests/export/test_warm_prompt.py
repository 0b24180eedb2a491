"""The system prompt that a package brings along: made at export, used or passed over at load."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.export import ExportRequest, export, prepare_export
from qwen_edge.export.warm_prompt import check_has_cpu, find_common_ids, read_warm_prompt
from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.devices.opening import open_backend
from qwen_edge.runtime.manifest import DeviceSettings, FormatName, Manifest
from qwen_edge.runtime.package import read_manifest, verify_package
from qwen_edge.runtime.prefix_cache import PrefixCache
from qwen_edge.runtime.snapshots import bind_package, load_snapshot
from qwen_edge.runtime.snapshots.warm_prompt import (
    WARM_PROMPT_FILES,
    WARM_PROMPT_TEXT,
    WarmPrompt,
    find_warm_prompt,
)
from qwen_edge.runtime.text_tokenizer import TextTokenizer

TEXT = "You are the assistant of a bookshop.\nAnswer in one sentence. " * 4
MAX_TOKENS = 1024
FORMATS: tuple[FormatName, ...] = ("openvino", "onnx")


@pytest.fixture(scope="module")
def warm_package(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Path:
    """Return a package of both formats with a warm prompt; read only."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "prompt.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    source = make_checkpoint(folder / "source")
    request = ExportRequest(
        str(source),
        "generic-x86",
        recipe="int8",
        format="both",
        skip_quality=True,
        output=folder / "package",
        max_context_tokens=MAX_TOKENS,
        warm_prompt=folder / "prompt.txt",
    )
    return export(request).folder


def chat_of(folder: Path) -> ChatTemplate:
    tokenizer = TextTokenizer.load(folder / "tokenizer.json")
    text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return ChatTemplate(text, tokenizer, thinking=read_manifest(folder).chat.thinking)


def find(
    folder: Path, fmt: FormatName, settings: DeviceSettings, manifest: Manifest | None = None
) -> WarmPrompt:
    manifest = manifest or read_manifest(folder)
    binding = bind_package(manifest, fmt, settings)
    found = find_warm_prompt(folder, manifest, fmt, binding=binding, max_tokens=MAX_TOKENS)
    assert found is not None
    return found


def test_package_lists_its_warm_prompt_and_is_intact(warm_package: Path) -> None:
    assert verify_package(warm_package).is_intact
    files = read_manifest(warm_package).files
    assert {WARM_PROMPT_TEXT, *WARM_PROMPT_FILES.values()} <= set(files)
    assert (warm_package / WARM_PROMPT_TEXT).read_text(encoding="utf-8") == TEXT
    assert not list(warm_package.glob(".*"))


@pytest.mark.parametrize("fmt", FORMATS)
def test_conversations_start_from_it(warm_package: Path, fmt: FormatName) -> None:
    manifest = read_manifest(warm_package)
    opened = open_backend(warm_package, manifest, backend=fmt, device="CPU")
    warm = find(warm_package, fmt, opened.choice.value)
    assert warm.text == TEXT
    messages = [{"role": "system", "content": TEXT}, {"role": "user", "content": "Hi!"}]
    prompt = chat_of(warm_package).encode(messages)
    assert prompt[: len(warm.token_ids)] == list(warm.token_ids)
    assert len(prompt) - len(warm.token_ids) < 15
    backend = opened.backend
    cache = PrefixCache(backend)
    cache.pin(warm.token_ids, warm.read)
    num_kept = cache.begin(prompt)
    assert num_kept == len(warm.token_ids)
    logits = backend.forward(prompt[num_kept:])
    # The very numbers of a model that has just read the same.
    backend.reset()
    backend.forward(warm.token_ids)
    assert np.array_equal(backend.forward(prompt[num_kept:]), logits)
    backend.close()


def test_equal_exports_have_equal_warm_prompts(
    warm_package: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    (tmp_path / "prompt.txt").write_text(TEXT, encoding="utf-8", newline="")
    request = ExportRequest(
        str(make_checkpoint(tmp_path / "source")),
        "generic-x86",
        recipe="int8",
        format="both",
        skip_quality=True,
        output=tmp_path / "package",
        max_context_tokens=MAX_TOKENS,
        warm_prompt=tmp_path / "prompt.txt",
    )
    again = read_manifest(export(request).folder)
    files = read_manifest(warm_package).files
    for name in (WARM_PROMPT_TEXT, *WARM_PROMPT_FILES.values()):
        assert again.files[name] == files[name], name


def test_other_settings_pass_it_over_and_say_why(
    warm_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = read_manifest(warm_package).devices[0]
    other = dataclasses.replace(
        settings, properties={**settings.properties, "KV_CACHE_PRECISION": "f32"}
    )
    warm = find(warm_package, "openvino", other)
    assert (warm.text, warm.token_ids) == (TEXT, ())
    assert "is read as any other" in caplog.text
    assert "KV_CACHE_PRECISION u8, and here that is f32" in caplog.text


def test_other_model_files_pass_it_over(
    warm_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    manifest = read_manifest(warm_package)
    files = {**manifest.files, "openvino_model.bin": manifest.files["config.json"]}
    changed = dataclasses.replace(manifest, files=files)
    assert find(warm_package, "openvino", manifest.devices[0], changed).token_ids == ()
    assert "belongs to the package" in caplog.text


def test_package_without_one(warm_package: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    manifest = read_manifest(warm_package)
    binding = bind_package(manifest, "openvino", manifest.devices[0])
    names = (WARM_PROMPT_TEXT, *WARM_PROMPT_FILES.values())
    files = {name: facts for name, facts in manifest.files.items() if name not in names}
    bare = dataclasses.replace(manifest, files=files)
    found = find_warm_prompt(warm_package, bare, "openvino", binding=binding, max_tokens=MAX_TOKENS)
    assert found is None
    half = dataclasses.replace(manifest, files=files | {names[0]: manifest.files[names[0]]})
    assert find(warm_package, "openvino", manifest.devices[0], half).token_ids == ()
    assert "has no snapshot of its warm prompt for openvino" in caplog.text


def test_damage_between_loading_and_use_is_noticed(warm_package: Path, tmp_path: Path) -> None:
    manifest = read_manifest(warm_package)
    binding = bind_package(manifest, "openvino", manifest.devices[0])
    data = bytearray((warm_package / WARM_PROMPT_FILES["openvino"]).read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged.bin").write_bytes(data)
    with pytest.raises(PackageError, match="has other contents than were saved"):
        load_snapshot(tmp_path / "damaged.bin", binding=binding, max_tokens=MAX_TOKENS)


# What is refused before anything is written.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"abc\xff", "is no UTF-8 text: byte 3 is not"),
        (b"a" * ((1 << 20) + 1), "the limit is 1.0 MB"),
    ],
    ids=["missing", "empty", "blank", "binary", "long"],
)
def test_file_that_is_no_prompt_is_refused_at_once(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        prepare_export(ExportRequest("demo", "generic-x86", warm_prompt=path))


def test_prompt_is_the_file_s_text_without_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    assert read_warm_prompt(tmp_path / "a") == "a\r\nb\n"


def test_prompt_that_leaves_no_room_is_refused(warm_package: Path) -> None:
    chat = chat_of(warm_package)
    assert len(find_common_ids(chat, TEXT, max_context_tokens=512)) > 40
    with pytest.raises(UsageError, match="of a context of 300 it may take 44") as caught:
        find_common_ids(chat, TEXT, max_context_tokens=300)
    assert "shorten it by" in caught.value.fix


def test_template_without_system_messages_is_refused(warm_package: Path) -> None:
    tokenizer = TextTokenizer.load(warm_package / "tokenizer.json")
    deaf = ChatTemplate("<|im_start|>user\n{{ messages[-1].content }}", tokenizer)
    with pytest.raises(UsageError, match="leaves system messages out"):
        find_common_ids(deaf, TEXT, max_context_tokens=512)


def test_common_ids_do_not_depend_on_the_first_message(warm_package: Path) -> None:
    """Not even where the tokenizer joins its line end with the template's."""
    chat = chat_of(warm_package)
    ids = find_common_ids(chat, "Be brief.", max_context_tokens=512)
    for content in ("Hello", "\n", "\n\n\n", "", " ", "42", "<think>", "ä", "你"):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
        ]
        for thinking in (None, True, False):
            assert tuple(chat.encode(messages, thinking=thinking)[: len(ids)]) == ids


def test_profile_without_a_cpu_is_refused() -> None:
    npu: Any = DeviceSettings("NPU", {}, 4096, 2048, 2048, 2048)
    with pytest.raises(UsageError, match="has settings for NPU only"):
        check_has_cpu(("openvino",), (npu,), None)
