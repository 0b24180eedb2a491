"""Tuning a package from its folder to a result that can be kept."""

import importlib.metadata
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwen_edge.errors import DeviceError, ResourceError, UsageError
from qwen_edge.profiles.choose import AUTO, choose_device
from qwen_edge.profiles.device import MIN_CONTEXT_TOKENS
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.devices.probing import probe_devices
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.files.opening import open_inside
from qwen_edge.runtime.kernels import find_kernels
from qwen_edge.runtime.manifest import TOKENIZER_JSON, DeviceSettings, Manifest
from qwen_edge.runtime.resources.memory import check_memory, estimate_memory
from qwen_edge.runtime.snapshots.binding import hash_files
from qwen_edge.runtime.text_tokenizer import TextTokenizer
from qwen_edge.runtime.tuning.budget import (
    DEFAULT_MAX_KL,
    DEFAULT_TIME_LIMIT_S,
    check_budget,
)
from qwen_edge.runtime.tuning.candidate import (
    TUNABLE,
    Axis,
    Candidate,
    find_axes,
    reference_candidate,
)
from qwen_edge.runtime.tuning.divergence import Divergence, Passage, make_passages
from qwen_edge.runtime.tuning.engine_lab import EngineLab
from qwen_edge.runtime.tuning.machine import describe_engine, describe_machine
from qwen_edge.runtime.tuning.race import Sample
from qwen_edge.runtime.tuning.result import Exactness, Speed, Trial, Tuned, WorkloadFacts
from qwen_edge.runtime.tuning.search import Attempt, Found, Search
from qwen_edge.runtime.tuning.texts import TEXTS
from qwen_edge.runtime.tuning.workload import Workload

# So that some that cannot be told apart do not take the time of those that can.
_RACE_SHARE = 1 / 8

Report = Callable[[str], None]
"""Called with each step as a line for a person."""


def tune_package(
    folder: Path,
    manifest: Manifest,
    *,
    workload: Workload,
    device: str = AUTO,
    max_kl: float = DEFAULT_MAX_KL,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    report: Report = lambda line: None,
) -> Tuned:
    """Measure which settings run a package fastest here, within a budget of accuracy.

    Args:
        folder: The package folder, its files checked.
        manifest: Its manifest.
        workload: What to be fast at.
        device: "auto" for the first of the package's devices that can be used; or "CPU", "GPU".
        max_kl: What KL to the most exact arithmetic may come to, with two standard errors.
        time_limit_s: When to stop. What has begun is brought to an end.
        report: Is told each step.

    Raises:
        UsageError: A value is out of range, or the package has nothing that can be tuned.
        DeviceError: The device is absent, refuses the model, or has nothing to tune.
        ResourceError: Memory or time do not suffice.
        PackageError: The model's files cannot be read.
    """
    started_s = time.monotonic()
    check_budget(max_kl, time_limit_s)
    _check_formats(manifest)
    settings = _choose_settings(manifest, device)
    lab = _make_lab(folder, manifest, settings, workload)
    if lab.one_at_a_time:
        report("memory holds one model at a time: each is loaded anew for its part of a round")
    base = Candidate.of(settings)
    exact = reference_candidate(base, settings.device)
    report("reading the reference: what the model says with its most exact arithmetic")
    reference = lab.read_reference(exact, _read_passages(folder, manifest, settings))
    search = Search(
        lab,
        base=base,
        exact=exact,
        max_kl=max_kl,
        deadline_s=started_s + time_limit_s,
        race_s=time_limit_s * _RACE_SHARE,
        report=report,
    )
    axes = _find_axes(manifest, settings, workload)
    found = search.run(axes, lab.plan)
    if len(found.attempts) == 1 and found.not_tried:
        raise _too_short(time_limit_s, time.monotonic() - started_s)
    return _make_result(
        found,
        manifest,
        settings,
        workload=workload,
        max_kl=max_kl,
        is_untrained=reference.is_untrained,
        seconds=time.monotonic() - started_s,
    )


def _check_formats(manifest: Manifest) -> None:
    if "openvino" not in manifest.formats:
        raise UsageError(
            "This package holds its model for ONNX Runtime only; what is tuned are settings of "
            "OpenVINO.",
            "export it again with --format both",
            formats=manifest.formats,
        )


def _choose_settings(manifest: Manifest, device: str) -> DeviceSettings:
    """Return the package's settings for the device that is to be tuned."""
    import_openvino()  # where it is missing, that is what to say, not that devices are
    reports = probe_devices()
    available = tuple(report.name for report in reports if report.is_available)
    unusable = {report.name: report.reason for report in reports if report.reason is not None}
    entries = manifest.devices
    if device.lower() == AUTO:
        # A device without anything to tune is not what somebody means who tunes.
        entries = tuple(entry for entry in entries if entry.device in TUNABLE) or entries
    settings = choose_device(entries, available, device, unusable=unusable).value
    if settings.device not in TUNABLE:
        raise DeviceError(
            f"There is nothing to tune on {settings.device}: its lengths are decided when the "
            "package is made, and the rest is its compiler's.",
            f"tune for one of: {', '.join(TUNABLE)}",
            device=settings.device,
        )
    if settings.max_context_tokens < MIN_CONTEXT_TOKENS:
        raise UsageError(
            f"The package's context is {settings.max_context_tokens:,} tokens; tuning needs "
            f"{MIN_CONTEXT_TOKENS:,}.",
            "export it again with a longer context",
            max_context_tokens=settings.max_context_tokens,
        )
    return settings


def _make_lab(
    folder: Path, manifest: Manifest, settings: DeviceSettings, workload: Workload
) -> EngineLab:
    """Return what measures, unless memory does not even hold one model.

    Raises:
        ResourceError: With both figures.
    """
    available_bytes = probe_hardware().available_memory_bytes
    check_memory(estimate_memory(manifest, settings), available_bytes, settings.device)
    return EngineLab(folder, manifest, settings, workload=workload, available_bytes=available_bytes)


def _read_passages(
    folder: Path, manifest: Manifest, settings: DeviceSettings
) -> tuple[Passage, ...]:
    tokenizer = TextTokenizer.load(open_inside(folder, TOKENIZER_JSON))
    return make_passages(
        [tokenizer.encode(text) for text in TEXTS],
        manifest.golden.prompt_ids,
        manifest.golden.token_ids,
        max_context_tokens=settings.max_context_tokens,
    )


def _find_axes(
    manifest: Manifest, settings: DeviceSettings, workload: Workload
) -> tuple[Axis, ...]:
    core: Any = import_openvino().Core()
    return find_axes(
        settings,
        hardware=probe_hardware(),
        capabilities=tuple(core.get_property(settings.device, "OPTIMIZATION_CAPABILITIES")),
        head_dim=manifest.model.head_dim,
        workload=workload,
        kernels=find_kernels().names,
    )


def _too_short(time_limit_s: float, needed_s: float) -> ResourceError:
    return ResourceError(
        f"The time limit of {time_limit_s:,.0f} s was over before two settings could be compared; "
        f"getting ready alone took {needed_s:,.0f} s.",
        f"give it longer: --time-limit {math.ceil(4 * needed_s / 60) * 60}",
        time_limit_s=time_limit_s,
        needed_s=needed_s,
    )


def _make_result(
    found: Found,
    manifest: Manifest,
    settings: DeviceSettings,
    *,
    workload: Workload,
    max_kl: float,
    is_untrained: bool,
    seconds: float,
) -> Tuned:
    base = Candidate.of(settings)
    return Tuned(
        package=manifest.name,
        package_hash=hash_files(manifest, "openvino"),
        device=settings.device,
        machine=describe_machine(settings.device),
        engine=describe_engine(),
        tool=_find_version(),
        date=datetime.now(tz=UTC).date().isoformat(),
        workload=WorkloadFacts(workload.name, workload.prompt_tokens, workload.answer_tokens),
        max_kl=max_kl,
        changes=found.chosen.changes_from(base),
        gain=_rounded(found.gain),
        before=_speed(found.before, workload),
        after=_speed(found.after, workload),
        exactness=_exactness(found.divergences[found.chosen.numbers_key]),
        base_exactness=_exactness(found.divergences[base.numbers_key]),
        is_untrained=is_untrained,
        trials=tuple(_trial(attempt, base, workload) for attempt in found.attempts),
        not_tried=found.not_tried,
        seconds=_rounded(seconds),
    )


def _trial(attempt: Attempt, base: Candidate, workload: Workload) -> Trial:
    race = attempt.race
    facts: Mapping[str, Any] = (
        {}
        if race is None
        else {
            "gain": _rounded(race.interval.gain),
            "gain_low": _rounded(race.interval.low),
            "gain_high": _rounded(race.interval.high),
            "num_rounds": race.num_rounds,
            "speed": _speed(race.challenger, workload),
        }
    )
    return Trial(
        changes=attempt.candidate.changes_from(base),
        verdict=attempt.verdict,
        reason=attempt.reason,
        exactness=None if attempt.divergence is None else _exactness(attempt.divergence),
        **facts,
    )


def _speed(sample: Sample, workload: Workload) -> Speed:
    return Speed(
        prefill_tokens_per_s=_rounded(1 / sample.prefill_token_s),
        decode_tokens_per_s=_rounded(1 / sample.decode_token_s),
        workload_s=_rounded(workload.seconds(sample.prefill_token_s, sample.decode_token_s)),
    )


def _exactness(divergence: Divergence) -> Exactness:
    return Exactness(
        mean=_rounded(divergence.mean),
        upper=_rounded(divergence.upper),
        largest=_rounded(divergence.largest),
        same_top=_rounded(divergence.same_top),
        num_positions=divergence.num_positions,
    )


def _rounded(value: float) -> float:
    """Return a figure without digits that mean nothing."""
    return float(f"{value:.4g}")


def _find_version() -> str:
    try:
        return importlib.metadata.version("qwen-edge")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed: run from its sources)"
