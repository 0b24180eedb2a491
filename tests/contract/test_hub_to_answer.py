"""The main job over a network: a hub id becomes a package that answers, and says where from."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwen_edge.export
from qwen_edge.runtime.package import read_manifest

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
STAND_IN = Path(__file__).parents[1] / "data" / "hub_stand_in.py"


@pytest.fixture
def hub() -> Iterator[str]:
    """Start a stand-in of the hub that serves the demo model as `test/demo`; yield its address.

    It breaks the first transfer of the weights off in the middle.
    """
    command = [sys.executable, str(STAND_IN), str(DEMO), "--id", "test/demo"]
    command += ["--cut", "model.safetensors", "3000000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate(timeout=30)  # its standard input closes: it ends


def _run(arguments: list[str], folder: Path, **environment: str) -> "subprocess.CompletedProcess":
    return subprocess.run(
        [sys.executable, "-m", "qwen_edge.cli", *arguments],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "hub cache"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_hub_id_becomes_a_package_that_answers(hub: str, tmp_path: Path) -> None:
    folder = tmp_path / "größe 大"
    folder.mkdir()
    explained = _run(["export", "test/demo", "--explain", "--json"], folder, HF_ENDPOINT=hub)
    plan = json.loads(explained.stdout)["plan"]
    assert plan["download_bytes"] > 6_000_000
    assert [path.name for path in folder.rglob("*.safetensors")] == []

    done = _run(
        ["export", "test/demo", "--profile", "core-ultra", "--skip-quality"],
        folder,
        HF_ENDPOINT=hub,
    )
    assert done.returncode == 0, done.stderr
    package = folder / "demo-core-ultra-int4"
    source = read_manifest(package).source
    assert (source.kind, source.id, source.license) == ("hub", "test/demo", "apache-2.0")
    assert source.revision is not None
    assert len(source.revision) == 40

    # Everything is cached now: the same export needs no hub.
    again = _run(
        ["export", "test/demo", "--offline", "--skip-quality", "--output", "again"], folder
    )
    assert again.returncode == 0, again.stderr
    bins = [path / "openvino_model.bin" for path in (package, folder / "again")]
    assert bins[0].read_bytes() == bins[1].read_bytes()

    asked = ["run", str(package), "What is 27 + 48?", "--no-think", "--temperature", "0"]
    answer = _run(asked, folder)
    assert (answer.returncode, answer.stdout) == (0, "27 + 48 = 75\n"), answer.stderr
