"""Read an OpenVINO model from files and compile it for one device, with errors a person can use.

It does not know packages or choices: paths, a device's name and properties come in.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen_edge.errors import DeviceError, PackageError, ResourceError
from qwen_edge.runtime.backends.ir_file import RULES, check_ir
from qwen_edge.runtime.engine import first_line, import_openvino
from qwen_edge.runtime.records import Record, is_recorded, read_stamps, write_record

_HEAD_BYTES = 4096
_KIND = "checked-graphs"


def read_ir(xml_path: Path, *, records_dir: Path | None = None) -> Any:
    """Read an OpenVINO IR; its weights are mapped, not loaded.

    Args:
        xml_path: The `.xml` file; the `.bin` beside it has the same stem.
        records_dir: Where it is remembered of which files the text was checked, as long as these
            do not change (0.24 s for 36 layers); None to check it now and remember nothing.

    Returns:
        An `openvino.Model` that reads its weights from the file until it is compiled.

    Raises:
        PackageError: The files are no IR, or one that this OpenVINO refuses.
    """
    _check_is_ir(xml_path)
    _check_once(xml_path, records_dir)
    ov = import_openvino()
    try:
        return ov.Core().read_model(xml_path)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter where it quotes the file
        raise PackageError(
            f"OpenVINO {ov.__version__} cannot read {str(xml_path)!r}: {first_line(error)}.",
            "check the package with `qwen-edge verify`; if it is intact, update OpenVINO or "
            "export the package again.",
            path=str(xml_path),
            engine_message=str(error),
        ) from error


def compile_model(model: Any, device: str, properties: Mapping[str, str | bool | int]) -> Any:
    """Compile a model for a device; returns an `openvino.CompiledModel`.

    Args:
        model: What `read_ir` returned.
        device: "CPU", "GPU", "GPU.1", "NPU"; never "AUTO", whose fallbacks tell nothing.
        properties: OpenVINO properties, passed on as they are.

    Raises:
        DeviceError: The device's driver or compiler refused the model or a property.
        ResourceError: Memory ran out while compiling.
    """
    ov = import_openvino()
    try:
        return ov.Core().compile_model(model, device, dict(properties))
    except MemoryError as error:
        raise ResourceError(
            f"Memory ran out while the model was compiled for device {device!r}.",
            "close other programs, or use a smaller model.",
            device=device,
        ) from error
    except (RuntimeError, UnicodeDecodeError) as error:
        raise DeviceError(
            f"Device {device!r} refused the model (OpenVINO {ov.__version__}): "
            f"{first_line(error)}.",
            "run with --device CPU, or look for the cause with `qwen-edge doctor`.",
            device=device,
            engine_message=str(error),
        ) from error


@contextmanager
def blaming_the_model(name: str) -> Iterator[None]:
    """Say of a model what the engine said while it was looked at or changed.

    Args:
        name: The model's file.

    Raises:
        PackageError: The engine refused something; it is no decoder as our export writes them.
    """
    try:
        yield
    except (RuntimeError, UnicodeDecodeError) as error:
        raise PackageError(
            f"{name!r} is no decoder that can be made ready: {first_line(error)}.",
            "check the package with `qwen-edge verify`, or export it again.",
            engine_message=str(error),
        ) from error


def _check_once(xml_path: Path, records_dir: Path | None) -> None:
    """Hold the text against itself, unless a record says that this was done."""
    if records_dir is None:
        check_ir(xml_path)
        return
    paths = (xml_path, xml_path.with_suffix(".bin"))
    names = [path.name for path in paths if path.exists()]
    stamps = read_stamps(xml_path.parent, names)
    record = Record(_KIND, xml_path.parent, {"rules": RULES}, stamps, xml_path.name)
    if is_recorded(record, records_dir):
        return
    check_ir(xml_path)
    if read_stamps(xml_path.parent, names) == stamps:
        write_record(record, records_dir)


def _check_is_ir(xml_path: Path) -> None:
    """Look at the head: OpenVINO tries its other readers on what does not look like an IR.

    Those print on their own, and one of them can be made to read any address (ONNX).
    """
    try:
        with xml_path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise PackageError(
            f"{str(xml_path)!r} cannot be read: {error.strerror or error}.",
            "check the package with `qwen-edge verify`.",
            path=str(xml_path),
        ) from error
    if not head.startswith((b"<?xml", b"<net ")) or b"<net " not in head or b"<!" in head:
        raise PackageError(
            f"{str(xml_path)!r} is not an OpenVINO model: it does not begin as one.",
            "check the package with `qwen-edge verify`, or export it again.",
            path=str(xml_path),
        )
