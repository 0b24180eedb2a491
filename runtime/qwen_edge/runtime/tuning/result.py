"""What tuning found, as it is kept: settings to lay over a package's own, with their figures.

One frozen dataclass per object of the JSON text; field names are the keys. `stored.py` knows where
it is kept and when it holds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qwen_edge.runtime.manifest import PropertyValue
from qwen_edge.runtime.schema import SchemaError, parse_json, read_dataclass, to_json

FORMAT = "qwen-edge-tuned"
FORMAT_VERSION = 1

Verdict = Literal[
    "package",  # the package's own settings
    "start",  # what is started from where the package's own settings are too inexact
    "faster",
    "not faster",
    "not clear",
    "too inexact",
    "same",  # the engine makes the same of it as of what it was to replace
    "refused",
]


@dataclass(frozen=True)
class MachineFacts:
    """Which machine and device figures were measured on; names are None where not known."""

    os: str
    architecture: str
    cpu_name: str | None
    num_physical_cores: int | None
    num_logical_cores: int
    isa_features: tuple[str, ...]
    device_name: str | None


@dataclass(frozen=True)
class Speed:
    """Tokens a second of prompt and answer, and seconds of one answer of the workload."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    workload_s: float


@dataclass(frozen=True)
class Exactness:
    """KL to the reference settings, in nats; see `divergence.Divergence`."""

    mean: float
    upper: float
    largest: float
    same_top: float
    num_positions: int


@dataclass(frozen=True)
class Trial:
    """One set of settings that was looked at.

    Args:
        changes: From the package's own settings.
        verdict: What became of it.
        reason: In words.
        gain: How many times as fast it was as the best before it; None where not measured.
        gain_low: Lower 99 % limit of it.
        gain_high: Upper limit.
        num_rounds: Rounds of the race.
        speed: Its median figures.
        exactness: None where not measured.
    """

    changes: Mapping[str, PropertyValue]
    verdict: Verdict
    reason: str
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    num_rounds: int = 0
    speed: Speed | None = None
    exactness: Exactness | None = None


@dataclass(frozen=True)
class WorkloadFacts:
    """What the settings are fast at."""

    name: str
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Tuned:
    """The result for one package, device and machine.

    Args:
        package: Its name, for messages.
        package_hash: SHA-256 that names the files of the model; see `binding.hash_files`.
        device: "CPU" or "GPU".
        machine: Where it was measured.
        engine: Engine and version, such as "OpenVINO 2026.4.1".
        tool: Version of this project.
        date: Day of the measurement, such as "2026-11-22".
        workload: What the settings are fast at.
        max_kl: The budget.
        changes: To lay over the package's settings; empty where these are best.
        gain: How many times as fast as the package's own settings; 1 where there is no change.
        before: Figures of the package's own settings.
        after: Figures of the chosen ones.
        exactness: Of the chosen ones.
        base_exactness: Of the package's own.
        is_untrained: The weights look random, so that KL says nothing about a trained model.
        trials: All that was looked at, in order.
        not_tried: What the time did not suffice for, in words.
        seconds: How long it took.
    """

    package: str
    package_hash: str
    device: str
    machine: MachineFacts
    engine: str
    tool: str
    date: str
    workload: WorkloadFacts
    max_kl: float
    changes: Mapping[str, PropertyValue]
    gain: float
    before: Speed
    after: Speed
    exactness: Exactness
    base_exactness: Exactness
    is_untrained: bool
    trials: tuple[Trial, ...]
    not_tried: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class TunedFile:
    """A file of results; a package may bring those of several machines."""

    results: tuple[Tuned, ...]
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_bytes(cls, text: bytes) -> "TunedFile":
        """Read a file's bytes.

        Raises:
            SchemaError: They are not such a file, or one of a newer version.
        """
        data = parse_json(text)
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise SchemaError([f"its 'format' is {found!r:.80}, expected {FORMAT!r}"])
        version = data.get("format_version")
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise SchemaError([f"its 'format_version' is {version!r:.80}, this reads 1"])
        return read_dataclass(cls, data)

    def to_bytes(self) -> bytes:
        """Return the file's bytes: UTF-8, sorted keys, two spaces, newline at the end."""
        text = json.dumps(
            to_json(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
        )
        return (text + "\n").encode("utf-8")
