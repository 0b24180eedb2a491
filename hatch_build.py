"""Compile the kernels when the project is installed or packed.

Without a compiler, or on a system that they are not written for, the project is installed without
them: the engine's own kernels then run, and `qwen-edge doctor` says so. With
`QWEN_EDGE_REQUIRE_KERNELS=1` that is an error, for whoever makes wheels to give away.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled library into the wheel, or beside its sources for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files are collected."""
        if self.target_name != "wheel":
            return
        script = Path(self.root) / "scripts" / "build_kernels.py"
        spec = importlib.util.spec_from_file_location("build_kernels", script)
        assert spec is not None
        assert spec.loader is not None
        builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(builder)
        try:
            library = builder.build()
        except builder.BuildError as error:
            if os.environ.get("QWEN_EDGE_REQUIRE_KERNELS") == "1":
                raise
            self.app.display_warning(f"qwen-edge is installed without its own kernels: {error}")
            return
        build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(sys_tags()).platform}"
