"""Where candidates are opened, scored and raced: the engine's side of `search.py`."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qwen_edge.errors import PackageError, ResourceError, format_bytes
from qwen_edge.runtime.devices.compile_trial import try_compile
from qwen_edge.runtime.manifest import FORMAT_FILES, DeviceSettings, Manifest
from qwen_edge.runtime.records import read_stamps
from qwen_edge.runtime.resources.memory import estimate_memory
from qwen_edge.runtime.tuning.candidate import Candidate
from qwen_edge.runtime.tuning.divergence import (
    Divergence,
    Passage,
    Reference,
    measure_divergence,
    read_reference,
)
from qwen_edge.runtime.tuning.engine_runner import EngineRunner
from qwen_edge.runtime.tuning.race import RaceResult, RoundPlan, Sample, plan_rounds, race
from qwen_edge.runtime.tuning.workload import Workload


class EngineLab:
    """Measures candidates of one package on one device.

    Args:
        folder: The package folder, checked.
        manifest: Its manifest.
        settings: The package's, of the device.
        workload: What to be fast at.
        available_bytes: Memory that can be had; None where that is not known.

    State:
        Keeps the reference's distributions, 4 bytes for each position and token of the
        vocabulary, and the plan of a round once that was made. Where memory holds one model
        only, opening one lets go of the other.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        settings: DeviceSettings,
        *,
        workload: Workload,
        available_bytes: int | None,
    ) -> None:
        self._folder, self._manifest, self._settings = folder, manifest, settings
        self._available_bytes = available_bytes
        needed_bytes = 2 * estimate_memory(manifest, settings).min_bytes
        self.one_at_a_time = available_bytes is not None and available_bytes < needed_bytes
        self._plan = RoundPlan(
            workload,
            prompt_tokens=workload.measured_prompt_tokens(settings.max_context_tokens),
            vocab_size=manifest.model.vocab_size,
            one_at_a_time=self.one_at_a_time,
        )
        self._stamps = read_stamps(folder, FORMAT_FILES["openvino"])
        self._opened: EngineRunner | None = None
        self._passages: Sequence[Passage] = ()
        self._reference: Reference | None = None

    def read_reference(self, candidate: Candidate, passages: Sequence[Passage]) -> Reference:
        """Keep what the model says with the most exact arithmetic; before anything else.

        Args:
            candidate: With that arithmetic.
            passages: What it reads.

        Raises:
            EdgeError: The device cannot run it.
        """
        runner = self.open(candidate, None)
        try:
            self._passages = passages
            self._reference = read_reference(runner.backend, passages)
            return self._reference
        finally:
            runner.rest()

    def check(self, candidate: Candidate) -> None:
        """Refuse settings with which a full conversation would not fit into memory any more.

        Where the package's own settings need more than there is, nothing is refused for it.

        Raises:
            ResourceError: With both figures.
        """
        if self._available_bytes is None:
            return
        settings = candidate.settings_from(self._settings)
        needed = estimate_memory(self._manifest, settings).max_bytes
        own = estimate_memory(self._manifest, self._settings).max_bytes
        if needed > max(own, self._available_bytes):
            raise ResourceError(
                f"With it a full conversation takes {format_bytes(needed)} of memory, but "
                f"{format_bytes(self._available_bytes)} are available.",
                "close other programs and tune again.",
                needed_bytes=needed,
                available_bytes=self._available_bytes,
            )

    def open(self, candidate: Candidate, beside: EngineRunner | None) -> EngineRunner:
        """Compile a candidate.

        Raises:
            DeviceError: The device refuses its settings, or its driver fails on them.
            ParityError: It gives other tokens than the package was sealed with.
            ResourceError: Memory ran out.
            PackageError: The model's files are not those that the measurement began with.
        """
        settings = candidate.settings_from(self._settings)
        if self.one_at_a_time:
            beside = None
            if self._opened is not None:
                self._opened.rest()
        if beside is None:
            # Drivers may crash or hang on a setting: not in this process.
            try_compile(self._folder, self._manifest, settings)
        runner = EngineRunner(self._folder, settings, candidate, beside)
        runner.compile()
        if read_stamps(self._folder, FORMAT_FILES["openvino"]) != self._stamps:
            raise PackageError(
                f"The package {str(self._folder)!r} was changed while it was being tuned.",
                "tune it again when whatever writes there is done.",
                path=str(self._folder),
            )
        self._opened = runner
        return runner

    def resolve(self, runner: EngineRunner) -> Mapping[str, str]:
        """Return what the engine made of a candidate's settings."""
        return runner.resolved

    def measure_divergence(self, runner: EngineRunner) -> Divergence:
        """Return how far a candidate is from the reference.

        Raises:
            ValueError: `read_reference` was not called.
            EdgeError: The device cannot run it.
        """
        if self._reference is None:
            raise ValueError("there is no reference yet")
        return measure_divergence(runner.backend, self._passages, self._reference)

    def plan(self, runner: EngineRunner) -> Sample:
        """Choose how much a round measures, by what one candidate needs; return that."""
        self._plan, sample = plan_rounds(runner, self._plan)
        return sample

    def race(
        self, champion: EngineRunner, challenger: EngineRunner, deadline_s: float
    ) -> RaceResult:
        """Compare two candidates."""
        if self.one_at_a_time:
            champion.rest()
            challenger.rest()
        return race(champion, challenger, self._plan, deadline_s=deadline_s, clock=self.clock)

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds; monotonic."""
        return time.monotonic
