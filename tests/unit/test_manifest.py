"""The manifest: the same bytes for the same facts, and every misfit named."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import PackageError
from qwen_edge.runtime.files.plain_name import check_plain_name
from qwen_edge.runtime.manifest import (
    FORMAT_FILES,
    FORMAT_VERSION,
    MANIFEST_NAME,
    REQUIRED_FILES,
    Manifest,
)
from qwen_edge.runtime.schema import parse_json

SAMPLE = Path(__file__).parents[1] / "data" / "manifest.json"


def sample() -> dict[str, Any]:
    data: dict[str, Any] = parse_json(SAMPLE.read_bytes())
    return data


def refused(data: object) -> PackageError:
    with pytest.raises(PackageError) as caught:
        Manifest.from_json(data)
    assert caught.value.fix
    return caught.value


def test_sample_is_read_and_written_bit_for_bit() -> None:
    """`tests/data/manifest.json` is the format: a change to it is a change of the format."""
    manifest = Manifest.from_bytes(SAMPLE.read_bytes())
    assert manifest.to_bytes() == SAMPLE.read_bytes()
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.model.num_layers == 4
    assert manifest.devices[2].properties["ENABLE_MMAP"] is True
    assert manifest.golden.token_ids == (5, 1000)


def test_written_text_has_sorted_keys_and_plain_line_ends() -> None:
    text = Manifest.from_bytes(SAMPLE.read_bytes()).to_bytes()
    assert text.startswith(b'{\n  "calibration": {')
    assert text.endswith(b"}\n")
    assert b"\r" not in text


@pytest.mark.trust("T-PKG-01")
def test_newer_version_is_named_before_its_unknown_keys() -> None:
    error = refused(sample() | {"format_version": FORMAT_VERSION + 1, "new key": 1})
    assert f"format version {FORMAT_VERSION + 1}; this qwen-edge reads up to" in error.problem
    assert "pip install --upgrade" in error.fix
    assert error.facts["newest_known"] == FORMAT_VERSION


@pytest.mark.trust("T-PKG-01")
@pytest.mark.parametrize("data", [[], {}, None, {"format": "other"}, 5], ids=str)
def test_json_of_something_else_is_not_a_manifest(data: object) -> None:
    assert "is not the manifest of a model package" in refused(data).problem


@pytest.mark.trust("T-PKG-01")
def test_missing_unknown_and_wrong_keys_are_all_named() -> None:
    data = sample()
    data["model"]["num_layer"] = data["model"].pop("num_layers")
    data["chat"]["thinking"] = "sometimes"
    problem = refused(data).problem
    assert "'model.num_layer' is not a key of this format (did you mean 'num_layers'?)" in problem
    assert "'model.num_layers' is missing" in problem
    assert "'chat.thinking' is 'sometimes', expected one of: 'switchable', 'always', 'never'" in (
        problem
    )


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("format_version", 0, "'format_version' is 0"),
        ("model.num_layers", 0, "'model.num_layers' is 0, expected 1 or more"),
        ("devices", [], "'devices' is empty"),
        ("devices.2.prefill_chunk_tokens", 0, "'devices[2].prefill_chunk_tokens' is 0"),
        ("golden.token_ids", [1024], "'golden.token_ids' holds 1024, expected ids below 1,024"),
        ("generation.eos_token_ids", [-1], "'generation.eos_token_ids' holds -1"),
        ("chat.think_open_id", 5000, "'chat.think_open_id' holds 5000"),
        ("files.LICENSE.size_bytes", -1, "'files' gives 'LICENSE' -1 bytes"),
        ("files.LICENSE.sha256", "A" * 64, "'files' gives 'LICENSE' no SHA-256"),
        ("generation.temperature", "hot", "'generation.temperature' is 'hot'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_value_out_of_range_names_its_key(path: str, value: object, expected: str) -> None:
    data: Any = sample()
    *parents, last = path.split(".")
    target = data
    for key in parents:
        target = target[int(key) if isinstance(target, list) else key]
    target[last] = value
    assert expected in refused(data).problem


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_required_file_must_be_listed(name: str) -> None:
    data = sample()
    del data["files"][name]
    assert f"'files' does not list {name!r}" in refused(data).problem


BAD_NAMES = [
    "../x.json", "..", ".", "", "a/b.json", "a\\b.json", "/etc/passwd", "C:x.json", "x.json:s",
    "x.json\0", "x.json ", " x.json", "x.", ".hidden.json", "con.json", "NUL", "com1.bin",
    "a" * 200, "é.json", "-x.json", "x\n.json",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_name_that_could_leave_the_folder_is_refused(name: str) -> None:
    assert check_plain_name(name) == "is not a plain file name"
    data = sample()
    data["files"][name] = data["files"]["LICENSE"]
    assert "is not a plain file name" in refused(data).problem


@pytest.mark.trust("T-PKG-03")
@pytest.mark.parametrize("name", ["x.so", "x.dll", "x.py", "x.pkl", "x.exe", "x.json.js"])
def test_code_cannot_be_part_of_a_package(name: str) -> None:
    assert "not a kind of file that packages hold" in (check_plain_name(name) or "")


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE.txt", "openvino_model.xml", "a", "v1.5.json"])
def test_plain_names_are_accepted(name: str) -> None:
    assert check_plain_name(name) is None


def test_names_that_are_one_file_on_windows_are_refused() -> None:
    data = sample()
    data["files"]["License"] = data["files"]["LICENSE"]
    assert "differ in case only" in refused(data).problem


def test_manifest_cannot_list_itself() -> None:
    data = sample()
    data["files"][MANIFEST_NAME] = data["files"]["LICENSE"]
    assert "is the manifest itself" in refused(data).problem


def test_writing_refuses_what_reading_would() -> None:
    manifest = Manifest.from_bytes(SAMPLE.read_bytes())
    broken = Manifest(**{**vars(manifest), "devices": ()})
    with pytest.raises(PackageError, match="'devices' is empty"):
        broken.to_bytes()


@pytest.mark.trust("T-PKG-01")
def test_bytes_that_are_not_json_are_refused() -> None:
    with pytest.raises(PackageError, match=r"does not fit .* line 1 column 2 is not JSON"):
        Manifest.from_bytes(b"{")


ONNX = {
    "opset": 21,
    "is_portable": False,
    "max_context_tokens": 4096,
    "prefill_chunk_tokens": 512,
    "accuracy_level": 4,
}


def with_onnx() -> Any:
    data = sample()
    data["onnx"] = dict(ONNX)
    for name in FORMAT_FILES["onnx"]:
        data["files"][name] = data["files"]["LICENSE"]
    return data


def test_a_package_may_hold_both_formats_or_one() -> None:
    data = with_onnx()
    assert Manifest.from_json(data).formats == ("openvino", "onnx")
    for name in FORMAT_FILES["openvino"]:
        del data["files"][name]
    data["devices"] = []
    manifest = Manifest.from_json(data)
    assert manifest.formats == ("onnx",)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert Manifest.from_json(sample()).formats == ("openvino",)


@pytest.mark.parametrize("name", [*FORMAT_FILES["openvino"], *FORMAT_FILES["onnx"]])
def test_half_a_format_is_refused(name: str) -> None:
    data = with_onnx()
    del data["files"][name]
    assert f"but not {name!r}" in refused(data).problem


def test_a_package_without_a_model_is_refused() -> None:
    data = sample()
    for name in FORMAT_FILES["openvino"]:
        del data["files"][name]
    assert "'files' lists no model" in refused(data).problem


def test_facts_and_files_of_the_onnx_form_belong_together() -> None:
    data = with_onnx()
    data["onnx"] = None
    assert "'files' lists 'model.onnx', but 'onnx' is null" in refused(data).problem
    data = sample()
    data["onnx"] = dict(ONNX)
    assert "'onnx' is given, but 'files' does not list 'model.onnx'" in refused(data).problem


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("accuracy_level", 2, "'onnx.accuracy_level' is 2, expected one of: 1, 4"),
        ("opset", 0, "'onnx.opset' is 0, expected 1 or more"),
        ("max_context_tokens", 10**13, "expected 262144 or less"),
        ("prefill_chunk_tokens", 10**13, "expected 262144 or less"),
        ("max_context_tokens", 0, "'onnx.max_context_tokens' is 0, expected 1 or more"),
        ("threads", 4, "'onnx.threads' is not a key of this format"),
    ],
)
def test_onnx_facts_out_of_range_are_named(key: str, value: int, expected: str) -> None:
    data = with_onnx()
    data["onnx"][key] = value
    assert expected in refused(data).problem


def sealed(data: dict[str, Any]) -> bytes:
    """Return the text of plain data with a seal that fits."""
    unsealed = {key: value for key, value in data.items() if key != "seal"}
    digest = hashlib.sha256(written(unsealed)).hexdigest()
    return written({**unsealed, "seal": digest})


def written(data: dict[str, Any]) -> bytes:
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def test_the_seal_is_the_hash_of_all_the_rest() -> None:
    assert sealed(json.loads(SAMPLE.read_bytes())) == SAMPLE.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"demo', b'"dem0', 1),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text + b"\n",
        lambda text: text.replace(b'  "seal"', b'  "leas"'),
        lambda text: written({k: v for k, v in json.loads(text).items() if k != "seal"}),
    ],
    ids=["value", "line-ends", "length", "key", "without"],
)
@pytest.mark.trust("T-PKG-01")
def test_a_changed_text_is_refused(change: Callable[[bytes], bytes]) -> None:
    text = SAMPLE.read_bytes()
    assert change(text) != text
    with pytest.raises(PackageError, match=r"not as it was sealed|'leas'"):
        Manifest.from_bytes(change(text))


def test_a_manifest_without_keys_that_came_later_is_read() -> None:
    data = json.loads(SAMPLE.read_bytes())
    assert data.pop("npu") is None
    assert Manifest.from_bytes(sealed(data)) == Manifest.from_bytes(SAMPLE.read_bytes())
