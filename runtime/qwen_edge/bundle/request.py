"""What a bundle was asked for, and what that comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.bundle.systems import DEVICES
from qwen_edge.errors import PackageError, UsageError, did_you_mean
from qwen_edge.runtime.manifest import Manifest


@dataclass(frozen=True)
class BundleRequest:
    """What to bundle, and how.

    Args:
        package: The package folder.
        output: The bundle folder to be.
        devices: Out of "CPU", "GPU" and "NPU", in any case. Not given: the package's own.
        with_server: The server goes in; it must be installed.
        as_zip: Write `<output>.zip` beside the folder.
        force: Replace an earlier bundle at `output`.
    """

    package: Path
    output: Path
    devices: tuple[str, ...] | None = None
    with_server: bool = True
    as_zip: bool = False
    force: bool = False


def choose_devices(asked: Sequence[str] | None, manifest: Manifest) -> tuple[str, ...]:
    """Return the devices a bundle is for; the CPU, which every other falls back to, is one.

    Args:
        asked: What a person gave, or None.
        manifest: The package's.

    Raises:
        UsageError: A name is none of a device, or the package was not made for it.
        PackageError: The package holds no model for OpenVINO.
    """
    if not manifest.devices or "openvino" not in manifest.formats:
        raise PackageError(
            f"The package {manifest.name!r} holds an ONNX model only; bundles run OpenVINO.",
            "export it again with --format openvino or --format both",
            formats=manifest.formats,
        )
    made_for = {entry.device for entry in manifest.devices}
    if asked is None:
        return tuple(name for name in DEVICES if name in made_for | {"CPU"})
    names = [name.strip().upper() for name in asked if name.strip()]
    for name in names:
        if name not in DEVICES:
            raise UsageError(
                f"--devices: {name!r} is no device.{did_you_mean(name, DEVICES)}",
                "use some of: cpu, gpu, npu",
                device=name,
            )
        if name not in made_for | {"CPU"}:
            raise UsageError(
                f"--devices: the package {manifest.name!r} was not made for {name}, only for "
                f"{', '.join(sorted(made_for))}.",
                f"leave {name.lower()} out, or export with a profile that has it",
                device=name,
            )
    if not names:
        raise UsageError("--devices names no device.", "for example: --devices cpu")
    return tuple(name for name in DEVICES if name in {*names, "CPU"})
