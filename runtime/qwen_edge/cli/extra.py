"""Which modules exporting needs, whether they are installed, and whether they can be imported."""

import importlib
import importlib.util
from collections.abc import Sequence

from qwen_edge.errors import MissingExtraError

_EXPORT_MODULES = (
    "huggingface_hub",
    "safetensors",
    "transformers",
    "qwen_edge.export",
)
_FORMAT_MODULES = {
    "openvino": ("openvino", "openvino_tokenizers"),
    "onnx": ("onnx", "onnx_ir", "onnxruntime"),
}


def missing_export_modules(formats: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the modules that exporting needs and that are not installed.

    Args:
        formats: "openvino", "onnx" or both, where that is known already.
    """
    names = (*_EXPORT_MODULES, *(name for key in formats for name in _FORMAT_MODULES[key]))
    return tuple(name for name in names if not _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: a module put there without a spec
        return False


def check_engines(formats: Sequence[str]) -> None:
    """Refuse to export where what writes or runs a format is installed and cannot be imported.

    It would be met at the last step otherwise, after a download and minutes of work.

    Raises:
        EdgeError: Says which, and what its import said.
    """
    from qwen_edge.runtime.devices.providers import import_onnxruntime
    from qwen_edge.runtime.engine import import_openvino

    if "openvino" in formats:
        import_openvino()
    if "onnx" in formats:
        import_onnxruntime()
        for name in ("onnx", "onnx_ir"):
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise MissingExtraError(
                    f"Exporting needs {name!r}, which cannot be imported: {error}.",
                    "pip install --force-reinstall onnx onnx-ir",
                    package=name,
                ) from error
