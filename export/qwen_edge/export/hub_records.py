"""What the hub's cache notes for itself: listings of commits, and which files were checked.

Small JSON files of our own making. One that is damaged counts as absent, and is made again.
"""

import json
from pathlib import Path
from typing import Any

from qwen_edge.runtime.files.replacing import replace_content
from qwen_edge.runtime.files.writing import make_folder


def read_json_file(path: Path) -> dict[str, Any] | None:
    """Return a JSON object of our own making; None if absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write_json_file(path: Path, content: object) -> None:
    """Write a JSON object in the place of an earlier one.

    Raises:
        OSError: The cache cannot be written.
    """
    make_folder(path.parent)
    replace_content(path, json.dumps(content, indent=1, sort_keys=True).encode("ascii"))
