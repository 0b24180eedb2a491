"""Which of a package's devices a model may use, and how it is loaded on another of them.

The order is the package's: OpenVINO's devices as the profile lists them, then ONNX Runtime's. With
a device that was asked for there is only that one. `failover.py` decides when one takes over;
`opening.py` opens the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import PackageError
from qwen_edge.profiles.choose import AUTO, Choice
from qwen_edge.runtime.backends.failover import FailoverBackend
from qwen_edge.runtime.backends.mapped_files import WEIGHT_FILES, MappedFiles
from qwen_edge.runtime.backends.seats import Candidate, Loaded
from qwen_edge.runtime.devices.opening import (
    Opened,
    choose_formats,
    find_device_name,
    open_backend,
    open_format,
)
from qwen_edge.runtime.devices.trying import Refusal
from qwen_edge.runtime.files.opening import inside
from qwen_edge.runtime.manifest import (
    FORMAT_FILES,
    MANIFEST_NAME,
    DeviceSettings,
    FormatName,
    Manifest,
)
from qwen_edge.runtime.records import read_stamps
from qwen_edge.runtime.snapshots.binding import SnapshotBinding, bind_package


@dataclass(frozen=True)
class Placement:
    """Where a model runs.

    Args:
        name: The format it runs.
        choice: The device's settings, and why this one.
        binding: What snapshots taken there belong to.
    """

    name: FormatName
    choice: Choice[DeviceSettings]
    binding: SnapshotBinding


@dataclass(frozen=True)
class _Place:
    """A device or provider of one engine, as `open_format` takes it and refusals name it."""

    format: FormatName
    device: str


class PackageDevices:
    """The devices of one package; see `DeviceSource`.

    Args:
        folder: The package folder, already checked.
        manifest: The package's.
        device: "auto", or the one that was asked for.
        backend: "auto", or the one that was asked for.
        threads: CPU threads; None for the engine's choice.

    State:
        Remembers refusals, and how the package's files were at the beginning; guards them until
        `mapped` is closed.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, backend: str, device: str, threads: int | None
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._backend = backend
        self._device = find_device_name(device)
        self._threads = threads
        self._places: dict[Candidate, _Place] = {}
        self._refusals: dict[tuple[FormatName, str], Refusal] = {}
        self._formats = choose_formats(folder, manifest, backend=backend, device=device)
        self._files = [MANIFEST_NAME]
        self._files += [name for fmt in self._formats for name in FORMAT_FILES[fmt]]
        self.mapped = MappedFiles(
            inside(folder, name) for name in self._files if name in WEIGHT_FILES
        )
        self._stamps = read_stamps(folder, self._files)

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The devices in order of preference, without those that were refused."""
        return [
            candidate
            for candidate, place in self._places.items()
            if (place.format, place.device) not in self._refusals
        ]

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The devices that were passed over or given up, and why."""
        return tuple(self._refusals.values())

    def open_first(self) -> tuple[Candidate, Loaded[Placement]]:
        """Load the model on the best device; to be called once.

        Raises:
            EdgeError: As `open_backend`.
        """
        with self.mapped.changing():
            opened = open_backend(
                self._folder,
                self._manifest,
                backend=self._backend,
                device=self._device,
                threads=self._threads,
            )
        for refusal in opened.refusals:
            self._refusals[refusal.format, refusal.device] = refusal
        self._places = dict(self._list_places(opened))
        settings = opened.choice.value
        first = next(
            candidate
            for candidate, place in self._places.items()
            if (place.format, place.device) == (opened.name, _known_name(opened))
        )
        limit = opened.backend.max_context_tokens
        return (
            Candidate(first.name, limit, settings.max_prompt_tokens),
            Loaded(opened.backend, self._bind(opened.name, opened.choice)),
        )

    def load(self, candidate: Candidate, reason: str) -> Loaded[Placement]:
        """Load the model on one device.

        Raises:
            PackageError: The package is not the one the model came from any more.
            EdgeError: As `open_format`.
        """
        place = next(p for c, p in self._places.items() if c.name == candidate.name)
        if read_stamps(self._folder, self._files) != self._stamps:
            raise PackageError(
                f"The package {str(self._folder)!r} was changed since it was loaded.",
                "load the model again.",
                path=str(self._folder),
            )
        with self.mapped.changing():
            backend, choice = open_format(
                place.format,
                self._folder,
                self._manifest,
                device=place.device,
                threads=self._threads,
            )
        told = Choice(choice.value, f"{candidate.name}, {reason}")
        try:
            return Loaded(backend, self._bind(place.format, told))
        except BaseException:
            backend.close()
            raise

    def refuse(self, candidate: Candidate, problem: str) -> None:
        """Leave a device out from now on."""
        place = next(p for c, p in self._places.items() if c.name == candidate.name)
        refusal = Refusal(place.format, place.device, problem)
        self._refusals[place.format, place.device] = refusal

    def _bind(self, fmt: FormatName, choice: Choice[DeviceSettings]) -> Placement:
        return Placement(fmt, choice, bind_package(self._manifest, fmt, choice.value))

    def _list_places(self, opened: Opened) -> Iterator[tuple[Candidate, _Place]]:
        """Yield the devices that come into question, in order."""
        # The engines before this one were refused as a whole.
        formats = self._formats[self._formats.index(opened.name) :]
        if "openvino" in formats:
            for entry in self._manifest.devices:
                if self._device in (AUTO, entry.device):
                    limits = (entry.max_context_tokens, entry.max_prompt_tokens)
                    yield Candidate(entry.device, *limits), _Place("openvino", entry.device)
        if "onnx" in formats and self._manifest.onnx is not None:
            limit = self._manifest.onnx.max_context_tokens
            for device in self._list_onnx(opened):
                yield Candidate(f"{device} (ONNX)", limit), _Place("onnx", device)

    def _list_onnx(self, opened: Opened) -> list[str]:
        """Return the provider in use, where there is one, and the CPU where it may stand in."""
        others = ["CPU" if self._device == AUTO else self._device]
        if opened.name != "onnx":
            return others
        may_change = self._device == AUTO and opened.choice.value.device != "CPU"
        return [_known_name(opened), *(others if may_change else ())]


def _known_name(opened: Opened) -> str:
    """Return what an opened device is called in refusals: the device, or its provider."""
    settings = opened.choice.value
    return str(settings.properties.get("provider", settings.device))


class _GuardedBackend(FailoverBackend[Placement]):
    """The devices of a package, whose files are guarded as long as it is open."""

    def __init__(
        self, devices: PackageDevices, first: Candidate, loaded: Loaded[Placement]
    ) -> None:
        super().__init__(devices, first, loaded)
        self._mapped = devices.mapped

    def close(self) -> None:
        """Release all devices, then the files. Calling it twice is harmless."""
        with self._mapped.changing():
            super().close()
        self._mapped.close()


def open_devices(
    folder: Path,
    manifest: Manifest,
    *,
    backend: str = AUTO,
    device: str = AUTO,
    threads: int | None = None,
) -> FailoverBackend[Placement]:
    """Make a package's model ready on its best device, with the others in reserve.

    Args:
        folder: The package folder, already checked.
        manifest: The package's.
        backend: As for `open_backend`.
        device: As for `open_backend`; one that is named has no other in reserve.
        threads: As for `open_backend`.

    Raises:
        EdgeError: As `open_backend`.
    """
    devices = PackageDevices(folder, manifest, backend=backend, device=device, threads=threads)
    try:
        first, loaded = devices.open_first()
    except BaseException:
        devices.mapped.close()
        raise
    return _GuardedBackend(devices, first, loaded)
