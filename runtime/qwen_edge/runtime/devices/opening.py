"""Which of a package's models is run: the IR with OpenVINO, or the ONNX model with ONNX Runtime.

A package holds its model in one format or both, and each format has an engine. Where one cannot
run here the other is taken, and why is part of the answer. What each engine does is in
`openvino_opening.py` and `onnx_opening.py`; they are imported when they are needed, so that a
machine with one engine does not miss the other.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_edge.errors import (
    DeviceError,
    EdgeError,
    MissingExtraError,
    ParityError,
    ResourceError,
    UsageError,
    did_you_mean,
    join_problems,
)
from qwen_edge.profiles.choose import AUTO, Choice
from qwen_edge.profiles.properties import DEVICES
from qwen_edge.profiles.providers import load_providers
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.devices.trying import Refusal, list_refusals
from qwen_edge.runtime.manifest import FORMAT_ENGINES, DeviceSettings, FormatName, Manifest

_LOGGER = logging.getLogger(__name__)

BackendName = Literal["auto", "openvino", "onnx"]


@dataclass(frozen=True)
class Opened:
    """A model that was made ready.

    Args:
        backend: Empty.
        name: The format it runs.
        choice: Its device's settings, with the reason for both.
        refusals: Every device that was passed over or is not there, of those that come into
            question.
    """

    backend: Backend
    name: FormatName
    choice: Choice[DeviceSettings]
    refusals: tuple[Refusal, ...] = ()


def find_device_name(device: str) -> str:
    """Return a device, execution provider or "auto" as its engine writes it.

    Args:
        device: In any case.

    Raises:
        UsageError: It is none of those known; the text names the closest one.
    """
    providers = tuple(provider.name for provider in load_providers())
    known = (AUTO, *DEVICES, *providers)
    for name in known:
        if device.lower() == name.lower():
            return name
    hint = did_you_mean(device.upper(), DEVICES) or did_you_mean(device, known)
    raise UsageError(
        f"Unknown device {device!r}.{hint}",
        f"use one of: {', '.join(known)}",
        device=device,
    )


def choose_formats(
    folder: Path, manifest: Manifest, *, backend: str = AUTO, device: str = AUTO
) -> tuple[FormatName, ...]:
    """Return the formats of a package that come into question, the one to try first in front.

    Args:
        folder: For messages.
        manifest: The package's.
        backend: "auto", "openvino" or "onnx".
        device: As for `open_backend`.

    Raises:
        UsageError: The package does not hold the format that is asked for, the device is an
            execution provider and no ONNX model may be run, or it is no device at all.
    """
    is_provider = find_device_name(device) not in (AUTO, *DEVICES)
    names = tuple(name for name in manifest.formats if backend in (AUTO, name))
    if not names:
        raise UsageError(
            f"backend is {backend!r}, but the package {str(folder)!r} holds the model for "
            f"{' and '.join(manifest.formats)} only.",
            f"leave the backend at {AUTO!r}, or export the package again: "
            "qwen-edge export … --format both",
            backend=backend,
            formats=manifest.formats,
        )
    if not is_provider:
        return names
    if "onnx" not in names:
        raise UsageError(
            f"Device {device!r} is an execution provider of ONNX Runtime, but "
            + (
                f"backend is {backend!r}."
                if "onnx" in manifest.formats
                else f"the package {str(folder)!r} holds the model for {names[0]} only."
            ),
            "use one of auto, CPU, GPU or NPU, or an ONNX model (qwen-edge export … --format both)",
            device=device,
            formats=manifest.formats,
        )
    return ("onnx",)


def open_backend(
    folder: Path,
    manifest: Manifest,
    *,
    backend: str = AUTO,
    device: str = AUTO,
    threads: int | None = None,
) -> Opened:
    """Make one of the package's models ready, trying its formats in order where asked to.

    Args:
        folder: The package folder, already checked.
        manifest: What `read_manifest` returned for it.
        backend: "openvino" or "onnx" is tried alone; "auto" tries the package's formats in
            order and goes on to the next where an engine is not installed, has no such device,
            or is refused by it. A damaged model is not passed over.
        device: "auto", "CPU", "GPU", "NPU" or the name of an execution provider. One that is
            named is never exchanged for another; with "auto" for the backend, the same device
            may be served by the other engine.
        threads: CPU threads; None for the engine's choice.

    Returns:
        The backend; the reason of its choice names every format and device passed over, and
        `refusals` has them one by one.

    Raises:
        UsageError: See `choose_formats`.
        MissingExtraError: The engine is not installed.
        DeviceError: Nothing, or not what was asked for, can run it.
        PackageError: The model's files are not what the manifest says.
        ParityError: The device asked for does not answer as the package was sealed.
        ResourceError: Memory cannot suffice.
    """
    names = choose_formats(folder, manifest, backend=backend, device=device)
    refusals: list[tuple[FormatName, EdgeError]] = []
    passed: tuple[Refusal, ...] = ()
    for name in names:
        refused: dict[str, str] = {}
        try:
            made, choice = open_format(
                name, folder, manifest, device=device, threads=threads, refused=refused
            )
        except (DeviceError, MissingExtraError, ParityError, ResourceError) as error:
            if len(names) == 1:
                raise
            # Not installed is a choice somebody made; the rest may be a surprise.
            level = logging.INFO if isinstance(error, MissingExtraError) else logging.WARNING
            _LOGGER.log(
                level, "%s cannot run this package: %s", FORMAT_ENGINES[name], error.problem
            )
            refusals.append((name, error))
            is_missing = isinstance(error, MissingExtraError)
            asked = "" if is_missing or device == AUTO else device
            passed += list_refusals(name, refused or {asked: error.problem})
            continue
        if refusals:
            reason = f"{choice.reason}; with {name}, because {_describe(refusals)}"
            choice = Choice(choice.value, reason)
        return Opened(made, name, choice, (*passed, *list_refusals(name, refused)))
    raise _join_refusals(refusals) from refusals[-1][1]


def open_format(
    name: FormatName,
    folder: Path,
    manifest: Manifest,
    *,
    device: str,
    threads: int | None,
    refused: dict[str, str] | None = None,
) -> tuple[Backend, Choice[DeviceSettings]]:
    """Make the model ready in one format, with the format's engine.

    Args:
        name: One that the package holds.
        folder: The package folder, already checked.
        manifest: The package's.
        device: As for `open_backend`.
        threads: As for `open_backend`.
        refused: Takes up the devices that were passed over and why; what it holds before is
            passed over as well.

    Raises:
        EdgeError: As `open_backend`.
    """
    if name == "openvino":
        from qwen_edge.runtime.devices.openvino_opening import open_openvino_backend as open_it
    else:
        from qwen_edge.runtime.devices.onnx_opening import open_onnx_backend as open_it
    return open_it(folder, manifest, device=device, threads=threads, refused=refused)


def _describe(refusals: Sequence[tuple[FormatName, EdgeError]]) -> str:
    return join_problems(
        [f"{name} cannot: {error.problem.rstrip('.')}" for name, error in refusals]
    )


def _join_refusals(refusals: Sequence[tuple[FormatName, EdgeError]]) -> EdgeError:
    """Return one error for several: of their class where they have one, with all their fixes."""
    errors = [error for _, error in refusals]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else DeviceError
    return kind(
        f"No engine can run this package: {_describe(refusals)}.",
        "\n".join(dict.fromkeys(error.fix for error in errors if error.fix)),
        refusals=tuple((name, error.problem) for name, error in refusals),
    )
