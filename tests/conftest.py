"""Fixtures for all tests: a machine of their own, without network, and one exported package."""

import functools
import gc
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ("trust_rows",)

# A limit of time on a single example says how busy the machine is, not whether a law holds.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_finish() -> None:
    """Leave out of later collections of garbage what stays to the end: some 500,000 objects.

    Each would stop whatever thread it happens in for half a second and more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def isolated_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the whole run its own home and caches, and no way out but to this machine."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith(("QWEN_EDGE_", "HF_"))]:
        patch.delenv(name)
    patch.setenv("HOME", str(home))
    patch.setenv("USERPROFILE", str(home))
    patch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    patch.setenv("QWEN_EDGE_CACHE_DIR", str(home / "qwen-edge-cache"))
    patch.setenv("QWEN_EDGE_CONFIG_DIR", str(home / "qwen-edge-settings"))
    patch.setenv("HF_HOME", str(home / "huggingface"))
    patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    patch.setenv("NNCF_CI", "1")
    connect = socket.socket.connect

    def connect_here_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "127.0.0.1"
        if host not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"tests may not connect to {host!r}")
        connect(self, address)  # type: ignore[arg-type]

    patch.setattr(socket.socket, "connect", connect_here_only)
    yield home
    patch.undo()


@pytest.fixture(scope="session")
def demo_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo model as a package for Core Ultra; read only."""
    from qwen_edge.export import ExportRequest, export

    output = tmp_path_factory.mktemp("packages") / "demo"
    request = ExportRequest(model="demo", profile="core-ultra", output=output, skip_quality=True)
    return export(request).folder


@pytest.fixture(scope="session")
def onnx_demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a maker of the demo model's two ONNX files, read only.

    Its arguments: a recipe ("int4") and `is_portable` (False). Each is made once, in 0.1 s.
    """
    import qwen_edge.export
    from qwen_edge.export.checkpoint import open_checkpoint
    from qwen_edge.export.compress import Compressor
    from qwen_edge.export.decoder import read_spec
    from qwen_edge.export.onnx_files import write_onnx_model
    from qwen_edge.export.weight_store import WeightStore
    from qwen_edge.profiles.recipe import load_recipe

    demo = Path(qwen_edge.export.__file__).parent / "demo"

    @functools.cache
    def make(recipe: str = "int4", *, is_portable: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("onnx")
        spec = read_spec(json.loads((demo / "config.json").read_text(encoding="utf-8")))
        with WeightStore(tmp_path_factory.mktemp("spool") / "weights") as store:
            compressor = Compressor(open_checkpoint(demo), spec, load_recipe(recipe), store)
            compressor.compress_embeddings()
            for layer_index in range(spec.num_layers):
                compressor.compress_layer(layer_index)
            store.freeze()
            write_onnx_model(spec, store, folder, max_context_tokens=512, is_portable=is_portable)
        return folder

    return make
