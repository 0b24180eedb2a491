"""What `pip install` brings where: a machine without a wheel of OpenVINO must not be left out."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def brings(names: list[str], package: str, system: str, machine: str) -> bool:
    """Return whether one of the requirements asks for a package on a machine."""
    environment = {"sys_platform": system, "platform_machine": machine}
    return any(
        requirement.name == package
        and (requirement.marker is None or requirement.marker.evaluate(environment))
        for requirement in map(Requirement, names)
    )


@pytest.mark.parametrize(
    ("system", "machine", "has_openvino"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("win32", "AMD64", True),
        ("darwin", "arm64", True),
        ("win32", "ARM64", False),
        ("darwin", "x86_64", False),
        ("linux", "riscv64", False),
    ],
)
def test_openvino_comes_where_it_has_a_wheel(system: str, machine: str, has_openvino: bool) -> None:
    """Which it has was asked of the package index, for 2026.4.1."""
    assert brings(PROJECT["dependencies"], "openvino", system, machine) is has_openvino
    extra = PROJECT["optional-dependencies"]["onnx"]
    assert brings(extra, "onnxruntime", system, machine)
    assert brings(extra, "protobuf", system, machine)
    assert not brings(extra, "openvino", system, machine)


def test_every_place_names_the_same_openvino() -> None:
    found = {str(r.specifier) for r in map(Requirement, PROJECT["dependencies"]) if r.marker}
    assert len(found) == 1
    [converter] = [
        requirement
        for requirement in map(Requirement, PROJECT["optional-dependencies"]["export"])
        if requirement.name == "openvino-tokenizers"
    ]
    assert str(converter.specifier) == f"{found.pop()}.0"


def test_tests_install_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is skipped for want of a package would be green and say nothing."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("test_script", ROOT / "scripts" / "test.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    calls: list[list[list[str]]] = []

    def remember(folder: Path, requirements: list[list[str]]) -> Path:
        calls.append(requirements)
        return folder

    monkeypatch.setattr(script, "make_environment", remember)
    monkeypatch.setattr(script, "run", lambda command: None)
    monkeypatch.setattr(sys, "argv", ["test.py", "--without-torch"])
    script.main()
    [[install]] = calls
    assert install[:2] == ["--editable", ".[export-onnx,serve,dev]"]
    names = {Requirement(text).name for text in install[2:]}
    assert {"openvino-genai", "onnxruntime-genai", "nncf"} <= names
