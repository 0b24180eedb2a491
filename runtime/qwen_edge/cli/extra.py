"""Which modules exporting needs that a light installation lacks.

They are looked for, not imported.
"""

import importlib.util
from collections.abc import Sequence

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
