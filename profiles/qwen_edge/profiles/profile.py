"""What a kind of machine is given: its devices in order of preference, each value with a reason.

Owns the profiles of the catalog (`catalog/*.toml`) and those a person writes, which may build
on the catalog's with `extends`. It does not know which devices are present (`choose.py`), nor
which recipe they take (`legality.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from qwen_edge.errors import UnknownProfileError, did_you_mean
from qwen_edge.profiles.device import FIX, DeviceName, DeviceProfile
from qwen_edge.profiles.device_tables import build_devices, inherit_devices, read_devices
from qwen_edge.profiles.onnx_settings import FORMATS, Format, OnnxSettings, read_onnx_settings
from qwen_edge.profiles.recipe import recipe_names
from qwen_edge.profiles.table import Setting, TableReader, refuse_problems
from qwen_edge.profiles.toml_file import (
    OWN_FILE_REASON,
    Catalog,
    TomlFile,
    load_toml,
    name_problems,
    own_name,
)

__all__ = ["DeviceName", "DeviceProfile", "Profile", "load_profile", "profile_names"]

PROFILES = Catalog("catalog", "profile", "--profile", UnknownProfileError)


@dataclass(frozen=True)
class Profile:
    """A kind of machine.

    Args:
        name: Catalog name, or the name of a person's file.
        summary: One line for a table.
        recipe: Name of the default recipe.
        devices: In order of preference; at least one, each device once.
        recipe_reason: Why this recipe.
        format: What an export writes unless told otherwise.
        format_reason: Why this format.
        onnx: Settings of the ONNX form, if it is written.

    Raises:
        UsageError: A value is out of range or contradicts another; all problems in one error.
    """

    name: str
    summary: str
    recipe: str
    devices: tuple[DeviceProfile, ...]
    recipe_reason: str = ""
    format: Format = "openvino"
    format_reason: str = ""
    onnx: OnnxSettings = field(default_factory=OnnxSettings)

    def __post_init__(self) -> None:
        problems = name_problems(self.name)
        if not self.devices:
            problems.append("it has no device; write at least one [[devices]] table")
        names = [entry.device for entry in self.devices]
        twice = sorted({name for name in names if names.count(name) > 1})
        problems += [f"device {name} is listed more than once" for name in twice]
        refuse_problems(f"Profile {self.name!r}", problems, FIX)

    def to_json(self) -> dict[str, object]:
        """Return every value with its reason, for programs."""
        return {
            "name": self.name,
            "summary": self.summary,
            "recipe": {"value": self.recipe, "reason": self.recipe_reason},
            "format": {"value": self.format, "reason": self.format_reason},
            "devices": [entry.to_json() for entry in self.devices],
            "onnx": self.onnx.to_json(),
        }


def profile_names() -> tuple[str, ...]:
    """Return the names of all profiles in the catalog, sorted."""
    return PROFILES.names()


def load_profile(name_or_path: str | Path) -> Profile:
    """Return the profile of this name, or the one in a person's own TOML file.

    Args:
        name_or_path: A catalog name, or a path (with a separator, or ending in `.toml`).

    Raises:
        UnknownProfileError: No profile has this name and no file is at this path.
        UsageError: The file cannot be read, or has problems; all of them in one error.
    """
    file = load_toml(PROFILES, name_or_path)
    problems: list[str] = []
    reader = TableReader(file.table, "", OWN_FILE_REASON if file.is_own else None, problems)
    reader.check_keys(("name", "summary", "extends", "recipe", "format", "devices", "onnx"))
    parents = _load_parents(reader)
    recipe = _read_recipe(reader, file, parents)
    inherited = [entry for parent in parents for entry in parent.devices]
    drafts = inherit_devices(inherited, problems)
    read_devices(reader, drafts)
    if not drafts and not file.table.get("devices") and not file.table.get("extends"):
        problems.append("it has no device. Write a [[devices]] table, or extends = 'core-ultra'")
    devices = build_devices(drafts, problems)
    chosen = _read_format(reader, parents)
    onnx = read_onnx_settings(reader, [parent.onnx for parent in parents])
    name = own_name(reader, file, profile_names())
    problems += name_problems(name)
    summary = reader.plain_text("summary") or _default_summary(file, parents)
    refuse_problems(f"The profile file {file.label}", problems, FIX)
    return Profile(
        name=name,
        summary=summary,
        recipe=cast("str", recipe.value),
        devices=devices,
        recipe_reason=recipe.reason,
        format=cast("Format", chosen.value),
        format_reason=chosen.reason,
        onnx=onnx,
    )


def _load_parents(reader: TableReader) -> list[Profile]:
    parents = []
    for name in reader.texts("extends"):
        if name in profile_names():
            parents.append(load_profile(name))
            continue
        hint = did_you_mean(name.lower(), profile_names())
        reader.problems.append(f"extends = {name!r} names no profile of the catalog.{hint}")
    return parents


def _read_recipe(reader: TableReader, file: TomlFile, parents: Sequence[Profile]) -> Setting:
    """Return the default recipe: the file's own, else the first parent's."""
    setting = reader.setting("recipe", str)
    if setting is not None:
        name = cast("str", setting.value)
        if name not in recipe_names():
            hint = did_you_mean(name.lower(), recipe_names())
            reader.problems.append(
                f"recipe is {name!r}; expected one of {', '.join(recipe_names())}.{hint} "
                "Your own recipe file goes with --recipe"
            )
        return setting
    if parents:
        return Setting(parents[0].recipe, parents[0].recipe_reason)
    if "recipe" not in file.table:
        reader.problems.append("recipe is missing. Write recipe = 'int4-awq'")
    return Setting("", "")


def _read_format(reader: TableReader, parents: Sequence[Profile]) -> Setting:
    """Return the default format: the file's own, else the first parent's, else OpenVINO."""
    setting = reader.setting("format", str)
    if setting is not None:
        if setting.value in FORMATS:
            return setting
        hint = did_you_mean(str(setting.value).lower(), FORMATS)
        reader.problems.append(
            f"format is {setting.value!r}; expected one of {', '.join(FORMATS)}.{hint}"
        )
    if parents:
        return Setting(parents[0].format, parents[0].format_reason)
    return Setting("openvino", "OpenVINO is made for the devices of this profile")


def _default_summary(file: TomlFile, parents: Sequence[Profile]) -> str:
    names = ", ".join(parent.name for parent in parents)
    return f"your file {file.name}" + (f", from {names}" if names else "")
