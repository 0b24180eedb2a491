"""What a person is told of work that is kept: that it is gone on with, or where it lies.

Calibration of a full-size model takes an hour and more, so nobody should wonder whether it is lost.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen_edge.errors import ParityError, format_bytes
from qwen_edge.export.calibrated.calibration import count_kept_bytes, work_folder_path
from qwen_edge.export.calibrated.work_folder import WorkFolder

_PARTS = {
    "source": "another checkpoint",
    "adapters": "other adapters",
    "samples": "other calibration text",
    "tools": "other versions of the programs",
    "threads": "another number of cores",
    "recipe": "another recipe",
}
SEARCH_KEPT = "What each format costs is kept from an earlier export and not measured again."


def describe_earlier(work: WorkFolder, key: str, num_layers: int) -> str | None:
    """Return what becomes of earlier work, as a sentence; None where there is none.

    Args:
        work: The folder, opened with `key`.
        key: What this calibration depends on.
        num_layers: Of the model.
    """
    if work.other_key is not None:
        return (
            f"Earlier calibration in {str(work.path)!r} was for {_find_difference(work, key)}, so "
            "calibration starts anew."
        )
    first = work.find_next_layer(num_layers)
    if not first:
        return None
    if first == num_layers:
        return f"All {num_layers} layers are kept from an interrupted export."
    return f"Goes on at layer {first + 1} of {num_layers}, kept from an interrupted export."


def _find_difference(work: WorkFolder, key: str) -> str:
    """Return what differs between two keys, in words."""
    try:
        before, now = json.loads(work.other_key or ""), json.loads(key)
        differing = [words for name, words in _PARTS.items() if before.get(name) != now.get(name)]
    except (ValueError, AttributeError, RecursionError):
        differing = []
    return " and ".join(differing) or "something else"


@contextmanager
def telling_what_is_kept(target: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Say where work is kept when the block ends early: cancelled, refused or failed.

    Args:
        target: The package folder to be.
        tell: Receives a sentence.
    """
    try:
        yield
    except BaseException as error:
        sentence = describe_kept(target)
        if sentence is not None:
            if isinstance(error, ParityError):
                sentence += " With another gate or --accept-loss, too, nothing is calibrated again."
            tell(sentence)
        raise


def describe_kept(target: Path) -> str | None:
    """Return where unfinished work of a target lies and how large it is; None where none does.

    Args:
        target: The package folder to be.
    """
    folder = work_folder_path(target)
    if not folder.is_dir():
        return None
    size = format_bytes(count_kept_bytes(target))
    return (
        f"What calibration has done is kept in {str(folder)!r} ({size}): the "
        "same command goes on there. Delete it to start anew."
    )
