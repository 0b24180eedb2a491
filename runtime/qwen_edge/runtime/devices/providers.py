"""The one place where ONNX Runtime is imported, and which execution providers it has here.

The engine reports its use over the network and keeps a device id in the home folder unless told
otherwise before it is loaded. Nothing else of this project may import `onnxruntime` first. This
module does not choose; see `qwen_edge.profiles.providers` for that.
"""

import functools
import importlib
import importlib.util
import logging
import os
import platform
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from qwen_edge.errors import DeviceError, EdgeError, MissingExtraError
from qwen_edge.profiles.providers import NOT_HERE, Provider, load_providers
from qwen_edge.runtime.engine import first_line

_LOGGER = logging.getLogger(__name__)
_NAME = "onnxruntime"
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_FATAL = 4  # what matters comes as an exception as well; below this the engine writes to stderr


@dataclass(frozen=True)
class ProviderReport:
    """One execution provider. `reason` says why it cannot be used, or is None where it can."""

    name: str
    device: str
    reason: str | None = None

    @property
    def is_available(self) -> bool:
        """True where ONNX Runtime has it."""
        return self.reason is None


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry off, and silent.

    Returns:
        The module `onnxruntime`. The first call takes 0.1 to 0.2 s, the others nothing.

    Raises:
        MissingExtraError: It is not installed.
        DeviceError: Its library cannot be loaded here.

    State:
        The environment of this process, and so of its children, has telemetry switched off. No
        socket is opened and no file written.
    """
    was_imported = sys.modules.get(_NAME) is not None
    if was_imported and os.environ.get(_NO_TELEMETRY) != "1":
        _LOGGER.warning("%s was imported before qwen-edge; it may send reports", _NAME)
    # Read when the library is loaded; the call below comes too late for its first report.
    os.environ[_NO_TELEMETRY] = "1"
    try:
        module = importlib.import_module(_NAME)
        module.disable_telemetry_events()
        if not was_imported:  # else it is somebody else's to set
            module.set_default_logger_severity(_FATAL)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise _broken(error) from error
        raise MissingExtraError(
            "Running ONNX models needs 'onnxruntime', which is not installed.",
            "pip install 'qwen-edge[onnx]'",
            package=_NAME,
        ) from error
    except (ImportError, OSError, AttributeError) as error:
        raise _broken(error) from error
    return module


def _broken(error: BaseException) -> DeviceError:
    return DeviceError(
        f"ONNX Runtime could not be imported: {first_line(error)}.",
        "pip install --force-reinstall onnxruntime, then run `qwen-edge doctor`.",
    )


def probe_providers() -> tuple[ProviderReport, ...]:
    """Return a report for every known execution provider, in order of preference.

    Never raises: where ONNX Runtime itself cannot be imported, all are absent for it.

    State:
        Providers that are installed as libraries of their own are registered with the engine.
    """
    try:
        module = import_onnxruntime()
        built_in = tuple(module.get_available_providers())
    except (EdgeError, RuntimeError, AttributeError) as error:
        reason = error.problem if isinstance(error, EdgeError) else first_line(error)
        return tuple(ProviderReport(entry.name, entry.device, reason) for entry in load_providers())
    return tuple(
        ProviderReport(entry.name, entry.device, _why_absent(module, entry, built_in))
        for entry in load_providers()
    )


def find_plugin_devices(module: Any, provider: Provider) -> tuple[Any, ...]:
    """Return what a provider with a library of its own runs on; empty for one built in.

    Args:
        module: What `import_onnxruntime` returned.
        provider: Registered first where its library is installed.

    Raises:
        DeviceError: The library is installed and cannot be registered.
    """
    if provider.plugin is None or importlib.util.find_spec(provider.plugin) is None:
        return ()
    problem = _register(provider.plugin)
    if problem is not None:
        raise DeviceError(
            f"{provider.name} cannot be registered with ONNX Runtime: {problem}.",
            provider.install,
            provider=provider.name,
        )
    return tuple(device for device in module.get_ep_devices() if device.ep_name == provider.name)


@functools.cache
def _register(plugin: str) -> str | None:
    """Register a library, once per process; returns why it was refused, or None."""
    engine = import_onnxruntime()
    try:
        path = importlib.import_module(plugin).get_library_path()
        engine.register_execution_provider_library(plugin, path)
    except Exception as error:  # a package of somebody else, which may raise anything
        _LOGGER.debug("%s cannot be registered", plugin, exc_info=True)
        return first_line(error)
    return None


def _why_absent(module: Any, provider: Provider, built_in: tuple[str, ...]) -> str | None:
    if provider.name in built_in:
        return None
    if provider.systems and platform.system() not in provider.systems:
        return f"there is none for {platform.system()}"
    try:
        if find_plugin_devices(module, provider):
            return None
    except (DeviceError, RuntimeError, AttributeError) as error:
        return error.problem if isinstance(error, DeviceError) else first_line(error)
    if provider.plugin is not None and importlib.util.find_spec(provider.plugin) is not None:
        return f"it is installed, and finds no {provider.device} here"
    return NOT_HERE
