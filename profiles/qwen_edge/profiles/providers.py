"""ONNX Runtime's execution providers: which may run a package's ONNX model, and why not others.

Owns `providers.toml`, where every value has its reason and its source, and the choice. It asks
no engine: which providers are here comes from the runtime's probe.
"""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

from qwen_edge.errors import DeviceError, UsageError, did_you_mean, join_problems
from qwen_edge.profiles.choose import AUTO, Choice
from qwen_edge.profiles.properties import DEVICES

Use = Literal["auto", "ask", "never"]
"""May be chosen where nobody asks for it; only where somebody does; not even then."""
NOT_HERE = "not in this ONNX Runtime"
"""Why a provider cannot be used that installing it would bring."""


@dataclass(frozen=True)
class Verdict:
    """Whether a provider may run one form of the model, why, and where that is known from."""

    use: Use
    reason: str
    source: str


@dataclass(frozen=True)
class ProviderOption:
    """One option passed to a provider."""

    value: str
    reason: str
    source: str


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Args:
        name: ONNX Runtime's, for example "DmlExecutionProvider".
        device: What it computes with: "CPU", "GPU" or "NPU".
        install: Commands that bring it.
        fast: Verdict on models of ONNX Runtime's own operators.
        portable: Verdict on models of standard operators.
        plugin: Module that has it as a library to be registered with ONNX Runtime; None where
            it is built in.
        systems: As `platform.system()` says them; empty for all.
        options: Passed to it.
    """

    name: str
    device: str
    install: str
    fast: Verdict
    portable: Verdict
    plugin: str | None = None
    systems: tuple[str, ...] = ()
    options: Mapping[str, ProviderOption] = field(default_factory=dict)

    def verdict(self, is_portable: bool) -> Verdict:
        """Return the verdict on one form of the model."""
        return self.portable if is_portable else self.fast


@functools.cache
def load_providers() -> tuple[Provider, ...]:
    """Return all known providers in order of preference."""
    text = resources.files("qwen_edge.profiles").joinpath("providers.toml").read_bytes()
    return tuple(_read(table) for table in tomllib.loads(text.decode("utf-8"))["providers"])


def _read(table: Mapping[str, Any]) -> Provider:
    options = {key: ProviderOption(**option) for key, option in table.get("options", {}).items()}
    return Provider(
        name=table["name"],
        device=table["device"],
        install=table["install"],
        fast=Verdict(**table["fast"]),
        portable=Verdict(**table["portable"]),
        plugin=table.get("plugin"),
        systems=tuple(table.get("systems", ())),
        options=MappingProxyType(options),
    )


def choose_provider(
    available: Sequence[str],
    requested: str = AUTO,
    *,
    is_portable: bool = False,
    unusable: Mapping[str, str] | None = None,
    providers: Sequence[Provider] | None = None,
) -> Choice[Provider]:
    """Return the provider to run on; the reason names each one passed over and why.

    Args:
        available: Names of those that ONNX Runtime has here.
        requested: "auto" for the first that may be chosen unasked; "CPU", "GPU" or "NPU" for
            the first of that kind; or a provider's name. All in any case.
        is_portable: Which form the model has.
        unusable: Name to why it cannot be used: the probe's finding, or its refusal at an
            earlier try.
        providers: In order of preference; those of the table by default.

    Raises:
        UsageError: `requested` is neither a device nor a known provider.
        DeviceError: What was asked for, or with "auto" everything, cannot be used.
    """
    known = load_providers() if providers is None else providers
    candidates = _find_candidates(requested, known)
    refusals = unusable or {}
    is_auto = requested.lower() == AUTO
    if not is_auto:  # what was measured first, where a device has more than one
        candidates.sort(key=lambda entry: entry.verdict(is_portable).use != "auto")
    skipped: list[str] = []
    for provider in candidates:
        if is_auto and _is_beside_the_point(provider, available, is_portable):
            continue
        problem = _find_refusal(provider, available, refusals, is_portable, is_auto)
        if problem is not None:
            skipped.append(f"{provider.name}: {problem}")
            continue
        how = _describe(requested, provider, is_auto)
        passed = f"; passed over {join_problems(skipped)}" if skipped else ""
        return Choice(provider, f"{provider.device} by {provider.name}, {how}{passed}")
    absent = [
        entry
        for entry in candidates
        if entry.name not in available
        and refusals.get(entry.name, NOT_HERE) == NOT_HERE
        and entry.verdict(is_portable).use != "never"
    ]
    raise _nothing_left(requested, absent, available, skipped)


def _find_candidates(requested: str, known: Sequence[Provider]) -> list[Provider]:
    wanted = requested.lower()
    if wanted == AUTO:
        return list(known)
    found = [entry for entry in known if wanted in (entry.device.lower(), entry.name.lower())]
    if not found and wanted.upper() not in DEVICES:
        names = (AUTO, *DEVICES, *(entry.name for entry in known))
        hint = did_you_mean(requested, names)
        raise UsageError(
            f"Unknown device {requested!r}.{hint}",
            f"use one of: {', '.join(names)}",
            device=requested,
        )
    return found


def _is_beside_the_point(provider: Provider, available: Sequence[str], is_portable: bool) -> bool:
    """Return whether nobody would miss a provider: not installed, and not to be chosen anyway."""
    return provider.name not in available and provider.verdict(is_portable).use != "auto"


def _find_refusal(
    provider: Provider,
    available: Sequence[str],
    refusals: Mapping[str, str],
    is_portable: bool,
    is_auto: bool,
) -> str | None:
    """Return why a provider cannot be used, or None."""
    verdict = provider.verdict(is_portable)
    known = refusals.get(provider.name, NOT_HERE)
    if known != NOT_HERE and provider.name not in available:
        return known.rstrip(".")  # there is none for this system: nothing else matters
    if verdict.use == "never":
        return verdict.reason.rstrip(".")
    if verdict.use == "ask" and is_auto:
        return f"runs where it is asked for (--device {provider.name}): it {verdict.reason}"
    if provider.name in refusals:
        return refusals[provider.name].rstrip(".")
    if provider.name not in available:
        return NOT_HERE
    return None


def _describe(requested: str, provider: Provider, is_auto: bool) -> str:
    if is_auto:
        return "the first that may be chosen unasked"
    what = "it" if requested.lower() == provider.name.lower() else provider.device
    return f"because {what} was asked for"


def _nothing_left(
    requested: str, absent: Sequence[Provider], available: Sequence[str], skipped: list[str]
) -> DeviceError:
    seen = ", ".join(available) or "none"
    why = join_problems(skipped) or "no known provider computes with it"
    fix = f"run with --device {AUTO}; `qwen-edge doctor` lists what is here"
    if requested.lower() == AUTO:
        fix = "look for the cause with `qwen-edge doctor`"
    elif absent:
        fix = f"{absent[0].install}\nor {fix}"
    return DeviceError(
        f"Device {requested!r} cannot run this: {why} (providers ONNX Runtime has here: {seen}).",
        fix,
        device=requested,
        available=tuple(available),
        skipped=tuple(skipped),
    )
