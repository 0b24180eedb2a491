"""Fixtures of the tuning's tests: settings, results, and runners whose speed is a number."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from qwen_edge.profiles.hardware import Hardware
from qwen_edge.runtime.manifest import DeviceSettings, Manifest
from qwen_edge.runtime.snapshots.binding import hash_files
from qwen_edge.runtime.tuning.machine import describe_engine, describe_machine
from qwen_edge.runtime.tuning.race import RoundPlan
from qwen_edge.runtime.tuning.result import Exactness, Speed, Trial, Tuned, WorkloadFacts
from qwen_edge.runtime.tuning.workload import Workload

ROOT = Path(__file__).parents[3]
SAMPLE = Manifest.from_bytes((ROOT / "tests" / "data" / "manifest.json").read_bytes())


@dataclass
class FakeRunner:
    """Takes these seconds for a token of each kind, and counts what it is asked for."""

    prefill_token_s: float
    decode_token_s: float
    noise: float = 0.0
    seed: int = 0
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def prefill(self, token_ids: Sequence[int]) -> float:
        """Return the seconds of a prompt."""
        self.calls.append(f"prefill {len(token_ids)}")
        return len(token_ids) * self.prefill_token_s * self._factor()

    def decode(self, num_tokens: int) -> float:
        """Return the seconds of some tokens."""
        self.calls.append(f"decode {num_tokens}")
        return num_tokens * self.decode_token_s * self._factor()

    def rest(self) -> None:
        """Note it."""
        self.calls.append("rest")

    def _factor(self) -> float:
        return float(np.exp(self._generator.normal(0, self.noise)))


@pytest.fixture
def make_runner() -> Callable[..., FakeRunner]:
    """Return the maker of runners."""
    return FakeRunner


@pytest.fixture
def plan() -> RoundPlan:
    """Return a plan of rounds of 64 tokens read and 16 written, where both count alike."""
    return RoundPlan(Workload("even", 100, 100), prompt_tokens=64, vocab_size=100)


@pytest.fixture
def settings() -> DeviceSettings:
    """Return the settings of a package for the CPU."""
    properties = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "u8",
        "PERFORMANCE_HINT": "LATENCY",
    }
    return DeviceSettings("CPU", properties, 4096, None, None, 512)


@pytest.fixture
def hardware() -> Hardware:
    """Return a machine with two cores of one kind."""
    return Hardware("Linux", "x86_64", "A CPU", 2, 2, ("avx2",), 8 << 30, 6 << 30)


@pytest.fixture
def manifest(settings: DeviceSettings) -> Manifest:
    """Return the manifest of a package with these settings."""
    return dataclasses.replace(SAMPLE, devices=(settings,))


@pytest.fixture
def tuned(manifest: Manifest) -> Tuned:
    """Return a result for that package on this machine."""
    speed = Speed(60.0, 8.0, 20.0)
    exactness = Exactness(0.001, 0.002, 0.01, 0.99, 188)
    changes = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64, "prefill_chunk_tokens": 256}
    return Tuned(
        package=manifest.name,
        package_hash=hash_files(manifest, "openvino"),
        device="CPU",
        machine=describe_machine("CPU"),
        engine=describe_engine(),
        tool="1.0",
        date="2026-11-22",
        workload=WorkloadFacts("chat", 128, 256),
        max_kl=0.02,
        changes=changes,
        gain=1.3,
        before=speed,
        after=speed,
        exactness=exactness,
        base_exactness=exactness,
        is_untrained=False,
        trials=(Trial(changes, "faster", "", 1.3, 1.2, 1.4, 5, speed, exactness),),
        not_tried=(),
        seconds=100.0,
    )


@pytest.fixture
def settings_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty settings folder that the environment names."""
    path = tmp_path / "settings"
    monkeypatch.setenv("QWEN_EDGE_CONFIG_DIR", str(path))
    return path
