"""`qwen-edge bundle`: what it refuses before anything is written, and what it tells."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen_edge.bundle import pipeline
from qwen_edge.bundle.readme import BundleFacts
from qwen_edge.bundle.request import BundleRequest
from qwen_edge.bundle.systems import find_system
from qwen_edge.cli.bundle_command import command
from qwen_edge.errors import EdgeError, OutputFolderError, PackageError, ResourceError, UsageError
from qwen_edge.runtime.package import SIGNATURE_NAME

SYSTEM = find_system("linux", "x86_64")


def call(*arguments: str | Path) -> str:
    """Run the command; deliberate errors come through, as the program's border catches them."""
    done = CliRunner().invoke(
        command, [str(argument) for argument in arguments], standalone_mode=False
    )
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[pipeline.BundlePlan]:
    """Let nothing be written; returns the plans that would have been carried out."""
    plans: list[pipeline.BundlePlan] = []

    def make(plan: pipeline.BundlePlan, progress: object) -> pipeline.Bundle:
        del progress
        plans.append(plan)
        return pipeline.Bundle(
            folder=plan.target,
            zip_path=None,
            facts=BundleFacts(SYSTEM, plan.program.devices, True, "2.34", "3.11.9", "0.1.0"),
            model_bytes=2_000_000,
            program_bytes=150_000_000,
            zip_bytes=None,
            sizes={"openvino": 90_000_000},
            golden_tokens=12,
        )

    monkeypatch.setattr(pipeline, "make_bundle", make)
    monkeypatch.chdir(tmp_path)
    return plans


def test_what_it_tells(demo_package: Path, made: list[pipeline.BundlePlan], tmp_path: Path) -> None:
    out = call(demo_package, "--without-server", "--quiet")
    assert out == f"{tmp_path / 'demo-bundle'}\n"
    [plan] = made
    assert plan.program.devices == ("CPU", "GPU", "NPU") and not plan.request.with_server
    data = json.loads(
        call(demo_package, "--without-server", "--devices", "cpu", "--output", "x", "--json")
    )
    assert data["devices"] == ["CPU"] and data["program_bytes"] == 150_000_000
    assert made[-1].target == tmp_path / "x"


def test_refusals_come_first(
    demo_package: Path,
    made: list[pipeline.BundlePlan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    refused: list[tuple[list[str | Path], type[EdgeError], str]] = [
        (["nowhere"], PackageError, "There is no folder"),
        ([tmp_path / "mine"], PackageError, "is not a model package"),
        ([demo_package, "--devices", "tpu"], UsageError, "is no device"),
        ([demo_package, "--output", "mine", "--force"], OutputFolderError, "not even with"),
        ([demo_package, "--output", "no/such"], OutputFolderError, "does not exist"),
        ([demo_package, "--output", demo_package / "in"], OutputFolderError, "its own package"),
    ]
    for arguments, kind, said in refused:
        with pytest.raises(kind, match=said):
            call(*arguments, "--without-server")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(ResourceError, match=r"of free disk at .* which\s+has 1 bytes"):
        call(demo_package, "--without-server")
    assert made == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_package_is_not_bundled(demo_package: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(demo_package, tmp_path / "damaged"))
    content = bytearray((package / "openvino_model.bin").read_bytes())
    content[1000] ^= 1
    (package / "openvino_model.bin").write_bytes(content)
    with pytest.raises(PackageError, match=r"openvino_model\.bin"):
        call(package, "--output", tmp_path / "app", "--without-server", "--quiet")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.trust("T-SUP-02")
def test_a_signature_goes_along_as_it_is(demo_package: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(demo_package, tmp_path / "package"))
    (package / SIGNATURE_NAME).write_bytes(b"signed")
    request = BundleRequest(package, tmp_path / "app", devices=("cpu",))
    plan = pipeline.plan_bundle(request)
    pipeline._copy_model(package, tmp_path / "model", plan, lambda step, done, total: None)
    copied = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in package.iterdir()}
    (package / SIGNATURE_NAME).unlink()
    (package / SIGNATURE_NAME).symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match="is a symbolic link"):
        pipeline._copy_model(package, tmp_path / "other", plan, lambda step, done, total: None)


def test_a_bundle_that_does_not_work_is_not_kept(
    demo_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_edge.bundle.trial import try_bundle

    root = tmp_path / "app"
    root.mkdir()
    launcher = root / "qwen-edge"
    launcher.write_text('#!/bin/sh\necho \'{"problem": "No room."}\' >&2\nexit 8\n')
    launcher.chmod(0o755)
    with pytest.raises(EdgeError, match=r"does not work: No room\. It was not kept"):
        try_bundle(root, "qwen-edge")
    launcher.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(EdgeError, match="it ended with code 3: it said nothing"):
        try_bundle(root, "qwen-edge")
    with pytest.raises(EdgeError, match="cannot be started"):
        try_bundle(root, "no-such-program")
