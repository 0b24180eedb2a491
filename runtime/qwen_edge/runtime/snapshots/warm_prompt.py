"""The snapshot of a system prompt that a package may bring along.

`qwen-edge export … --warm-prompt FILE` writes it: the text, and for each format the cache after
it, computed with the package's settings for the CPU. Where a model is loaded with the same
settings, conversations that begin with that system message start from it; elsewhere its text is
read as any other. The files bind to the model's, not to the manifest that lists them.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qwen_edge.errors import EdgeError, PackageError
from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.files.opening import inside, open_inside
from qwen_edge.runtime.manifest import FormatName, Manifest
from qwen_edge.runtime.snapshots.binding import SnapshotBinding
from qwen_edge.runtime.snapshots.snapshot_file import load_snapshot, open_bound

_LOGGER = logging.getLogger(__name__)
WARM_PROMPT_TEXT = "warm_prompt.txt"
WARM_PROMPT_FILES: Mapping[FormatName, str] = MappingProxyType(
    {"openvino": "warm_prompt_openvino.bin", "onnx": "warm_prompt_onnx.bin"}
)
MAX_WARM_PROMPT_BYTES = 1 << 20


@dataclass(frozen=True)
class WarmPrompt:
    """A package's system prompt.

    Args:
        text: The system message.
        token_ids: What all conversations that begin with it begin with; empty where the
            snapshot is not of use here.
        read: Returns the snapshot, from its file.
    """

    text: str
    token_ids: tuple[int, ...]
    read: Callable[[], CacheSnapshot]


def find_warm_prompt(
    folder: Path, manifest: Manifest, fmt: FormatName, *, binding: SnapshotBinding, max_tokens: int
) -> WarmPrompt | None:
    """Return the system prompt that a package brings along, or None.

    Args:
        folder: The package's, checked.
        manifest: The package's.
        fmt: Which of its models runs.
        binding: What its snapshots must belong to.
        max_tokens: Most tokens of the model's context.

    Raises:
        PackageError: The text cannot be read.
    """
    if WARM_PROMPT_TEXT not in manifest.files:
        return None
    text = _read_text(folder)
    name = WARM_PROMPT_FILES[fmt]
    token_ids: tuple[int, ...] = ()
    if name not in manifest.files:
        _LOGGER.info("The package has no snapshot of its warm prompt for %s; it is read", fmt)
    else:
        try:
            path = open_inside(folder, name)
            with open_bound(path, binding=binding, max_tokens=max_tokens) as opened:
                token_ids = opened.read_ids()
        except EdgeError as error:
            _LOGGER.info("The package's warm prompt is read as any other: %s", error.problem)

    def read() -> CacheSnapshot:
        return load_snapshot(inside(folder, name), binding=binding, max_tokens=max_tokens).cache

    return WarmPrompt(text, token_ids, read)


def _read_text(folder: Path) -> str:
    path = open_inside(folder, WARM_PROMPT_TEXT)
    try:
        return path.read_bytes()[: MAX_WARM_PROMPT_BYTES + 1].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(
            f"{str(path)!r} cannot be read as text: {error}.",
            "check the package with `qwen-edge verify`, or export it again.",
            path=str(path),
        ) from error
