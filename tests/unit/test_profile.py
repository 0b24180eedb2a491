"""Profiles: the catalog is complete; an own file works the same; a bad one is refused once."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.profiles import check_recipe, load_profile, load_recipe, profile_names
from qwen_edge.profiles.profile import DeviceProfile

OWN = """
summary = "my laptop"
recipe = "int4-awq"

[[devices]]
device = "CPU"
max_context_tokens = 8192
prefill_chunk_tokens = 256

[devices.properties]
INFERENCE_NUM_THREADS = 4
SCHEDULING_CORE_TYPE = { value = "PCORE_ONLY", reason = "12.1 against 10.4 tokens/s here" }
"""


def write(folder: Path, text: str, name: str = "my-laptop.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: str | Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_profile(path)
    assert caught.value.fix
    return caught.value


def problems_of(path: Path) -> str:
    problems = refusal(path).facts["problems"]
    assert isinstance(problems, tuple)
    assert len(problems) == len(set(problems))
    return " | ".join(problems)


# ---- the catalog


def test_the_catalog_has_the_six_profiles() -> None:
    assert profile_names() == (
        "core-ultra",
        "core-ultra-cpu",
        "core-ultra-gpu",
        "core-ultra-npu",
        "generic-onnx",
        "generic-x86",
    )


@pytest.mark.parametrize("name", profile_names())
def test_every_value_of_the_catalog_has_a_reason(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.summary
    assert profile.recipe_reason
    assert profile.format_reason
    assert set(profile.onnx.reasons) == set(profile.onnx.to_json())
    for entry in profile.devices:
        limits = ["max_context_tokens", "prefill_chunk_tokens"]
        if entry.device == "NPU":
            limits += ["max_prompt_tokens", "min_response_tokens"]
        assert set(entry.reasons) == {"device", *limits, *entry.properties}
        assert all(entry.reasons.values())


@pytest.mark.parametrize("name", profile_names())
def test_the_default_recipe_is_legal_on_every_device(name: str) -> None:
    profile = load_profile(name)
    check_recipe(load_recipe(profile.recipe), profile)


def test_core_ultra_lists_gpu_then_cpu_then_npu_with_the_settings_of_each() -> None:
    merged = load_profile("core-ultra")
    assert [entry.device for entry in merged.devices] == ["GPU", "CPU", "NPU"]
    for entry, name in zip(merged.devices, ("gpu", "cpu", "npu"), strict=True):
        alone = load_profile(f"core-ultra-{name}").devices[0]
        assert entry.to_manifest() == alone.to_manifest()
        assert entry.reasons["device"] != alone.reasons["device"]


def test_every_value_of_the_catalog_says_whether_it_was_measured() -> None:
    """No GPU and no NPU ever was; of the CPU's values at least the speeds were."""
    for name in profile_names():
        for entry in load_profile(name).devices:
            assert set(entry.reasons) - set(entry.measured) <= {"device"}
            values = {entry.measured[key] for key in entry.reasons if key != "device"}
            assert values == ({True, False} if entry.device == "CPU" else {False})


def test_the_order_of_core_ultra_rests_on_published_figures_and_says_so() -> None:
    for entry in load_profile("core-ultra").devices:
        assert entry.measured["device"] is False
        assert "published" in entry.reasons["device"]


def test_the_cpu_quantises_activations_in_groups_no_larger_than_the_default() -> None:
    """Groups of 128 are faster and doubled the distance to the original; see the reason."""
    for name in ("core-ultra-cpu", "generic-x86"):
        entry = load_profile(name).devices[0]
        assert entry.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 32
        assert "0.246" in entry.reasons["DYNAMIC_QUANTIZATION_GROUP_SIZE"]


def test_the_npu_lengths_reach_the_plugin_and_add_up() -> None:
    entry = load_profile("core-ultra-npu").devices[0]
    prompt, response = entry.max_prompt_tokens, entry.min_response_tokens
    assert (prompt, response) == (2048, 2048)
    assert entry.max_context_tokens == 4096
    assert entry.prefill_chunk_tokens == 2048
    assert entry.properties == {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_LLM_MAX_PROMPT_LEN": 2048,
        "NPUW_LLM_MIN_RESPONSE_LEN": 2048,
        "NPUW_LLM_PREFILL_CHUNK_SIZE": 256,
        "NPUW_LLM_ENABLE_CONTINUOUS_PREFILL": "YES",
    }


def test_json_holds_values_with_reasons_and_the_manifest_only_values() -> None:
    profile = load_profile("core-ultra")
    document = json.loads(json.dumps(profile.to_json()))
    gpu = document["devices"][0]
    assert gpu["properties"]["INFERENCE_PRECISION_HINT"]["value"] == "f16"
    assert gpu["settings"]["max_context_tokens"]["reason"]
    assert gpu["settings"]["max_context_tokens"]["measured"] is False
    assert (gpu["measured"], gpu["note"]) == (False, profile.devices[0].note)
    assert "reason" not in json.dumps([entry.to_manifest() for entry in profile.devices])


# ---- a person's own file


def test_an_own_file_works_like_the_catalog(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path, OWN)))
    entry = profile.devices[0]
    assert (profile.name, profile.summary, profile.recipe) == ("my-laptop", "my laptop", "int4-awq")
    assert entry.properties == {
        "INFERENCE_NUM_THREADS": 4,
        "SCHEDULING_CORE_TYPE": "PCORE_ONLY",
    }
    assert entry.reasons["INFERENCE_NUM_THREADS"] == "your profile file"
    assert entry.reasons["SCHEDULING_CORE_TYPE"] == "12.1 against 10.4 tokens/s here"


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "notepad.toml"
    path.write_bytes(b"\xef\xbb\xbf" + OWN.replace("\n", "\r\n").encode())
    assert load_profile(path).summary == "my laptop"


def test_extends_changes_only_what_the_file_says(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'extends = "core-ultra"\n[[devices]]\ndevice = "CPU"\nmax_context_tokens = 4096\n'
        "[devices.properties]\nINFERENCE_NUM_THREADS = 4\n",
    )
    profile, parent = load_profile(path), load_profile("core-ultra")
    assert [entry.device for entry in profile.devices] == ["GPU", "CPU", "NPU"]
    assert profile.devices[0] == parent.devices[0]
    assert profile.devices[2] == parent.devices[2]
    cpu, before = profile.devices[1], parent.devices[1]
    assert cpu.max_context_tokens == 4096
    assert cpu.properties == {**before.properties, "INFERENCE_NUM_THREADS": 4}
    assert cpu.reasons["device"] == before.reasons["device"]
    assert cpu.reasons["max_context_tokens"] == "your profile file"


def test_what_a_file_changes_is_no_longer_as_well_founded_as_before(tmp_path: Path) -> None:
    text = (
        'extends = "core-ultra-cpu"\n[[devices]]\ndevice = "CPU"\nmax_context_tokens = 4096\n'
        "prefill_chunk_tokens = { value = 256, measured = true }\n"
        "[devices.properties]\nINFERENCE_NUM_THREADS = 4\n"
    )
    entry, parent = load_profile(write(tmp_path, text)).devices[0], load_profile("core-ultra-cpu")
    before = parent.devices[0]
    assert "max_context_tokens" not in entry.measured  # nobody says
    assert "INFERENCE_NUM_THREADS" not in entry.measured
    assert entry.measured["prefill_chunk_tokens"] is True
    assert entry.measured["KV_CACHE_PRECISION"] is before.measured["KV_CACHE_PRECISION"]
    assert (entry.note, entry.measured["device"]) == (before.note, before.measured["device"])


def test_a_file_may_say_once_that_all_its_values_were_measured(tmp_path: Path) -> None:
    text = OWN.replace('device = "CPU"', 'device = "CPU"\nmeasured = true\nnote = "on mains"')
    text = text.replace('"PCORE_ONLY",', '"PCORE_ONLY", measured = false,')
    entry = load_profile(write(tmp_path, text)).devices[0]
    assert [name for name, flag in entry.measured.items() if not flag] == ["SCHEDULING_CORE_TYPE"]
    assert set(entry.measured) == set(entry.reasons)
    assert entry.note == "on mains"


def test_extends_several_sets_the_order(tmp_path: Path) -> None:
    path = write(tmp_path, 'extends = ["core-ultra-cpu", "core-ultra-gpu"]\n')
    assert [entry.device for entry in load_profile(path).devices] == ["CPU", "GPU"]


def test_a_changed_npu_length_changes_all_that_follows_from_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'extends = "core-ultra-npu"\n[[devices]]\ndevice = "NPU"\nmax_prompt_tokens = 4096\n',
    )
    entry = load_profile(path).devices[0]
    assert entry.max_context_tokens == 4096 + 2048
    assert entry.prefill_chunk_tokens == 4096
    assert entry.properties["NPUW_LLM_MAX_PROMPT_LEN"] == 4096


# ---- refusals


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    text = OWN.replace("max_context_tokens", "max_contex_tokens").replace(
        "INFERENCE_NUM_THREADS = 4", "INFERENCE_NUM_THREAD = 4"
    )
    problems = problems_of(write(tmp_path, f"colour = 1\n{text}"))
    assert "unknown key 'colour'. Known keys: name, summary, extends, recipe, format, " in problems
    expected = "CPU: unknown key 'max_contex_tokens'. Did you mean 'max_context_tokens'?"
    assert expected in problems
    assert "CPU: max_context_tokens is missing" in problems


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("8192", "100", "CPU: max_context_tokens is 100; expected 256 to 262,144"),
        ("8192", "-1", "CPU: max_context_tokens is -1; expected 256 to 262,144"),
        ("8192", "8192.0", "CPU: max_context_tokens is 8192.0; expected a whole number"),
        ("8192", "true", "CPU: max_context_tokens is true; expected a whole number"),
        ("8192", '"8192"', "CPU: max_context_tokens is '8192'; expected a whole number"),
        ("= 256", "= 0", "CPU: prefill_chunk_tokens is 0; expected 1 to max_context_tokens, 8,192"),
        ("= 256", "= 9000", "expected 1 to max_context_tokens, 8,192"),
        ("int4-awq", "int4-aqw", "recipe is 'int4-aqw'; expected one of auto, fp16, int4"),
        ("int4-awq", "./my.toml", "Your own recipe file goes with --recipe"),
        ('"CPU"', '"cpu"', "device is 'cpu'; expected one of CPU, GPU, NPU. Did you mean 'CPU'?"),
        ('"CPU"', '"TPU"', "device is 'TPU'; expected one of CPU, GPU, NPU"),
        ('"CPU"', "7", "device is 7; expected one of CPU, GPU, NPU"),
        ("= 4", "= 0", "CPU: INFERENCE_NUM_THREADS is 0; expected a whole number from 1 to 1,024"),
        ("= 4", "= 1.5", "INFERENCE_NUM_THREADS is 1.5; expected a text or a whole number"),
        ("= 4", "= true", "INFERENCE_NUM_THREADS is true; expected a whole number from"),
        ("INFERENCE_NUM_THREADS", "INFERENCE_NUM_THREAD", "Did you mean 'INFERENCE_NUM_THREADS'?"),
        ("INFERENCE_NUM_THREADS", "NPU_TURBO", "NPU_TURBO is not a property of CPU; it is one of"),
        ("INFERENCE_NUM_THREADS = 4", 'CACHE_DIR = "x"', "a path does not belong into a package"),
        ("PCORE_ONLY", "P_CORES", "expected one of ANY_CORE, PCORE_ONLY, ECORE_ONLY"),
        ("reason =", "why =", "SCHEDULING_CORE_TYPE: unknown key 'why'"),
        ("reason =", "measured = 1, reason =", "TYPE: measured is 1; expected true or false"),
        ('device = "CPU"', 'device = "CPU"\nmeasured = "no"', "CPU: measured is 'no'; expected"),
        ('device = "CPU"', 'device = "CPU"\nnote = 3', "CPU: note is 3; expected one line"),
        (
            "recipe =",
            "onnx.accuracy_level = { value = 1, measured = true }\nrecipe =",
            "'measured'",
        ),
        ('"my laptop"', '""', "summary is ''; expected one line of text"),
        ('"my laptop"', '"\\u001b[31mred"', "expected one line of text"),
        ("[devices.properties]", "[[devices.properties]]", "properties is not a table"),
        ("[[devices]]", "[devices]", "devices is not a list of tables"),
        ('recipe = "int4-awq"', "", "recipe is missing"),
        (
            "recipe =",
            'format = "onxx"\nrecipe =',
            "format is 'onxx'; expected one of openvino, onnx",
        ),
        ("recipe =", "onnx = 1\nrecipe =", "onnx is no table"),
        ("recipe =", "onnx.threads = 1\nrecipe =", "onnx: unknown key 'threads'"),
        ("recipe =", "onnx.accuracy_level = 2\nrecipe =", "accuracy_level is 2; expected 1 or 4"),
        ("recipe =", "onnx.max_context_tokens = 9\nrecipe =", "max_context_tokens is 9; expected"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert old in OWN
    text = OWN.replace(old, new, 1)
    if old == "[[devices]]":
        text = text.replace("[devices.properties]", "[devices.x]")
    assert expected in problems_of(write(tmp_path, text))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("max_prompt_tokens = 1000", "max_prompt_tokens is 1,000; expected a multiple of 64"),
        ("max_prompt_tokens = 65536", "max_prompt_tokens is 65,536; expected a multiple of 64"),
        ("max_prompt_tokens = 1088", "expected a multiple of NPUW_LLM_PREFILL_CHUNK_SIZE, 256"),
        ("min_response_tokens = 0", "min_response_tokens is 0; expected a multiple of 64"),
        ("max_context_tokens = 4096", "worked out from max_prompt_tokens and min_response_tokens"),
        (
            "[devices.properties]\nNPUW_LLM_MAX_PROMPT_LEN = 512",
            "property NPUW_LLM_MAX_PROMPT_LEN: write max_prompt_tokens instead",
        ),
        (
            "[devices.properties]\nNPUW_LLM_PREFILL_CHUNK_SIZE = 1000",
            "expected a power of two from 64 to 8,192",
        ),
    ],
)
def test_npu_lengths_are_checked_before_a_compiler_sees_them(
    tmp_path: Path, lines: str, expected: str
) -> None:
    text = f'extends = "core-ultra-npu"\n[[devices]]\ndevice = "NPU"\n{lines}\n'
    assert expected in problems_of(write(tmp_path, text))


def test_npu_lengths_are_not_for_a_cpu(tmp_path: Path) -> None:
    text = OWN.replace("max_context_tokens = 8192", "max_prompt_tokens = 1024")
    assert "max_prompt_tokens is for NPU only" in problems_of(write(tmp_path, text))


def test_a_device_twice_is_refused(tmp_path: Path) -> None:
    more = '\n[[devices]]\ndevice = "CPU"\nmax_context_tokens = 512\nprefill_chunk_tokens = 1\n'
    assert "device CPU is listed more than once" in problems_of(write(tmp_path, OWN + more))


@pytest.mark.parametrize(
    ("extends", "expected"),
    [
        ('"core-ultra-cp"', "names no profile of the catalog. Did you mean 'core-ultra-cpu'?"),
        ('["core-ultra", "core-ultra-cpu"]', "CPU comes from more than one profile"),
        ("3", "extends is 3; expected a name or a list"),
        ("[]", "it has no device"),
    ],
)
def test_a_wrong_extends_is_refused(tmp_path: Path, extends: str, expected: str) -> None:
    path = write(tmp_path, f'recipe = "int4"\nextends = {extends}\n')
    assert expected in problems_of(path)


def test_a_name_of_the_catalog_is_not_for_own_files(tmp_path: Path) -> None:
    problems = problems_of(write(tmp_path, OWN, "core-ultra.toml"))
    assert "its name 'core-ultra' belongs to the catalog" in problems


# ---- the classes by themselves


def test_a_device_built_by_hand_is_checked_too() -> None:
    with pytest.raises(UsageError, match="expected 256 to 262,144"):
        DeviceProfile("CPU", {}, max_context_tokens=1, prefill_chunk_tokens=1)
    with pytest.raises(UsageError, match="an NPU needs max_prompt_tokens"):
        DeviceProfile("NPU", {}, max_context_tokens=4096, prefill_chunk_tokens=1)
    with pytest.raises(UsageError, match="expected 2,048 \\+ 1,024 = 3,072"):
        DeviceProfile("NPU", {}, 4096, 2048, max_prompt_tokens=2048, min_response_tokens=1024)


def test_a_profile_cannot_be_changed() -> None:
    profile = load_profile("generic-x86")
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.recipe = "fp16"  # type: ignore[misc]
    with pytest.raises(TypeError):
        profile.devices[0].properties["X"] = 1  # type: ignore[index]


def test_a_profile_without_devices_is_refused() -> None:
    with pytest.raises(UsageError, match="it has no device"):
        dataclasses.replace(load_profile("generic-x86"), devices=())


def test_a_profile_with_a_device_twice_is_refused() -> None:
    profile = load_profile("generic-x86")
    with pytest.raises(UsageError, match="device CPU is listed more than once"):
        dataclasses.replace(profile, devices=profile.devices * 2)


def test_the_files_shown_in_the_docs_are_read(tmp_path: Path) -> None:
    """Both TOML examples of docs/recipes-and-legality.md load as they stand."""
    page = Path(__file__).parents[2] / "docs/recipes-and-legality.md"
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    profile = load_profile(write(tmp_path, blocks[0]))
    assert [entry.device for entry in profile.devices] == ["CPU", "GPU"]
    assert profile.devices[0].max_context_tokens == 8192
    assert load_recipe(write(tmp_path, blocks[1], "my-recipe.toml")).group_size == 64


def test_settings_of_the_onnx_form_are_inherited_one_by_one(tmp_path: Path) -> None:
    first = tmp_path / "mine.toml"
    first.write_text('extends = "generic-onnx"\n[onnx]\naccuracy_level = 1\n', encoding="utf-8")
    profile = load_profile(first)
    parent = load_profile("generic-onnx")
    assert profile.format == parent.format == "onnx"
    assert (profile.onnx.accuracy_level, parent.onnx.accuracy_level) == (1, 4)
    assert profile.onnx.max_context_tokens == parent.onnx.max_context_tokens
    assert profile.onnx.reasons["max_context_tokens"] == parent.onnx.reasons["max_context_tokens"]
