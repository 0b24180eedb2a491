"""What can be tried: the settings of a device that matter for speed, and their values.

A candidate is a whole set of settings, an option a change to one, an axis the options that exclude
each other. Which are worth trying depends on the processor and the model and is decided here. What
they are worth is measured elsewhere. Left out on purpose: `KV_CACHE_PRECISION` of 4 bits on CPU,
whose cache cannot be saved nor cleared of what was forgotten, and anything of the cache on GPU,
where forcing a type has ended in errors.

Source: OpenVINO 2026.4.1, src/plugins/intel_cpu/src/config.cpp (values that the plugin takes, and
its defaults); src/plugins/intel_cpu/src/nodes/scaled_attn.cpp (cache groups divide the head).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from qwen_edge.profiles.hardware import Hardware
from qwen_edge.profiles.properties import ENGINE_KERNELS, KERNELS, find_property_problem
from qwen_edge.runtime.kernels import AUTO
from qwen_edge.runtime.manifest import DeviceSettings, PropertyValue
from qwen_edge.runtime.tuning.workload import Workload

PREFILL_CHUNK = "prefill_chunk_tokens"
"""Our own setting, as `KERNELS` is; all others are properties of the engine by its own names."""

TUNABLE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "CPU": frozenset(
            {
                "DYNAMIC_QUANTIZATION_GROUP_SIZE",
                "ENABLE_HYPER_THREADING",
                "INFERENCE_NUM_THREADS",
                "INFERENCE_PRECISION_HINT",
                "KEY_CACHE_GROUP_SIZE",
                "KV_CACHE_PRECISION",
                KERNELS,
                "SCHEDULING_CORE_TYPE",
                "VALUE_CACHE_GROUP_SIZE",
            }
        ),
        "GPU": frozenset({"DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_PRECISION_HINT"}),
    }
)
"""Names that tuning may change, by device; a stored result with others is not believed."""

REFERENCE_PROPERTIES: Mapping[str, Mapping[str, PropertyValue]] = MappingProxyType(
    {
        "CPU": MappingProxyType(
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
                "KV_CACHE_PRECISION": "f32",
                "KEY_CACHE_GROUP_SIZE": 0,
                "VALUE_CACHE_GROUP_SIZE": 0,
            }
        ),
        "GPU": MappingProxyType(
            {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        ),
    }
)
"""As near to exact arithmetic as each device comes with these weights."""

# They change the order of sums at most.
_SPEED_ONLY = frozenset({"ENABLE_HYPER_THREADING", "INFERENCE_NUM_THREADS", "SCHEDULING_CORE_TYPE"})
# Where a property is left out, this is taken.
_CACHE_DEFAULTS: Mapping[str, PropertyValue] = MappingProxyType(
    {"KEY_CACHE_GROUP_SIZE": 0, "VALUE_CACHE_GROUP_SIZE": 0}
)
_DEFAULTS: Mapping[str, PropertyValue] = MappingProxyType({**_CACHE_DEFAULTS, KERNELS: AUTO})
_QUANTISATION_GROUPS = (128, 64, 32, 0)  # the fastest known first, should the time run out
_CHUNKS = (256, 512, 1024)
_CACHE_GROUP = 64
_FEW_CORES = 4  # below, every core is needed


@dataclass(frozen=True)
class Option:
    """A change of settings; the values go in the place of what there is."""

    properties: Mapping[str, PropertyValue] = field(default_factory=dict)
    prefill_chunk_tokens: int | None = None


@dataclass(frozen=True)
class Axis:
    """Options that exclude each other."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Candidate:
    """One whole set of settings: all properties for the engine, and tokens of a prefill call."""

    properties: Mapping[str, PropertyValue]
    prefill_chunk_tokens: int

    @classmethod
    def of(cls, settings: DeviceSettings) -> "Candidate":
        """Return the settings of a package's device as a candidate."""
        return cls(dict(settings.properties), settings.prefill_chunk_tokens)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal settings, a default written out or not."""
        return (self.prefill_chunk_tokens, *self._items(frozenset()))

    @property
    def numbers_key(self) -> tuple[object, ...]:
        """Equal where the model's numbers are; speed may differ."""
        return self._items(_SPEED_ONLY)

    def with_option(self, option: Option) -> "Candidate":
        """Return these settings with a change."""
        properties = dict(self.properties)
        for name, value in option.properties.items():
            if name in properties or _DEFAULTS.get(name) != value:
                properties[name] = value
        return Candidate(properties, option.prefill_chunk_tokens or self.prefill_chunk_tokens)

    def changes_from(self, base: "Candidate") -> dict[str, PropertyValue]:
        """Return what is to be laid over other settings to make these of them."""
        changes = {
            name: value
            for name, value in sorted(self.properties.items())
            if base.properties.get(name) != value
        }
        if self.prefill_chunk_tokens != base.prefill_chunk_tokens:
            changes[PREFILL_CHUNK] = self.prefill_chunk_tokens
        return changes

    def settings_from(self, settings: DeviceSettings) -> DeviceSettings:
        """Return a device's settings with these in their place."""
        return replace(
            settings,
            properties=dict(self.properties),
            prefill_chunk_tokens=self.prefill_chunk_tokens,
        )

    def _items(self, without: frozenset[str]) -> tuple[tuple[str, PropertyValue], ...]:
        return tuple(
            (name, value)
            for name, value in sorted(self.properties.items())
            if name not in without and _DEFAULTS.get(name) != value
        )


def describe_changes(changes: Mapping[str, PropertyValue]) -> str:
    """Return changes as a person reads them."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def reference_candidate(base: Candidate, device: str) -> Candidate:
    """Return settings with the most exact arithmetic, and the cores of others."""
    properties = {
        name: value
        for name, value in base.properties.items()
        # These would overrule the properties of the reference.
        if name not in ("KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION")
    }
    exact = Option(REFERENCE_PROPERTIES[device])
    return Candidate(properties, base.prefill_chunk_tokens).with_option(exact)


def find_axes(
    settings: DeviceSettings,
    *,
    hardware: Hardware,
    capabilities: Sequence[str],
    head_dim: int,
    workload: Workload,
    kernels: Sequence[str] = (),
) -> tuple[Axis, ...]:
    """Return what is worth trying on a device, the most promising first.

    Args:
        settings: The package's.
        hardware: Of this machine.
        capabilities: `OPTIMIZATION_CAPABILITIES` of the device, as the engine tells them.
        head_dim: Of the model; groups of the cache divide it.
        workload: What to be fast at.
        kernels: Our own that run here, best first.
    """
    is_cpu = settings.device == "CPU"
    groups = tuple(Option({"DYNAMIC_QUANTIZATION_GROUP_SIZE": n}) for n in _QUANTISATION_GROUPS)
    if is_cpu and kernels:
        # The engine's way of rounding activations matters to the engine's kernels alone.
        axes = [Axis("kernels", tuple(Option({KERNELS: n}) for n in (AUTO, ENGINE_KERNELS)))]
    else:
        axes = [Axis("dynamic quantisation", groups)]
    axes.append(Axis("arithmetic", _precisions(is_cpu=is_cpu, capabilities=capabilities)))
    if is_cpu:
        axes.append(Axis("cache", _cache_types(settings, capabilities, head_dim)))
        axes.append(Axis("cores", _core_choices(hardware)))
    axes.append(Axis("prefill chunk", _chunks(settings, workload)))
    return tuple(axis for axis in axes if axis.options)


def find_change_problem(device: str, name: str, value: PropertyValue) -> str | None:
    """Return why a stored change is not one that tuning makes, or None."""
    if name == PREFILL_CHUNK:
        is_count = type(value) is int and value >= 1
        return None if is_count else f"{name} is {value!r}, expected 1 or more"
    if name not in TUNABLE.get(device, frozenset()):
        return f"{name!r} is nothing that is tuned on {device}"
    return find_property_problem(device, name, value)


def _precisions(*, is_cpu: bool, capabilities: Sequence[str]) -> tuple[Option, ...]:
    """Return the arithmetics that the device has instructions for."""
    known = {"BF16": "bf16", "FP16": "f16"} if is_cpu else {"FP16": "f16"}
    names = ["f32", *(known[name] for name in known if name in capabilities)]
    return tuple(Option({"INFERENCE_PRECISION_HINT": name}) for name in names)


def _cache_types(
    settings: DeviceSettings, capabilities: Sequence[str], head_dim: int
) -> tuple[Option, ...]:
    """Return types of the cache; none where the package sets keys and values apart."""
    if {"KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION"} & settings.properties.keys():
        return ()
    names = ["u8", "f16", *(["bf16"] if "BF16" in capabilities else []), "f32"]
    options = [Option({"KV_CACHE_PRECISION": name, **_CACHE_DEFAULTS}) for name in names]
    if head_dim % _CACHE_GROUP == 0 and head_dim > _CACHE_GROUP:
        groups = dict.fromkeys(_CACHE_DEFAULTS, _CACHE_GROUP)
        options.insert(1, Option({"KV_CACHE_PRECISION": "u8", **groups}))
    return tuple(options)


def _core_choices(hardware: Hardware) -> tuple[Option, ...]:
    """Return which cores to use, where there is a choice."""
    logical, physical = hardware.num_logical_cores, hardware.num_physical_cores
    options = []
    if physical is not None and logical > physical:
        options.append(Option({"ENABLE_HYPER_THREADING": False}))
    if hardware.core_kinds is not None and hardware.core_kinds.performance:
        options.append(Option({"SCHEDULING_CORE_TYPE": "PCORE_ONLY"}))
    cores = min(physical or logical, logical)
    if cores >= _FEW_CORES:
        # All but one leaves room for the rest of the machine; reading weights may need only half.
        options += [Option({"INFERENCE_NUM_THREADS": n}) for n in (cores - 1, cores // 2)]
    return tuple(options)


def _chunks(settings: DeviceSettings, workload: Workload) -> tuple[Option, ...]:
    """Return the sizes of a prefill call that make other calls of the measured prompts."""
    longest = workload.measured_prompt_tokens(settings.max_context_tokens)
    now = min(settings.prefill_chunk_tokens, longest)
    most = settings.max_context_tokens
    return tuple(
        Option(prefill_chunk_tokens=chunk)
        for chunk in _CHUNKS
        if chunk <= most and min(chunk, longest) != now
    )
