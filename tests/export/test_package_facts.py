"""The facts of a manifest: claims of small files checked, and thinking found out by rendering."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import CheckpointError
from qwen_edge.export import package_facts as facts
from qwen_edge.export.compress import TensorReport
from qwen_edge.export.source import FetchedSource
from qwen_edge.profiles.profile import load_profile
from qwen_edge.runtime.text_tokenizer import TextTokenizer

DEMO_TOKENIZER = Path(facts.__file__).parent / "demo" / "tokenizer.json"
QWEN3 = Path(__file__).parents[1] / "data" / "qwen3_tokenizer" / "tokenizer_config.json"
INSTRUCT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_json(folder: Path, name: str, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


BAD_JSON: dict[str, str] = {
    "empty": "",
    "cut-off": '{"a": ',
    "a-list": "[]",
    "nan": '{"a": NaN}',
    "too-large-a-number": '{"a": 1e400}',
    "an-integer-of-5000-digits": '{"a": ' + "9" * 5_000 + "}",
    "twice": '{"a": 1, "a": 2}',
    "nested-deeply": '{"a": ' + "[" * 100_000,
    "more-after-the-end": "{} {}",
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON.keys())
@pytest.mark.trust("T-IN-10")
def test_files_that_are_no_object(text: str, tmp_path: Path) -> None:
    path = write_json(tmp_path, "config.json", text)
    with pytest.raises(CheckpointError, match=r"'config.json' cannot be read as a JSON object"):
        facts.read_json_object(path)


@pytest.mark.trust("T-IN-10")
def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read as a JSON object"):
        facts.read_json_object(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(CheckpointError, match=r"not UTF-8"):
        facts.read_json_object(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b" " * 4_000_001)
    with pytest.raises(CheckpointError, match=r"4,000,001 bytes, more than 4,000,000"):
        facts.read_json_object(tmp_path / "config.json")


STOPS: dict[str, tuple[object, object, tuple[int, ...]]] = {
    "one": (7, None, (7,)),
    "several": ([7, 8], 3, (7, 8)),
    "from-config": (None, 3, (3,)),
    "list-in-config": (None, [3, 4], (3, 4)),
}


@pytest.mark.parametrize(("given", "config", "expected"), STOPS.values(), ids=STOPS.keys())
def test_stop_tokens(
    given: object, config: object, expected: tuple[int, ...], tmp_path: Path
) -> None:
    """A null in generation_config.json stands for absence, as in transformers."""
    write_json(tmp_path, "generation_config.json", {"eos_token_id": given})
    found = facts.generation_facts(tmp_path, {"eos_token_id": config}, 10)
    assert found.eos_token_ids == expected


@pytest.mark.parametrize(
    "stop", [None, [], -1, 10, True, "7", 7.0, [7, 10], [7, None], {"a": 1}, "x" * 9_999], ids=str
)
def test_stop_tokens_that_would_never_come(stop: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected one or more ids below 10") as caught:
        facts.generation_facts(tmp_path, {"eos_token_id": stop}, 10)
    assert len(caught.value.problem) < 300


def test_defaults_without_a_generation_config(tmp_path: Path) -> None:
    found = facts.generation_facts(tmp_path, {"eos_token_id": 1}, 10)
    assert (found.do_sample, found.temperature, found.top_p) == (False, 1.0, 1.0)
    assert (found.top_k, found.min_p, found.max_new_tokens) == (50, 0.0, 2_048)


def test_the_models_own_settings(tmp_path: Path) -> None:
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20.0, "min_p": None}
    write_json(tmp_path, "generation_config.json", settings)
    found = facts.generation_facts(tmp_path, {"eos_token_id": 1}, 10)
    assert (found.do_sample, found.temperature, found.top_p) == (True, 0.6, 0.95)
    assert (found.top_k, type(found.top_k), found.min_p) == (20, int, 0.0)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("temperature", -1, "a number from 0 to 100"),
        ("temperature", "warm", "a number"),
        ("temperature", True, "a number"),
        ("top_p", 1.5, "a number from 1e-06 to 1"),
        ("top_p", 0, "a number from 1e-06 to 1"),
        ("top_k", 20.5, "a whole number"),
        ("top_k", -1, "a number from 0"),
        ("min_p", 2, "a number from 0 to 1"),
        ("do_sample", "yes", "true or false"),
        ("do_sample", 1, "true or false"),
    ],
)
def test_settings_out_of_range(key: str, value: object, expected: str, tmp_path: Path) -> None:
    write_json(tmp_path, "generation_config.json", {key: value})
    with pytest.raises(CheckpointError, match=rf"^{key} in generation_config.json is") as caught:
        facts.generation_facts(tmp_path, {"eos_token_id": 1}, 10)
    assert f"expected {expected}" in caught.value.problem
    assert caught.value.fix == f"correct {key!r}, or remove it"


def qwen3_template() -> str:
    return str(json.loads(QWEN3.read_bytes())["chat_template"])


def thinking_2507() -> str:
    """Return Qwen3's template as Qwen3-4B-Thinking-2507 has it: the prompt opens the block."""
    template = qwen3_template()
    start = template.index("{%- if add_generation_prompt %}")
    return template[:start] + (
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n<think>\\n' }}\n"
        "{%- endif %}"
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [(qwen3_template, "switchable"), (thinking_2507, "always"), (lambda: INSTRUCT, "never")],
    ids=["qwen3", "thinking-2507", "instruct-2507"],
)
def test_kinds_of_thinking(
    make: Callable[[], str], expected: str, demo_tokenizer: TextTokenizer
) -> None:
    found = facts.chat_facts(make(), demo_tokenizer)
    assert found.thinking == expected
    ids = (found.think_open_id, found.think_close_id)
    assert ids == ((None, None) if expected == "never" else (1_022, 1_023))


def test_without_the_tokens_nothing_thinks(tmp_path: Path) -> None:
    content = json.loads(DEMO_TOKENIZER.read_bytes())
    tags = {"<think>", "</think>"}
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in tags]
    path = write_json(tmp_path, "tokenizer.json", content)
    assert facts.chat_facts(qwen3_template(), TextTokenizer.load(path)).thinking == "never"


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{% if %}", "{{ messages[5].content }}{{ 1 // 0 }}"],
    ids=["refuses", "not-jinja", "fails"],
)
def test_a_template_that_cannot_render_a_question(
    template: str, demo_tokenizer: TextTokenizer
) -> None:
    """The error spoke of a broken package, though only a checkpoint was given."""
    with pytest.raises(CheckpointError, match=r"cannot render a question"):
        facts.chat_facts(template, demo_tokenizer)


def report(name: str, **changes: Any) -> TensorReport:
    values: dict[str, Any] = {
        "name": name,
        "format": "int4",
        "num_values": 100,
        "width": 10,
        "group_size": 128,
        "relative_rms_error": 0.0,
        "is_fallback": False,
    }
    return TensorReport(**(values | changes))


def test_weights_facts() -> None:
    found = facts.weights_facts(
        [
            report("a", relative_rms_error=0.1),
            report("b", num_values=300, relative_rms_error=0.2, group_size=64, is_fallback=True),
            report("c", format="int8", num_values=600),
        ],
        1_234,
    )
    assert found.bits == {"4": 400, "8": 600}
    assert found.relative_rms_error == pytest.approx((0.1 * 0.01 + 0.3 * 0.04) ** 0.5, abs=1e-6)
    assert [(f.tensor, f.width, f.group_size) for f in found.group_size_fallbacks] == [
        ("b", 10, 64)
    ]
    assert (found.num_tensors, found.weights_bytes) == (3, 1_234)


def test_no_device_has_more_context_than_the_model() -> None:
    profile = load_profile("core-ultra")
    cut = {d.device: d.max_context_tokens for d in facts.device_settings(profile, 100, 36)}
    assert cut == {"GPU": 100, "CPU": 100, "NPU": 64}
    whole = facts.device_settings(profile, 10**9, 36)
    assert [d.max_context_tokens for d in whole] == [d.max_context_tokens for d in profile.devices]
    assert [d.device for d in whole] == ["GPU", "CPU", "NPU"]


def test_a_folder_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Linux allows any bytes; the manifest is UTF-8."""
    name = b"mod\xe8le".decode("utf-8", errors="surrogateescape")
    source = FetchedSource("folder", name, None, tmp_path, "unknown", None, None, name, {})
    found = facts.source_facts(source, {})
    assert found.id == found.base_model == "mod?le"


def test_tools_are_named() -> None:
    openvino = {"qwen-edge", "openvino", "openvino-tokenizers"}
    assert set(facts.tool_versions(["openvino"])) == openvino
    assert set(facts.tool_versions(["onnx"])) == {"qwen-edge", "onnx-ir", "onnxruntime"}
    assert set(facts.tool_versions(["openvino", "onnx"])) == openvino | {"onnx-ir", "onnxruntime"}
