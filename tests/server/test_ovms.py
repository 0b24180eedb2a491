"""What OpenVINO Model Server is started with. The program itself is not here to be run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge.cli.main import run
from qwen_edge.errors import OutputFolderError, PackageError, UsageError
from qwen_edge.runtime.package import read_manifest, verify_package
from qwen_edge.server.ovms import write_ovms_folder


def read_options(graph: str) -> dict[str, object]:
    """Return the options of the calculator."""
    inner = graph.split("LLMCalculatorOptions]: {")[1].split("\n    }")[0]
    return {
        name: json.loads(value.rstrip(","))
        for name, value in re.findall(r"^\s+(\w+): (.+)$", inner, re.M)
    }


def test_a_package_is_served_where_it_lies(demo_package: Path, tmp_path: Path) -> None:
    output = tmp_path / "Modelle für Ämter"
    manifest = read_manifest(demo_package)
    written = write_ovms_folder([(demo_package, manifest)], output, device="CPU", parallel=3)
    assert written.names == (manifest.name,)
    config = json.loads((output / "config.json").read_bytes())
    assert config == {
        "model_config_list": [],
        "mediapipe_config_list": [{"name": manifest.name, "base_path": manifest.name}],
    }
    graph = (output / manifest.name / "graph.pbtxt").read_text(encoding="utf-8")
    assert graph.count("{") == graph.count("}")
    options = read_options(graph)
    assert options["models_path"] == demo_package.as_posix()
    assert (options["device"], options["max_num_seqs"]) == ("CPU", 3)
    assert (options["tool_parser"], options["reasoning_parser"]) == ("hermes3", "qwen3")
    properties = json.loads(str(options["plugin_config"]))
    expected = next(entry for entry in manifest.devices if entry.device == "CPU")
    assert properties == dict(expected.properties)
    assert not verify_package(demo_package).problems
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name]


def test_the_npu_has_a_longest_prompt_and_no_batches(demo_package: Path, tmp_path: Path) -> None:
    manifest = read_manifest(demo_package)
    write_ovms_folder([(demo_package, manifest)], tmp_path / "x", device="NPU", parallel=3)
    graph = (tmp_path / "x" / manifest.name / "graph.pbtxt").read_text(encoding="utf-8")
    options = read_options(graph)
    settings = next(entry for entry in manifest.devices if entry.device == "NPU")
    assert options["max_prompt_len"] == settings.max_prompt_tokens
    assert not {"cache_size", "max_num_seqs"} & set(options)


def test_what_cannot_be_is_refused_and_nothing_written(demo_package: Path, tmp_path: Path) -> None:
    manifest = read_manifest(demo_package)
    one = (demo_package, manifest)
    with pytest.raises(UsageError, match="named"):
        write_ovms_folder([one, one], tmp_path / "x", parallel=1)
    with pytest.raises(PackageError, match="no OpenVINO model"):
        files = {name: facts for name, facts in manifest.files.items() if ".xml" not in name}
        onnx = replace(manifest, files=files, devices=())
        write_ovms_folder([(demo_package, onnx)], tmp_path / "x", parallel=1)
    with pytest.raises(UsageError, match="was not made for 'TPU'"):
        write_ovms_folder([one], tmp_path / "x", device="TPU", parallel=1)
    with pytest.raises(OutputFolderError, match="does not exist"):
        write_ovms_folder([one], tmp_path / "no" / "x", parallel=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    with pytest.raises(OutputFolderError, match="something at"):
        write_ovms_folder([one], tmp_path / "full", parallel=1)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_command_writes_it(
    demo_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "repository"
    assert run(["serve", str(demo_package), "--emit", "ovms", "--output", str(output)]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(output)
    assert f"--config_path {output / 'config.json'}" in shown.err
    assert run(["serve", str(demo_package), "--emit", "ovms"]) == 2
    assert "--output" in capsys.readouterr().err
