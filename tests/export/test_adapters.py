"""Adapters are merged as peft merges them, in any split, and misfits are named all at once."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from qwen_edge.errors import (
    CheckpointError,
    EdgeError,
    PackageError,
    ResourceError,
    UnsupportedArchitectureError,
    UsageError,
)
from qwen_edge.export import ExportRequest, export, prepare, prepare_export
from qwen_edge.export.adapters import merging
from qwen_edge.export.adapters.matching import find_base_notices, match_adapters
from qwen_edge.export.adapters.merging import MergedCheckpoint, narrow
from qwen_edge.export.adapters.opening import open_adapters
from qwen_edge.export.adapters.targets import find_targets
from qwen_edge.export.array_weights import make_random_arrays
from qwen_edge.export.checkpoint import check_tensors, open_checkpoint, widen
from qwen_edge.export.decoder import read_spec
from qwen_edge.export.model_card import write_model_card
from qwen_edge.export.quality import sealed
from qwen_edge.export.source import fetch_source, resolve_source
from qwen_edge.runtime.manifest import FileFacts, Manifest

GOLDENS = np.load(Path(__file__).parents[1] / "data" / "adapter_goldens.npz")
CASES = sorted({name.partition("/")[0] for name in GOLDENS.files})
QUERY = "model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, Any], dict[str, tuple[str, npt.NDArray[Any]]]], None]
Writer = Callable[..., None]


def load(name: str) -> Any:
    """Return a JSON text of the golden file."""
    return json.loads(GOLDENS[name].tobytes())


class Golden:
    """One case of the golden file, as folders on the disk."""

    def __init__(self, folder: Path, case: str, write: Writer) -> None:
        self.folder, self.case, self._write = folder, case, write
        facts = load(f"{case}/case")
        self.config, self.dtype, self.weights = facts["config"], facts["dtype"], facts["weights"]
        self.spec = read_spec(self.config)
        arrays = make_random_arrays(self.spec, seed=1)
        tensors = {name: (self.dtype, narrow(array, self.dtype)) for name, array in arrays.items()}
        base = folder / "base"
        base.mkdir()
        write(base / "model.safetensors", tensors)
        self.given = []
        for index, weight in enumerate(self.weights):
            self.write_adapter(index)
            self.given.append(f"{folder / f'a{index}'}={weight}")

    def write_adapter(self, index: int, change: Change | None = None) -> Path:
        """Write one adapter as peft saved it, or changed."""
        prefix = f"{self.case}/adapter/{index}/"
        config = load(f"{prefix}config")
        dtypes = load(f"{prefix}dtypes")
        tensors = {name: (dtypes[name], GOLDENS[f"{prefix}tensor/{name}"]) for name in dtypes}
        if change is not None:
            change(config, tensors)
        folder = self.folder / f"a{index}"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        self._write(folder / "adapter_model.safetensors", tensors)
        return folder

    def merge(self, *given: str) -> MergedCheckpoint:
        """Return the checkpoint with the adapters in it."""
        adapted = match_adapters(self.spec, open_adapters(given or self.given))
        checkpoint = open_checkpoint(self.folder / "base")
        check_tensors(checkpoint, self.spec.tensor_shapes(), is_tied=self.spec.is_tied)
        merged = adapted.merge_into(checkpoint)
        check_tensors(merged, adapted.spec.tensor_shapes(), is_tied=adapted.spec.is_tied)
        return merged

    def refusal(self, change: Change) -> EdgeError:
        """Return what is said of a changed adapter."""
        folder = self.write_adapter(0, change)
        with pytest.raises(EdgeError) as caught:
            match_adapters(self.spec, open_adapters([str(folder)]))
        return caught.value


@pytest.fixture
def golden(tmp_path: Path, write_tensors: Writer) -> Callable[[str], Golden]:
    """Return what writes a case of the golden file to the disk."""
    return lambda case: Golden(tmp_path, case, write_tensors)


def as_floats(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return stored values as numbers."""
    return widen(array, "BF16" if array.dtype == np.uint16 else "F32")


@pytest.mark.parametrize("block", [1 << 22, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_that_of_peft(
    case: str, block: int, golden: Callable[[str], Golden], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal but for sums in another order, which can tip a value from one number to the next."""
    monkeypatch.setattr(merging, "_BLOCK_VALUES", block)
    made = golden(case)
    merged, base = made.merge(), open_checkpoint(made.folder / "base")
    prefix = f"{case}/expected/"
    expected = {n.removeprefix(prefix) for n in GOLDENS.files if n.startswith(prefix)}
    for name in merged.entries:
        found = merged.raw(name)
        merged.check_finite(name)
        if name not in expected:
            before = base.raw(name if name in base.entries else "model.embed_tokens.weight")
            np.testing.assert_array_equal(found, before, err_msg=name)
            continue
        golden_bits = GOLDENS[prefix + name]
        assert found.dtype == golden_bits.dtype, name
        step = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 1e-6}[made.dtype]
        a, b = as_floats(found), as_floats(golden_bits)
        assert np.all(np.abs(a - b) <= step * np.abs(b) + 1e-6), name
        if made.dtype != "F32":
            assert np.mean(found != golden_bits) < 0.02, name
    assert expected <= set(merged.entries) | {"lm_head.weight"}


def test_several_adapters_are_a_sum(golden: Callable[[str], Golden]) -> None:
    """Their order does not matter, and weights multiply what each of them changes."""
    made = golden("two")
    name = "model.layers.0.self_attn.v_proj.weight"
    before = open_checkpoint(made.folder / "base").float32(name)
    folders = [str(made.folder / "a0"), str(made.folder / "a1")]
    first, second = (made.merge(folder).float32(name) - before for folder in folders)
    both = made.merge(f"{folders[1]}=2", f"{folders[0]}=-0.5").float32(name) - before
    assert np.abs(first).max() > 0.1
    np.testing.assert_allclose(both, 2 * second - 0.5 * first, atol=1e-6)


@pytest.mark.parametrize("case", ["dora", "saved", "tokens"])
def test_half_of_what_is_no_product_is_half_the_way(
    case: str, golden: Callable[[str], Golden]
) -> None:
    made = golden(case)
    base = open_checkpoint(made.folder / "base")
    whole, half = made.merge(), made.merge(f"{made.folder / 'a0'}=0.5")
    for name in base.entries:
        before, after = base.float32(name), whole.float32(name)
        middle = (before + after) / 2
        np.testing.assert_allclose(half.float32(name), middle, rtol=2.0**-6, atol=0.02)


def test_embedding_and_head_part_where_one_of_them_changes(
    golden: Callable[[str], Golden],
) -> None:
    made = golden("tied-embedding")
    adapted = match_adapters(made.spec, open_adapters(made.given))
    assert made.spec.is_tied
    assert not adapted.spec.is_tied
    assert "become two" in adapted.notices[0]


def test_tied_weights_stay_tied_where_both_change_alike(golden: Callable[[str], Golden]) -> None:
    tokens = golden("tokens")
    assert match_adapters(tokens.spec, open_adapters(tokens.given)).spec.is_tied

    def share(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["ensure_weight_tying"] = True

    saved = tokens.write_adapter(0, share)
    adapted = match_adapters(tokens.spec, open_adapters([str(saved)]))
    assert adapted.spec.is_tied


def test_a_head_saved_beside_an_equal_embedding(golden: Callable[[str], Golden]) -> None:
    made = golden("tied-saved-head")
    head = "base_model.model.lm_head.weight"

    def both(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["modules_to_save"] = ["lm_head", "embed_tokens"]
        tensors["base_model.model.model.embed_tokens.weight"] = tensors[head]

    adapters = open_adapters([str(made.write_adapter(0, both))])
    adapted = match_adapters(made.spec, adapters)
    assert adapted.spec.is_tied
    merged = adapted.merge_into(open_checkpoint(made.folder / "base"))
    expected = GOLDENS[f"tied-saved-head/expected/{head.removeprefix('base_model.model.')}"]
    np.testing.assert_array_equal(merged.raw("model.embed_tokens.weight"), expected)


def test_a_large_tensor_lies_in_a_file(
    golden: Callable[[str], Golden], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = golden("head-and-embedding")
    name = "model.embed_tokens.weight"
    in_memory = made.merge().raw(name)
    monkeypatch.setattr(merging, "_MAPPED_BYTES", 100)
    merged = made.merge()
    mapped = merged.raw(name)
    assert isinstance(mapped.base, np.memmap) or isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    assert merged.raw(name) is mapped  # merged once
    np.testing.assert_array_equal(mapped, in_memory)
    merged.close()
    np.testing.assert_array_equal(mapped, in_memory)


def test_a_full_disk_for_temporary_files(
    golden: Callable[[str], Golden], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A file on a disk without room."""

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *exc: object) -> None:
            return None

        def write(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    merged = golden("defaults").merge()
    monkeypatch.setattr(merging, "_MAPPED_BYTES", 1)
    monkeypatch.setattr(merging.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(ResourceError, match=r"the disk is full"):
        merged.raw(f"{QUERY}.weight")


@given(hnp.arrays(np.uint32, 12))
def test_rounding_to_bfloat16_is_to_the_nearest(bits: npt.NDArray[np.uint32]) -> None:
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]
    found = narrow(values, "BF16")
    wide = widen(found, "BF16").astype(np.float64)
    for other in (found + np.uint16(1), found - np.uint16(1)):
        neighbour = widen(other, "BF16").astype(np.float64)
        near, far = np.abs(wide - values), np.abs(neighbour - values)
        is_tie = near == far
        assert np.all((near < far) | np.isnan(neighbour) | (is_tie & (found % 2 == 0)))


def test_values_that_are_no_numbers_stay_none() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 3.4e38], np.float32)
    odd[:1].view(np.uint32)[:] = 0x7FFFFFFF
    wide = widen(narrow(odd, "BF16"), "BF16")
    assert not np.isfinite(wide).any()
    assert np.isnan(wide[0])


def _drop(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    del tensors[f"base_model.model.{QUERY}.lora_B.weight"]


def _add(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    name = f"base_model.model.{QUERY}.lora_A.weight"
    tensors[name.replace("q_proj", "o_proj")] = tensors[name]


def _rank(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config["r"] = 8


def _layer(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    name = f"base_model.model.{QUERY}.lora_A.weight"
    tensors[name.replace("layers.0", "layers.30")] = tensors[name]


def _shape(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    name = f"base_model.model.{QUERY}.lora_A.weight"
    tensors[name] = ("F32", np.zeros((4, 32), "<f4"))


def _dtype(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    name = f"base_model.model.{QUERY}.lora_A.weight"
    tensors[name] = ("I8", np.zeros((4, 16), np.int8))


def _vocabulary(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = ("F32", np.zeros((44, 16), "<f4"))


def _untargeted(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config["target_modules"] = ["in_proj"]
    tensors.clear()
    tensors["lora"] = ("F32", np.zeros(1, "<f4"))


def _no_bias(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config["lora_bias"] = True
    for name in list(tensors):
        if "lora_B" in name:
            bias = np.zeros(tensors[name][1].shape[0], "<f4")
            tensors[name.replace(".weight", ".bias")] = ("F32", bias)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_drop, rf"'{QUERY}.lora_B.weight' is missing"),
        (_add, r"'model.layers.0.self_attn.o_proj.lora_A.weight' is nothing that its config"),
        (_rank, rf"'{QUERY}.lora_A.weight' has shape \[4, 16\], expected \[8, 16\]"),
        (_layer, r"layers.30.*' is for a layer that this model, of 2, lacks"),
        (_shape, rf"'{QUERY}.lora_A.weight' has shape \[4, 32\], expected \[4, 16\]"),
        (_dtype, rf"'{QUERY}.lora_A.weight' has dtype I8, expected BF16, F16 or F32"),
        (_vocabulary, r"'model.embed_tokens.weight' has shape \[44, 16\], expected \[40, 16\]"),
        (_untargeted, r"'lora' is nothing that its configuration asks for"),
        (_no_bias, r"'model.layers.1.self_attn.v_proj' has no bias"),
    ],
)
def test_tensors_that_do_not_fit(
    change: Change, problem: str, golden: Callable[[str], Golden]
) -> None:
    error = golden("defaults").refusal(change)
    assert isinstance(error, CheckpointError)
    assert re.search(problem, "; ".join(error.facts["problems"]))


def test_every_misfit_stands_in_one_error(golden: Callable[[str], Golden]) -> None:
    def spoil(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        for change in (_drop, _add, _layer):
            change(config, tensors)

    error = golden("defaults").refusal(spoil)
    assert "in 3 places" in error.problem
    assert len(error.facts["problems"]) == 3


@pytest.mark.parametrize(
    ("settings", "kind", "problem"),
    [
        ({"peft_type": "LOHA"}, UsageError, r"is of the kind 'LOHA'"),
        ({"peft_type": None}, UsageError, r"is of the kind None"),
        ({"use_qalora": True}, UsageError, r"pools its input in groups \('use_qalora'"),
        ({"layer_replication": [[0, 2]]}, UsageError, r"repeats layers"),
        ({"init_lora_weights": "pissa_niter_4"}, UsageError, r"began as 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, UsageError, r"takes a part out of the checkpoint"),
        ({"use_new_thing": True}, UsageError, r"does not know: 'use_new_thing'"),
        ({"target_modules": r"(.*a)*"}, UsageError, r"repeats a group"),
        ({"target_modules": ".*" * 7}, UsageError, r"has 7 repetitions"),
        ({"target_modules": "(q"}, UsageError, r"is no regular expression"),
        ({"target_modules": "q" * 3000}, UsageError, r"3,000 characters"),
        ({"r": 0}, CheckpointError, r"rank 'r' is 0, expected 1 to"),
        ({"r": "8"}, CheckpointError, r"'r' is '8', expected a whole number"),
        ({"rank_pattern": {"q_proj": -1}}, CheckpointError, r"rank 'q_proj' is -1"),
        ({"lora_alpha": 1e9}, CheckpointError, r"strength 'lora_alpha' is 1e\+09"),
        ({"bias": "some"}, CheckpointError, r"'bias' is 'some'"),
        ({"task_type": "SEQ_CLS"}, CheckpointError, r"'task_type' is 'SEQ_CLS'"),
        ({"target_modules": []}, CheckpointError, r"'target_modules' is empty"),
        ({"target_modules": 5}, CheckpointError, r"'target_modules' is 5"),
        ({"trainable_token_indices": [40]}, CheckpointError, r"are no rows of this vocabulary"),
        ({"trainable_token_indices": [-1]}, CheckpointError, r"are no rows of this vocabulary"),
        ({"modules_to_save": ["norm"]}, CheckpointError, r"'model.norm.weight' is missing"),
    ],
)
def test_settings_that_cannot_be_merged(
    settings: dict[str, Any],
    kind: type[EdgeError],
    problem: str,
    golden: Callable[[str], Golden],
) -> None:
    error = golden("defaults").refusal(lambda config, tensors: config.update(settings))
    assert isinstance(error, kind)
    assert re.search(problem, "; ".join([error.problem, *error.facts.get("problems", ())]))


def test_settings_without_effect_are_passed_over(golden: Callable[[str], Golden]) -> None:
    made = golden("defaults")

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config |= {"lora_dropout": 0.1, "fan_in_fan_out": True, "init_lora_weights": "gaussian"}
        config |= {"revision": "main", "use_future_thing": False}

    expected = made.merge().raw(f"{QUERY}.weight")
    merged = made.merge(str(made.write_adapter(0, change)))
    np.testing.assert_array_equal(merged.raw(f"{QUERY}.weight"), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.trust("T-EXP-18")
def test_values_of_an_adapter_that_are_no_numbers(
    value: float, golden: Callable[[str], Golden]
) -> None:
    made = golden("defaults")

    def spoil(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        name = f"base_model.model.{QUERY}.lora_A.weight"
        array = np.array(tensors[name][1])
        array[1, 2] = value
        tensors[name] = ("F32", array)

    merged = made.merge(str(made.write_adapter(0, spoil)))
    with pytest.raises(CheckpointError, match=r"'adapter_model.safetensors' holds 1 values"):
        merged.check_finite(f"{QUERY}.weight")
    merged.check_finite(f"{QUERY.replace('q_', 'v_')}.weight")


@pytest.mark.parametrize("module", ["self_attn.q_proj", "self_attn.o_proj"])
def test_values_of_the_checkpoint_that_are_no_numbers(
    module: str, golden: Callable[[str], Golden], write_tensors: Writer
) -> None:
    """Whether an adapter changes the tensor or not, the checkpoint's file is named."""
    made = golden("defaults")
    name = f"model.layers.0.{module}.weight"
    entries = open_checkpoint(made.folder / "base")
    tensors = {n: (e.dtype, np.array(entries.raw(n))) for n, e in entries.entries.items()}
    tensors[name][1][0, 1] = 0x7F80
    entries.close()
    write_tensors(made.folder / "base" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"'model.safetensors' holds 1 values"):
        made.merge().check_finite(name)


def test_a_merge_that_leaves_the_range(golden: Callable[[str], Golden]) -> None:
    made = golden("f16")

    def stretch(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["lora_alpha"] = 1e6

    merged = made.merge(str(made.write_adapter(0, stretch)))
    with pytest.raises(CheckpointError, match=r"leaves the range of its dtype F16") as caught:
        merged.check_finite(f"{QUERY}.weight")
    assert "=0.5" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}=abc", r"is 'abc', expected a number other than 0"),
        ("{}=", r"is '', expected a number"),
        ("{}=0", r"is '0', expected a number other than 0"),
        ("{}=nan", r"is 'nan'"),
        ("{}=inf", r"is 'inf'"),
        ("{}=1e9", r"is '1e9'"),
        ("{}x", r"There is no adapter folder"),
        ("", r"There is no adapter folder ''"),
        ("=1", r"There is no adapter folder"),
        ("{}\0", r"There is no adapter folder"),
        ("user/adapter", r"There is no adapter folder 'user/adapter'"),
    ],
)
def test_texts_that_name_no_adapter(
    text: str, problem: str, golden: Callable[[str], Golden]
) -> None:
    folder = golden("defaults").folder / "a0"
    with pytest.raises(UsageError, match=problem):
        open_adapters([text.format(folder)])


def test_a_folder_with_an_equals_sign(golden: Callable[[str], Golden]) -> None:
    made = golden("defaults")
    odd = made.folder / "rank=0.5"
    (made.folder / "a0").rename(odd)
    (whole,) = open_adapters([str(odd)])
    (half,) = open_adapters([f"{odd}=0.5"])
    assert (whole.name, whole.weight, half.weight) == ("rank=0.5", 1.0, 0.5)


def test_the_same_adapter_twice(golden: Callable[[str], Golden]) -> None:
    folder = str(golden("defaults").folder / "a0")
    with pytest.raises(UsageError, match=r"is given twice"):
        open_adapters([folder, f"{folder}=0.5"])


@pytest.mark.trust("T-IN-15")
def test_folders_that_are_no_adapters(golden: Callable[[str], Golden], tmp_path: Path) -> None:
    folder = golden("defaults").folder / "a0"
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"which could run any code") as caught:
        open_adapters([str(folder)])
    assert "safe_serialization" in caught.value.fix
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no 'adapter_config.json'\.") as caught:
        open_adapters([str(folder)])
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"it is a model, not an adapter") as caught:
        open_adapters([str(folder)])
    assert caught.value.fix.startswith("export it directly: qwen-edge export ")


def test_another_base_model_is_told(golden: Callable[[str], Golden]) -> None:
    made = golden("defaults")

    def name(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["base_model_name_or_path"] = "/models/Qwen3-4B-Base/"

    adapters = open_adapters([str(made.write_adapter(0, name))])
    (notice,) = find_base_notices(adapters, ["Qwen/Qwen3-4B", None])
    assert "'/models/Qwen3-4B-Base/'" in notice
    assert "'Qwen/Qwen3-4B'" in notice
    assert not find_base_notices(adapters, ["my-copy", "qwen/qwen3-4b-base"])


def test_ends_of_names_are_whole_parts(golden: Callable[[str], Golden]) -> None:
    made = golden("defaults")

    def settings(targets: object) -> Any:
        def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
            config["target_modules"] = targets

        return open_adapters([str(made.write_adapter(0, change))])[0].settings

    assert list(find_targets(settings(["0.mlp.up_proj"]), made.spec)) == [
        "model.layers.0.mlp.up_proj"
    ]
    assert not find_targets(settings(["proj"]), made.spec)
    assert len(find_targets(settings("all-linear"), made.spec)) == 14
    assert len(find_targets(settings(None), made.spec)) == 4
    unsloth = (
        r"(?:.*?(?:text).*?(?:mlp).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:(?:up_proj)))"
    )
    assert len(find_targets(settings(unsloth), made.spec)) == 2


@pytest.fixture
def tiny_lora(tmp_path: Path, write_tensors: Writer) -> Path:
    """Return an adapter of every projection of the tiny checkpoint, and of its embedding."""
    random = np.random.RandomState(3)
    shapes = {"self_attn.q_proj": (64, 64), "mlp.down_proj": (64, 128), "mlp.up_proj": (128, 64)}
    tensors: dict[str, tuple[str, npt.NDArray[Any]]] = {}
    for index in range(2):
        for module, (rows, width) in shapes.items():
            for part, shape in (("lora_A", (4, width)), ("lora_B", (rows, 4))):
                name = f"base_model.model.model.layers.{index}.{module}.{part}.weight"
                tensors[name] = ("F32", random.standard_normal(shape).astype("<f4") * 0.2)
    for part, shape in (("A", (4, 1024)), ("B", (64, 4))):
        name = f"base_model.model.model.embed_tokens.lora_embedding_{part}"
        tensors[name] = ("F32", random.standard_normal(shape).astype("<f4") * 0.2)
    folder = tmp_path / "my-lora"
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj", "up_proj", "embed_tokens"],
        "base_model_name_or_path": "/home/someone/models/other",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tensors(folder / "adapter_model.safetensors", tensors)
    return folder


def test_an_export_is_that_of_the_merged_checkpoint(
    tmp_path: Path, tiny_checkpoint: Path, tiny_lora: Path, write_tensors: Writer
) -> None:
    given = f"{tiny_lora}=0.5"
    request = ExportRequest(
        str(tiny_checkpoint), "generic-x86", adapters=(given,), skip_quality=True
    )
    prepared = prepare_export(request)
    assert prepared.resolved.name == "tiny-my-lora-generic-x86-int4"
    notices = "\n".join(prepared.source.notices)
    assert "'/home/someone/models/other', and is merged into 'tiny'" in notices
    assert "become two" in notices
    result = export(replace(request, output=tmp_path / "package"))
    (entry,) = result.manifest.source.adapters
    assert (entry.name, entry.weight, entry.base_model) == ("my-lora", 0.5, "other")
    for name, file in entry.files.items():
        assert file.sha256 == hashlib.sha256((tiny_lora / name).read_bytes()).hexdigest()
    assert len(entry.files) == 2
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "tiny with my-lora merged into it as a model package" in card
    assert "| adapter | my-lora, times 0.5, made for other |" in card

    reference = fetch_source(resolve_source(str(tiny_checkpoint)))
    with sealed._open_reference(result.folder, reference, [given]) as (found, checkpoint):
        assert not found.is_tied
        assert isinstance(checkpoint, MergedCheckpoint)
    with pytest.raises(UsageError, match=r"is_tied is True there") as caught:
        sealed._open_reference(result.folder, reference, []).__enter__()
    assert "--adapter" in caught.value.fix

    folder = tmp_path / "merged"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_bytes())
    spec = read_spec(config)
    merged = match_adapters(spec, open_adapters([given])).merge_into(open_checkpoint(folder))
    arrays = {name: (e.dtype, np.array(merged.raw(name))) for name, e in merged.entries.items()}
    merged.close()
    write_tensors(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": False}), encoding="utf-8"
    )
    plain = replace(request, model=str(folder), adapters=(), output=tmp_path / "plain")
    plain_folder = export(plain).folder
    for name in ("openvino_model.bin", "openvino_model.xml", "config.json"):
        assert (result.folder / name).read_bytes() == (plain_folder / name).read_bytes(), name


def test_an_adapter_that_does_not_fit_writes_nothing(
    tmp_path: Path, tiny_checkpoint: Path, tiny_lora: Path, golden: Callable[[str], Golden]
) -> None:
    other = golden("patterns").folder / "a0"
    output = tmp_path / "package"
    request = ExportRequest(
        str(tiny_checkpoint), "generic-x86", output=output, adapters=(str(tiny_lora), str(other))
    )
    with pytest.raises(CheckpointError, match=r"The adapter 'a0' does not fit this model"):
        prepare_export(request)
    assert not output.exists()


def test_an_architecture_without_a_graph_takes_none(
    tiny_checkpoint: Path, tiny_lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "read_native_spec", lambda config: None)
    request = ExportRequest(str(tiny_checkpoint), "generic-x86", adapters=(str(tiny_lora),))
    with pytest.raises(UnsupportedArchitectureError, match=r"no native graph, and adapters"):
        prepare_export(request)


def test_adapters_in_a_manifest_and_a_card() -> None:
    """Names come from strangers, and hashes are checked as all others are."""
    sample = Path(__file__).parents[1] / "data" / "manifest.json"
    manifest = Manifest.from_bytes(sample.read_bytes())
    (entry,) = manifest.source.adapters
    nasty = replace(entry, name="x | `rm`\n---", base_model="a|b")
    source = replace(manifest.source, adapters=(nasty,))
    text = write_model_card(replace(manifest, source=source), ("openvino",))
    assert "| adapter | x \\| \\`rm\\` ---, times 0.5, made for a\\|b |" in text
    broken = replace(entry, files={"adapter_config.json": FileFacts(5, "xyz")})
    source = replace(manifest.source, adapters=(broken,))
    with pytest.raises(PackageError, match=r"'source.adapters\[0\].files' gives 'adapter_config"):
        replace(manifest, source=source).to_bytes()


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_shared_product_is_stored_twice(is_equal: bool, golden: Callable[[str], Golden]) -> None:
    """With ensure_weight_tying; where the two have drifted apart, both count."""
    made = golden("tied-embedding")
    prefix = "base_model.model."

    def share(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["ensure_weight_tying"] = True
        embedding = f"{prefix}model.embed_tokens.lora_embedding_"
        for part, other in (("A", "B"), ("B", "A")):
            array = np.ascontiguousarray(tensors[embedding + other][1].T)
            factor = np.float32(1 if is_equal else 2)
            tensors[f"{prefix}lm_head.lora_{part}.weight"] = ("F32", array * factor)

    adapted = match_adapters(made.spec, open_adapters([str(made.write_adapter(0, share))]))
    assert adapted.spec.is_tied == is_equal
    merged = adapted.merge_into(open_checkpoint(made.folder / "base"))
    before = open_checkpoint(made.folder / "base").float32("model.embed_tokens.weight")
    expected = GOLDENS["tied-embedding/expected/model.embed_tokens.weight"]
    np.testing.assert_array_equal(merged.raw("model.embed_tokens.weight"), expected)
    if not is_equal:
        delta = widen(expected, "BF16") - before
        head = merged.float32("lm_head.weight")
        np.testing.assert_allclose(head, before + 4 * delta, atol=0.1, rtol=0.05)
