"""The one place where OpenVINO is imported, so that it stays quiet and private.

OpenVINO's Python package, and NNCF after it, report every import to an analytics server and
keep a client id in the home folder. Both fall back to doing nothing when the reporting package
cannot be imported, and that is what happens here. Nothing else of this project may import
`openvino` first. This module knows no model; read `backends/openvino.py` for what is run.
"""

import importlib
import logging
import re
import sys
from types import ModuleType

from qwen_edge.errors import DeviceError, MissingExtraError

_LOGGER = logging.getLogger(__name__)
_TELEMETRY = "openvino_telemetry"
_MAX_MESSAGE_CHARACTERS = 300
_NOISE = re.compile(
    r"Exception from \S+:\d+:?\n?"
    r"|^Check '.*' failed at \S+:\d+:\n?"
    r"|^FrontEnd API failed with \w+:\n?",
    re.MULTILINE,
)
# A folder before a library's file name: only the name tells the user something.
_LIBRARY_FOLDER = re.compile(
    r"""((?<=")[^"\n]*|(?:/|[A-Za-z]:\\)[^\s"':]*)[/\\](?=[\w.-]+\.(?:so|dll|dylib)\b)"""
)


def import_openvino() -> ModuleType:
    """Import OpenVINO with its telemetry made impossible, for this process and for NNCF too.

    Returns:
        The module `openvino`. The first call takes 0.2 to 0.5 s, the others nothing.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        DeviceError: Its libraries cannot be loaded here.

    State:
        `openvino_telemetry` cannot be imported afterwards by anyone in this process. No
        socket is opened, no process started and no file written.
    """
    if _TELEMETRY not in sys.modules:
        # None is Python's own mark for "not to be imported"; both packages then use a stub.
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    elif sys.modules[_TELEMETRY] is not None:
        _LOGGER.warning("%s was imported before qwen-edge; it may send reports", _TELEMETRY)
    try:
        module = importlib.import_module("openvino")
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "openvino":
            raise MissingExtraError(
                "OpenVINO is not installed.",
                "pip install qwen-edge, which brings it except on Windows on ARM and Macs with "
                "Intel;\nthere pip install 'qwen-edge[onnx]', and run a package made with "
                "`qwen-edge export --format onnx`",
                package="openvino",
            ) from error
        raise DeviceError(
            f"OpenVINO could not be imported: {first_line(error)}.",
            "pip install --force-reinstall openvino, then run `qwen-edge doctor`.",
        ) from error
    if not hasattr(module, "Core"):
        raise DeviceError(
            f"The module 'openvino' that Python finds is not OpenVINO: "
            f"{getattr(module, '__file__', None) or 'a folder of that name'!s}.",
            "rename or remove it, or take its folder out of PYTHONPATH.",
        )
    return module


def first_line(error: BaseException) -> str:
    """Return what an engine's message says happened, as one line without a full stop.

    OpenVINO puts the places in its own source and the checks that found it before it, each
    as a line of its own; a line that ends in a colon goes on in the next.
    """
    text = _LIBRARY_FOLDER.sub("", _NOISE.sub("", str(error)))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = lines[0] if lines else type(error).__name__
    for line in lines[1:]:
        if not told.endswith(":"):
            break
        told = f"{told} {line}"
    return told[:_MAX_MESSAGE_CHARACTERS].rstrip(".: ")
