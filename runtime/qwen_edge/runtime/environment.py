"""The environment variables this project reads, and the folders that follow from them.

Read here, once, and nowhere else. This module makes no folder and touches no file.
"""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from qwen_edge.errors import UsageError, did_you_mean

_LOGGER = logging.getLogger(__name__)
_PREFIX = "QWEN_EDGE_"
CACHE_DIR_VARIABLE = "QWEN_EDGE_CACHE_DIR"
CONFIG_DIR_VARIABLE = "QWEN_EDGE_CONFIG_DIR"
PROFILE_VARIABLE = "QWEN_EDGE_PROFILE"
RECIPE_VARIABLE = "QWEN_EDGE_RECIPE"
API_KEY_VARIABLE = "QWEN_EDGE_API_KEY"
_KNOWN = (
    CACHE_DIR_VARIABLE,
    CONFIG_DIR_VARIABLE,
    PROFILE_VARIABLE,
    RECIPE_VARIABLE,
    API_KEY_VARIABLE,
)


class _Place(NamedTuple):
    """Where each system keeps files of a kind: names below its folders, and XDG's variable."""

    on_windows: str
    on_macos: str
    xdg_variable: str
    in_home: str


_CACHE = _Place("cache", "Caches", "XDG_CACHE_HOME", ".cache")
_SETTINGS = _Place("settings", "Application Support", "XDG_CONFIG_HOME", ".config")


@dataclass(frozen=True)
class Environment:
    """What the environment says.

    Args:
        cache_dir: Where files go that may be deleted at any time; None where a system names
            no such place.
        profile: Default profile of an export, or None.
        recipe: Default recipe of an export, or None.
        settings_dir: Where a person's own settings are kept, such as tuned ones; None where a
            system names no such place.
        api_key: What requests to a server have to bring; None where it is not set.
    """

    cache_dir: Path | None
    profile: str | None = None
    recipe: str | None = None
    settings_dir: Path | None = None
    api_key: str | None = field(default=None, repr=False)


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Read the variables; those of ours that are unknown are logged with the closest name.

    Args:
        variables: Instead of the process's own, for tests.

    Raises:
        UsageError: A value that cannot be meant, naming the variable.
    """
    variables = os.environ if variables is None else variables
    for name in variables:
        if name.startswith(_PREFIX) and name not in _KNOWN:
            _LOGGER.warning("%s is not a variable we read.%s", name, did_you_mean(name, _KNOWN))
    return Environment(
        cache_dir=_read_folder(variables, CACHE_DIR_VARIABLE, _CACHE),
        profile=variables.get(PROFILE_VARIABLE) or None,
        recipe=variables.get(RECIPE_VARIABLE) or None,
        settings_dir=_read_folder(variables, CONFIG_DIR_VARIABLE, _SETTINGS),
        api_key=variables.get(API_KEY_VARIABLE),
    )


def _read_folder(variables: Mapping[str, str], name: str, place: _Place) -> Path | None:
    """Return the folder that a variable names, or the system's own."""
    if name not in variables:
        return _default_dir(place, variables, sys.platform)
    value = variables[name]
    path = Path(value)
    if not value.strip() or not path.is_absolute():
        raise UsageError(
            f"{name} is {value!r}, expected the absolute path of a folder.",
            f"set {name} to a full path, or unset it.",
            variable=name,
            value=value,
        )
    return path


def _default_dir(place: _Place, variables: Mapping[str, str], platform: str) -> Path | None:
    """Return where this system keeps files of a kind that belong to one person and machine.

    Source:
        XDG Base Directory Specification 0.8 (relative values are ignored); Known Folders,
        Microsoft (LocalAppData, since AppData follows its user to other machines); File System
        Programming Guide, Apple (Library).
    """
    if platform == "win32":
        local = variables.get("LOCALAPPDATA", "")
        return Path(local) / "qwen-edge" / place.on_windows if local else None
    home = variables.get("HOME", "")
    if platform == "darwin":
        return Path(home) / "Library" / place.on_macos / "qwen-edge" if home else None
    xdg = variables.get(place.xdg_variable, "")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "qwen-edge"
    return Path(home) / place.in_home / "qwen-edge" if home else None
