"""Fixtures of the bundle's tests: one real bundle of the demo model, made once and read only."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from qwen_edge.bundle.pipeline import Bundle, make_bundle, plan_bundle
from qwen_edge.bundle.request import BundleRequest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bundle(demo_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle of the demo model for the CPU, with the server and a zip."""
    output = tmp_path_factory.mktemp("bundles") / "demo-app"
    request = BundleRequest(demo_package, output, devices=("cpu",), as_zip=True)
    return make_bundle(plan_bundle(request), lambda step, done, total: None)


@pytest.fixture
def own_copy(bundle: Bundle, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may damage, at a path that is hard to write."""
    return Path(shutil.copytree(bundle.folder, tmp_path / "eine Möglichkeit 测试" / "the app"))


@pytest.fixture
def start() -> Run:
    """Return a function that runs a bundle's launcher in an empty environment."""

    def call(
        folder: Path, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(folder / "qwen-edge"), *arguments],
            env=dict(env or {}),
            cwd=cwd or folder.parent,
            capture_output=True,
            text=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            timeout=300,
            check=False,
        )

    return call


@pytest.fixture
def is_root() -> bool:
    """Return whether this process may do everything, so that permissions stop nothing."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
