"""What each profile of the catalog would do on this machine, and why not where it cannot.

Answers for the default model, Qwen3-4B with the profile's recipe, from what was probed already;
nothing is compiled. Whether a device then answers rightly is for `doctor --package` to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_edge.cli.doctor_engines import shorten_reasons
from qwen_edge.errors import DeviceError, format_bytes
from qwen_edge.profiles.device import DeviceProfile
from qwen_edge.profiles.hardware import Hardware
from qwen_edge.profiles.legality import legality
from qwen_edge.profiles.profile import Profile, load_profile, profile_names
from qwen_edge.profiles.providers import choose_provider
from qwen_edge.profiles.recipe import load_recipe

if TYPE_CHECKING:
    from qwen_edge.runtime.devices.drivers import Accelerator
    from qwen_edge.runtime.devices.probing import DeviceReport
    from qwen_edge.runtime.devices.providers import ProviderReport
    from qwen_edge.runtime.manifest import DeviceSettings, FormatName
    from qwen_edge.runtime.resources.memory import MemoryEstimate


@dataclass(frozen=True)
class DeviceVerdict:
    """What a profile's device would do here.

    Args:
        device: OpenVINO's device type, or an execution provider of ONNX Runtime.
        why_not: Why it cannot be used; None where it can.
        max_context_tokens: Of the profile.
        max_tokens_here: What the memory that is available now has room for; None when unknown.
    """

    device: str
    why_not: str | None
    max_context_tokens: int
    max_tokens_here: int | None

    @property
    def can_run(self) -> bool:
        """True where it can be used."""
        return self.why_not is None


@dataclass(frozen=True)
class ProfileVerdict:
    """What a profile would do here: the first device that can be used is the one that is."""

    name: str
    format: str
    devices: tuple[DeviceVerdict, ...]

    @property
    def chosen(self) -> DeviceVerdict | None:
        """The device that would be used; None where there is none."""
        return next((entry for entry in self.devices if entry.can_run), None)

    def to_json(self) -> dict[str, object]:
        """Return the verdict for programs."""
        return {
            "name": self.name,
            "format": self.format,
            "can_run": self.chosen is not None,
            "device": self.chosen.device if self.chosen else None,
            "devices": self.devices,
        }

    def describe(self) -> str:
        """Return the verdict in a sentence."""
        refused = [f"{e.device}: {e.why_not}" for e in self.devices if not e.can_run]
        if self.chosen is None:
            return f"cannot run: {'; '.join(refused)}"
        usable = [entry.device for entry in self.devices if entry.can_run]
        also = f" (also on {', '.join(usable[1:])})" if len(usable) > 1 else ""
        passed = f"; not on {'; '.join(refused)}" if refused else ""
        with_engine = " of ONNX Runtime" if self.format == "onnx" else ""
        where = f"runs on {self.chosen.device}{with_engine}{also}"
        return f"{where}, {_describe_room(self.chosen)}{passed}"


def judge_profiles(
    hardware: Hardware,
    reports: "Sequence[DeviceReport]",
    accelerators: "Sequence[Accelerator] | None",
    providers: "Sequence[ProviderReport]",
) -> tuple[ProfileVerdict, ...]:
    """Return what each profile of the catalog would do here.

    Args:
        hardware: CPU and memory.
        reports: What OpenVINO lists.
        accelerators: What the system lists; None where it cannot tell.
        providers: What ONNX Runtime has.
    """
    absent = {
        report.name: str(report.reason)
        for report in shorten_reasons(reports, accelerators)
        if not report.is_available
    }
    verdicts = []
    for profile in map(load_profile, profile_names()):
        if profile.format == "onnx":
            devices: tuple[DeviceVerdict, ...] = (_judge_onnx(profile, hardware, providers),)
        else:
            devices = tuple(_judge(profile, entry, hardware, absent) for entry in profile.devices)
        verdicts.append(ProfileVerdict(profile.name, profile.format, devices))
    return tuple(verdicts)


def _judge(
    profile: Profile, entry: DeviceProfile, hardware: Hardware, absent: Mapping[str, str]
) -> DeviceVerdict:
    """Judge one device of a profile for OpenVINO."""
    from qwen_edge.runtime.manifest import DeviceSettings

    settings = DeviceSettings(
        device=entry.device,
        properties=entry.properties,
        max_context_tokens=entry.max_context_tokens,
        max_prompt_tokens=entry.max_prompt_tokens,
        min_response_tokens=entry.min_response_tokens,
        prefill_chunk_tokens=entry.prefill_chunk_tokens,
    )
    memory = _estimate("openvino", settings)
    allowed = legality(load_recipe(profile.recipe), entry.device)
    why_not = absent.get(entry.device)
    if why_not is None and not allowed.value:
        why_not = allowed.reason
    return _judge_memory(entry.device, why_not, memory, hardware)


def _judge_onnx(
    profile: Profile, hardware: Hardware, providers: "Sequence[ProviderReport]"
) -> DeviceVerdict:
    """Judge a profile whose packages ONNX Runtime runs."""
    from qwen_edge.runtime.manifest import DeviceSettings

    unusable = {entry.name: entry.reason for entry in providers if entry.reason is not None}
    available = [entry.name for entry in providers if entry.name not in unusable]
    try:
        device, why_not = choose_provider(available, unusable=unusable).value.name, None
    except DeviceError as error:
        device, why_not = "ONNX Runtime", error.problem.rstrip(".")
        if not available and providers:  # one reason for all: it is missing or broken
            why_not = str(providers[0].reason).rstrip(".")
    onnx = profile.onnx
    settings = DeviceSettings(
        "CPU", {}, onnx.max_context_tokens, None, None, onnx.prefill_chunk_tokens
    )
    return _judge_memory(device, why_not, _estimate("onnx", settings), hardware)


def _estimate(fmt: "FormatName", settings: "DeviceSettings") -> "MemoryEstimate":
    """Return what Qwen3-4B int4 takes on a device."""
    from qwen_edge.runtime.resources.memory import ModelSize, estimate_size

    # The package of 4 bits that the profiles' recipe makes of Qwen/Qwen3-4B.
    size = ModelSize(
        format=fmt,
        weights_bytes=2_264_000_000,
        weights="int4",
        num_layers=36,
        hidden_size=2560,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        tokenizer_bytes=11_400_000,
    )
    return estimate_size(size, settings)


def _judge_memory(
    device: str, why_not: str | None, memory: "MemoryEstimate", hardware: Hardware
) -> DeviceVerdict:
    """Add what the memory that is available has room for."""
    available = hardware.available_memory_bytes
    if why_not is None and available is not None and available < memory.min_bytes:
        why_not = (
            f"Qwen3-4B takes {format_bytes(memory.min_bytes)} of memory there with "
            f"{memory.min_cache_tokens:,} tokens, {format_bytes(available)} are available"
        )
    fitting = None if available is None else memory.fitting_tokens(available)
    return DeviceVerdict(device, why_not, memory.max_cache_tokens, fitting)


def _describe_room(verdict: DeviceVerdict) -> str:
    limit, here = verdict.max_context_tokens, verdict.max_tokens_here
    if here is None or here >= limit:
        return f"up to {limit:,} tokens"
    return f"about {here:,} of {limit:,} tokens with the memory available now"
