"""Read the [[devices]] tables of a profile file and merge them over those it extends.

Owns which keys a table has on which device, and what follows on an NPU from its two lengths.
Ranges are checked by `DeviceProfile` itself; every problem goes into the file's one list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

from qwen_edge.errors import UsageError, did_you_mean
from qwen_edge.profiles.device import LIMITS, DeviceName, DeviceProfile
from qwen_edge.profiles.properties import DEVICES, SET_ELSEWHERE, PropertyValue
from qwen_edge.profiles.table import Setting, TableReader, merge_measured, merge_reasons

_OWN_LIMITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "CPU": ("max_context_tokens", "prefill_chunk_tokens"),
        "GPU": ("max_context_tokens", "prefill_chunk_tokens"),
        "NPU": ("max_prompt_tokens", "min_response_tokens"),
    }
)


@dataclass(frozen=True)
class Draft:
    """A device's settings before they are checked as a whole.

    Args:
        limits: Those the device has of its own.
        properties: By OpenVINO's names.
        place: The device at its place in the list; its value says nothing.
        note: What else is to be known.
    """

    limits: dict[str, Setting]
    properties: dict[str, Setting]
    place: Setting
    note: str = ""


def inherit_devices(entries: Iterable[DeviceProfile], problems: list[str]) -> dict[str, Draft]:
    """Return the devices a file extends, without what is worked out from other values.

    Args:
        entries: Devices of the profiles that it extends, in their order.
        problems: Collects one sentence per problem.
    """
    drafts: dict[str, Draft] = {}
    for entry in entries:
        if entry.device in drafts:
            problems.append(f"extends: {entry.device} comes from more than one profile")
            continue
        limits = {key: getattr(entry, key) for key in _OWN_LIMITS[entry.device]}
        own = {k: v for k, v in entry.properties.items() if k not in SET_ELSEWHERE}
        drafts[entry.device] = Draft(
            {key: _inherit(entry, key, value) for key, value in limits.items()},
            {key: _inherit(entry, key, value) for key, value in own.items()},
            _inherit(entry, "device", entry.device),
            entry.note,
        )
    return drafts


def _inherit(entry: DeviceProfile, key: str, value: object) -> Setting:
    return Setting(value, entry.reasons[key], entry.measured.get(key))


def read_devices(reader: TableReader, drafts: dict[str, Draft]) -> None:
    """Merge the file's [[devices]] tables into the drafts.

    State:
        Changes `drafts`: a device that is new comes last.
    """
    tables = reader.table.get("devices", [])
    if not isinstance(tables, list) or not all(isinstance(item, dict) for item in tables):
        reader.problems.append("devices is not a list of tables; write [[devices]] above each")
        return
    seen: set[str] = set()
    for index, table in enumerate(tables, start=1):
        name = table.get("device")
        if not isinstance(name, str) or name not in DEVICES:
            hint = did_you_mean(name.upper(), DEVICES) if isinstance(name, str) else ""
            reader.problems.append(
                f"devices, table {index}: device is {name!r}; "
                f"expected one of {', '.join(DEVICES)}.{hint}"
            )
            continue
        if name in seen:
            reader.problems.append(f"device {name} is listed more than once")
            continue
        seen.add(name)
        entry = TableReader(table, f"{name}: ", reader.default_reason, reader.problems)
        drafts[name] = _read_device(name, entry, drafts.get(name))


def _read_device(name: str, reader: TableReader, parent: Draft | None) -> Draft:
    known = _OWN_LIMITS[name]
    for key in LIMITS:
        if key in reader.table and key not in known:
            reader.problems.append(f"{reader.where}{_why_not(name, key)}")
    reader.check_keys(("device", "reason", "measured", "note", "properties", *LIMITS))
    reader = replace(reader, takes_measured=True, is_measured=reader.plain_flag("measured"))
    limits = dict(parent.limits) if parent else {}
    for key in known:
        setting = reader.setting(key, int)
        if setting is not None:
            limits[key] = setting
        elif key not in limits and key not in reader.table:
            reader.problems.append(f"{reader.where}{key} is missing")
    properties = dict(parent.properties) if parent else {}
    properties |= _read_properties(reader)
    note = reader.plain_text("note") or (parent.note if parent else "")
    return Draft(limits, properties, _read_place(name, reader, parent), note)


def _read_place(name: str, reader: TableReader, parent: Draft | None) -> Setting:
    """Return the reason for the device's place, with whether it rests on a measurement."""
    reason = reader.plain_text("reason")
    if reason is None and parent is not None:
        return parent.place
    reason = reason or reader.default_reason
    if reason is None:
        reader.problems.append(f"{reader.where}it has no 'reason' for its place")
    return Setting(name, reason or "", reader.is_measured)


def _why_not(device: str, key: str) -> str:
    if device == "NPU":
        return f"{key} is worked out from max_prompt_tokens and min_response_tokens; leave it out"
    return f"{key} is for NPU only; {device} has max_context_tokens"


def _read_properties(reader: TableReader) -> dict[str, Setting]:
    table = reader.table.get("properties", {})
    if not isinstance(table, dict):
        reader.problems.append(f"{reader.where}properties is not a table of NAME = value")
        return {}
    allowed = {key: raw for key, raw in table.items() if key not in SET_ELSEWHERE}
    for key in table:
        if key in SET_ELSEWHERE:
            reader.problems.append(f"{reader.where}property {key}: {SET_ELSEWHERE[key]}")
    where = f"{reader.where}property "
    inner = replace(reader, table=allowed, where=where)
    return inner.settings((str, int, bool))


def build_devices(drafts: Mapping[str, Draft], problems: list[str]) -> tuple[DeviceProfile, ...]:
    """Return the checked devices; those with problems are noted and left out."""
    built = [_build_device(name, draft, problems) for name, draft in drafts.items()]
    return tuple(entry for entry in built if entry is not None)


def _build_device(name: str, draft: Draft, problems: list[str]) -> DeviceProfile | None:
    """Return the checked device, or None after noting why it cannot be built."""
    if any(key not in draft.limits for key in _OWN_LIMITS[name]):
        return None  # the reader has noted what is missing or of a wrong type
    limits, properties = dict(draft.limits), dict(draft.properties)
    if name == "NPU":
        limits, properties = _complete_npu(limits, properties)
    values = {key: cast("int", setting.value) for key, setting in limits.items()}
    try:
        return DeviceProfile(
            device=cast("DeviceName", name),
            properties={k: cast("PropertyValue", s.value) for k, s in properties.items()},
            max_context_tokens=values["max_context_tokens"],
            prefill_chunk_tokens=values["prefill_chunk_tokens"],
            max_prompt_tokens=values.get("max_prompt_tokens"),
            min_response_tokens=values.get("min_response_tokens"),
            reasons=merge_reasons(limits)
            | merge_reasons(properties)
            | {"device": draft.place.reason},
            measured=merge_measured({**limits, **properties, "device": draft.place}),
            note=draft.note,
        )
    except UsageError as exc:
        found = cast("tuple[str, ...]", exc.facts["problems"])
        problems += [f"{name}: {problem}" for problem in found]
        return None


def _complete_npu(
    limits: dict[str, Setting], properties: dict[str, Setting]
) -> tuple[dict[str, Setting], dict[str, Setting]]:
    """Add what follows from the two NPU lengths: context, prefill chunk and the properties."""
    prompt, response = limits["max_prompt_tokens"], limits["min_response_tokens"]
    context = cast("int", prompt.value) + cast("int", response.value)
    is_measured = prompt.is_measured  # what follows from a length is as well founded as it is
    limits["max_context_tokens"] = Setting(
        context,
        "max_prompt_tokens + min_response_tokens: the NPU plugin fixes both shapes",
        is_measured,
    )
    limits["prefill_chunk_tokens"] = Setting(
        prompt.value,
        "the NPU plugin takes the whole prompt in one call and cuts it up itself",
        is_measured,
    )
    fixed = {
        "NPU_USE_NPUW": Setting("YES", "the part of the NPU plugin that runs language models"),
        "NPUW_LLM": Setting("YES", "lets the NPU plugin make the stateful model static by itself"),
        "NPUW_LLM_MAX_PROMPT_LEN": Setting(prompt.value, "max_prompt_tokens"),
        "NPUW_LLM_MIN_RESPONSE_LEN": Setting(response.value, "min_response_tokens"),
    }
    marked = {key: replace(setting, is_measured=is_measured) for key, setting in fixed.items()}
    return limits, marked | properties
