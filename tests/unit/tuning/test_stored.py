"""Results in the user's settings and in packages: when they hold, and that bad ones do no harm."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.manifest import DeviceSettings, FileFacts, Manifest
from qwen_edge.runtime.package import TUNED_NAME
from qwen_edge.runtime.schema import SchemaError, to_json
from qwen_edge.runtime.tuning.result import FORMAT_VERSION, Tuned, TunedFile
from qwen_edge.runtime.tuning.stored import apply_tuned, find_kept, forget_tuned, keep_tuned

OTHER_MACHINE = {"num_logical_cores": 999}


def bring(folder: Path, manifest: Manifest, *results: Tuned) -> Manifest:
    """Write results into a package folder; return a manifest that lists them."""
    (folder / TUNED_NAME).write_bytes(TunedFile(results).to_bytes())
    files = {**manifest.files, TUNED_NAME: FileFacts(1, "0" * 64)}
    return dataclasses.replace(manifest, files=files)


def on_other_machine(tuned: Tuned) -> Tuned:
    """Return a result of another machine."""
    return dataclasses.replace(tuned, machine=dataclasses.replace(tuned.machine, **OTHER_MACHINE))


@pytest.mark.usefixtures("settings_dir")
def test_what_was_kept_is_laid_over(
    tuned: Tuned, manifest: Manifest, settings: DeviceSettings, tmp_path: Path
) -> None:
    keep_tuned(tuned)
    changed, told = apply_tuned(tmp_path, manifest, settings)
    assert changed.properties == {**settings.properties, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64}
    assert changed.prefill_chunk_tokens == 256
    assert changed.max_context_tokens == settings.max_context_tokens
    assert told == (
        "tuned here for chat: DYNAMIC_QUANTIZATION_GROUP_SIZE=64, prefill_chunk_tokens=256, "
        "1.30 times as fast"
    )
    assert find_kept(manifest, "CPU") == tuned


def test_nothing_kept_is_nothing_said(
    manifest: Manifest, settings: DeviceSettings, settings_dir: Path, tmp_path: Path
) -> None:
    assert apply_tuned(tmp_path, manifest, settings) == (settings, None)
    assert not settings_dir.exists()
    assert find_kept(manifest, "CPU") is None


@pytest.mark.usefixtures("settings_dir")
def test_an_earlier_result_is_replaced_and_forgotten(
    tuned: Tuned, manifest: Manifest, settings: DeviceSettings, tmp_path: Path
) -> None:
    keep_tuned(tuned)
    path = keep_tuned(dataclasses.replace(tuned, changes={}, gain=1.0))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    same, told = apply_tuned(tmp_path, manifest, settings)
    assert (same, told) == (settings, "tuned here for chat: the package's settings are best")
    assert forget_tuned(manifest, "CPU")
    assert not forget_tuned(manifest, "CPU")
    assert apply_tuned(tmp_path, manifest, settings) == (settings, None)


@pytest.mark.usefixtures("settings_dir")
def test_another_engine_is_told_and_not_used(
    tuned: Tuned, manifest: Manifest, settings: DeviceSettings, tmp_path: Path
) -> None:
    keep_tuned(dataclasses.replace(tuned, engine="OpenVINO 1.0"))
    same, told = apply_tuned(tmp_path, manifest, settings)
    assert same == settings
    assert told is not None and told.startswith(f"tuned for OpenVINO 1.0, not {tuned.engine}")


@pytest.mark.usefixtures("settings_dir")
@pytest.mark.parametrize("other", ["model", "device"])
def test_another_model_or_device_is_another_matter(
    tuned: Tuned, manifest: Manifest, settings: DeviceSettings, tmp_path: Path, other: str
) -> None:
    keep_tuned(tuned)
    if other == "model":
        facts = manifest.files["openvino_model.bin"]
        files = {**manifest.files, "openvino_model.bin": dataclasses.replace(facts, size_bytes=7)}
        manifest = dataclasses.replace(manifest, files=files)
    else:
        settings = dataclasses.replace(settings, device="NPU")
    assert apply_tuned(tmp_path, manifest, settings) == (settings, None)


@pytest.mark.usefixtures("settings_dir")
def test_a_result_belongs_to_the_models_files_not_to_a_name_or_path(
    tuned: Tuned, manifest: Manifest, settings: DeviceSettings, tmp_path: Path
) -> None:
    keep_tuned(tuned)
    files = {**manifest.files, "README.md": FileFacts(1, "0" * 64)}
    other = dataclasses.replace(manifest, name="another name", files=files)
    assert apply_tuned(tmp_path / "elsewhere", other, settings)[1] is not None


@pytest.mark.usefixtures("settings_dir")
def test_a_package_brings_results_for_its_machines(
    tuned: Tuned, manifest: Manifest, settings: DeviceSettings, tmp_path: Path
) -> None:
    other = dataclasses.replace(on_other_machine(tuned), changes={"KV_CACHE_PRECISION": "f16"})
    listing = bring(tmp_path, manifest, other)
    assert apply_tuned(tmp_path, listing, settings) == (settings, None)
    listing = bring(tmp_path, manifest, other, tuned)
    changed, told = apply_tuned(tmp_path, listing, settings)
    assert changed.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 64
    assert changed.properties["KV_CACHE_PRECISION"] == "u8"
    assert told is not None and told.startswith("tuned, as the package brings it for chat")
    # Not listed, it is nobody's.
    assert apply_tuned(tmp_path, manifest, settings) == (settings, None)
    # What was measured here goes first.
    keep_tuned(dataclasses.replace(tuned, changes={"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}))
    changed, _ = apply_tuned(tmp_path, listing, settings)
    assert changed.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0


@pytest.mark.usefixtures("settings_dir")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        b'{"format": "qwen-edge-tuned", "format_version": 99, "results": []}',
        b'{"format": "qwen-edge-tuned", "format_version": 1}',
        b"x" * (2 << 20),
    ],
    ids=["empty", "object", "list", "bytes", "newer", "lacking", "large"],
)
def test_a_damaged_file_costs_speed_only(
    tuned: Tuned,
    manifest: Manifest,
    settings: DeviceSettings,
    tmp_path: Path,
    text: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keep_tuned(tuned).write_bytes(text)
    listing = bring(tmp_path, manifest)
    (tmp_path / TUNED_NAME).write_bytes(text)
    with caplog.at_level(logging.WARNING):
        assert apply_tuned(tmp_path, listing, settings) == (settings, None)
    assert len([record for record in caplog.records if "is not used" in record.message]) == 2
    assert "run `qwen-edge tune` again" in caplog.text


@pytest.mark.usefixtures("settings_dir")
@pytest.mark.parametrize(
    "changes",
    [{"CACHE_DIR": "/tmp"}, {"KV_CACHE_PRECISION": "f99"}, {"prefill_chunk_tokens": -1}],
    ids=str,
)
def test_changes_that_tuning_never_makes_are_not_believed(
    tuned: Tuned,
    manifest: Manifest,
    settings: DeviceSettings,
    tmp_path: Path,
    changes: dict[str, str | int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    listing = bring(tmp_path, manifest, dataclasses.replace(tuned, changes=changes))
    assert apply_tuned(tmp_path, listing, settings) == (settings, None)
    assert "Tuned settings are not used" in caplog.text


@pytest.mark.usefixtures("settings_dir")
def test_a_listed_file_that_is_missing_is_passed_over(
    tuned: Tuned, manifest: Manifest, settings: DeviceSettings, tmp_path: Path
) -> None:
    listing = bring(tmp_path, manifest, tuned)
    (tmp_path / TUNED_NAME).unlink()
    assert apply_tuned(tmp_path, listing, settings) == (settings, None)


def test_a_settings_folder_that_cannot_be_made_is_refused(tuned: Tuned, settings_dir: Path) -> None:
    settings_dir.write_text("a file")
    with pytest.raises(UsageError, match="cannot be made") as caught:
        keep_tuned(tuned)
    assert "QWEN_EDGE_CONFIG_DIR" in caught.value.fix


def test_a_file_reads_back_as_it_was_written(tuned: Tuned) -> None:
    file = TunedFile((tuned, on_other_machine(tuned)))
    assert TunedFile.from_bytes(file.to_bytes()) == file
    newer = {**to_json(file), "format_version": FORMAT_VERSION + 1}
    with pytest.raises(SchemaError, match="format_version"):
        TunedFile.from_bytes(json.dumps(newer).encode())
