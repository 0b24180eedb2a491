"""Which names the files of a package may have: those that mean the same on every system.

A manifest is a stranger's claim. A name with a separator, a drive or a device in it would lead
out of the folder; one with another suffix could be run by a double click.
"""

import re

_DATA_SUFFIXES = frozenset(
    {"", ".bin", ".data", ".jinja", ".json", ".md", ".model", ".onnx", ".toml", ".txt", ".xml"}
)
QUALITY_REPORT = "quality.html"
FRONTIER_REPORT = "frontier.html"
RECIPE_FILE = "recipe.toml"
"""What a recipe search found, as a recipe file that gives the same package."""
_PAGES = frozenset({QUALITY_REPORT, FRONTIER_REPORT})  # that a package may bring
# One component on every system: no separator, drive, stream, leading or trailing dot or space.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?", re.ASCII)
# Source: "Naming Files, Paths, and Namespaces", Microsoft Win32 documentation.
_WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


def check_plain_name(name: str) -> str | None:
    """Return why `name` may not name a file of a package, or None where it may.

    Args:
        name: As the manifest says it: one component that means the same on every system.
    """
    if not _PLAIN_NAME.fullmatch(name) or _WINDOWS_DEVICE.fullmatch(name):
        return "is not a plain file name"
    dot = name.rfind(".")
    if name[dot:].lower() not in _DATA_SUFFIXES and dot > 0 and name not in _PAGES:
        kinds = " ".join(sorted(_DATA_SUFFIXES)[1:])
        return f"is not a kind of file that packages hold ({kinds})"
    return None
