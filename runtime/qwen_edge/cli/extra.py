"""Which modules exporting needs that a light installation lacks.

They are looked for, not imported.
"""

import importlib.util

_EXPORT_MODULES = (
    "huggingface_hub",
    "openvino_tokenizers",
    "safetensors",
    "transformers",
    "qwen_edge.export",
)


def missing_export_modules() -> tuple[str, ...]:
    """Return the names of the modules that exporting needs and that are not installed."""
    return tuple(name for name in _EXPORT_MODULES if not _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: a module put there without a spec
        return False
