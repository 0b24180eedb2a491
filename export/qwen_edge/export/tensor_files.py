"""Where the tensors of a checkpoint folder lie: safetensors headers and their index.

Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names, as claims
of a stranger: no name leaves the folder, nothing but regular files is opened, and a header
must describe its file exactly. No weight is read. It does not know what a tensor is for;
see `checkpoint.py`.
"""

import json
import os
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import CheckpointError, join_problems
from qwen_edge.export.config_fields import shown
from qwen_edge.runtime.files.opening import inside, why_outside
from qwen_edge.runtime.schema import parse_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The largest published checkpoints have some 100,000 tensors in 200 files: 10 MB of index,
# less than 1 MB of header. The format itself allows 100 MB, which cost gigabytes to parse.
_MAX_HEADER_BYTES = 16_000_000
_MAX_INDEX_BYTES = 64_000_000
_MAX_SHARDS = 10_000


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Args:
        name: Name in the checkpoint.
        dtype: "BF16", "F16" or "F32" when it can be read; otherwise the file's own word.
        shape: Dimensions, outermost first.
        path: The shard.
        offset_bytes: First byte within the shard.
        size_bytes: Number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset_bytes: int
    size_bytes: int


def list_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Read the header of every shard in a folder.

    Args:
        folder: Holds `model.safetensors`, or shards named by `model.safetensors.index.json`.

    Returns:
        Tensor name to place.

    Raises:
        CheckpointError: No such file, an index that leaves the folder or contradicts the
            shards, or a header that is cut off or does not describe its file.
    """
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if index.exists():
        return _read_index(folder, index, has_single=single.exists())
    if not single.exists():
        raise CheckpointError(
            f"{str(folder)!r} holds neither {SINGLE_FILE!r} nor {INDEX_FILE!r}.",
            "point to the folder that `save_pretrained` or a download wrote; weights in "
            "pytorch_model.bin must be saved as safetensors first",
            folder=str(folder),
        )
    return {entry.name: entry for entry in read_header(single)}


def read_header(path: Path) -> Iterator[TensorEntry]:
    """Yield the tensors of one safetensors file.

    Args:
        path: A regular file, directly or through a link.

    Yields:
        One entry per tensor, in the header's order.

    Raises:
        CheckpointError: Not a regular file, or the header does not describe the file.

    Source:
        Format: huggingface/safetensors README, version 0.8. Its own reader checks that
        offsets are in range and leave no holes; it lets a repeated name pass (last wins).
    """
    _check_regular_file(path)
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if header_bytes > _MAX_HEADER_BYTES:
            raise _broken(
                path,
                f"the header claims {header_bytes:,} bytes, more than {_MAX_HEADER_BYTES:,}",
            )
        _check_with_safetensors(path)
        text = file.read(header_bytes)
    try:
        header = json.loads(text, object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as exc:
        raise _broken(path, str(exc)) from exc
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        begin, end = facts["data_offsets"]
        yield TensorEntry(
            name=name,
            dtype=facts["dtype"],
            shape=tuple(facts["shape"]),
            path=path,
            offset_bytes=8 + header_bytes + begin,
            size_bytes=end - begin,
        )


def _refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        repeated = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"{shown(repeated)} stands there twice")
    return content


def _check_with_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as exc:
        raise _broken(path, f"{exc}{_described_length(path)}") from exc


def _described_length(path: Path) -> str:
    """Return what the header says of its file's length, where that is another than it has."""
    try:
        with path.open("rb") as file:
            header_bytes = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(min(header_bytes, _MAX_HEADER_BYTES)))
        entries = [facts for name, facts in header.items() if name != "__metadata__"]
        end = 8 + header_bytes + max(int(facts["data_offsets"][1]) for facts in entries)
        return f", its header describes {end:,} bytes" if end != path.stat().st_size else ""
    except (
        struct.error,
        ValueError,
        RecursionError,
        OverflowError,
        LookupError,
        TypeError,
        AttributeError,
    ):
        return ""  # nothing that could be understood


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name!r} is not a whole safetensors file: {why[:300]}. "
        f"It has {path.stat().st_size:,} bytes.",
        "fetch or save this file again",
        path=str(path),
    )


def _check_regular_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as exc:  # ValueError: a name that no system could have
        raise CheckpointError(
            f"The file {shown(path.name)} cannot be read: {getattr(exc, 'strerror', None) or exc}.",
            f"fetch the missing file, or correct {INDEX_FILE}",
            path=str(path),
        ) from exc
    if not stat.S_ISREG(mode):  # a pipe would block for ever, a device would never end
        raise CheckpointError(
            f"{path.name!r} is not a regular file.",
            "replace it with the file itself",
            path=str(path),
        )


def _read_index(folder: Path, index: Path, *, has_single: bool) -> dict[str, TensorEntry]:
    weight_map = _read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    outside = [shard for shard in shards if "/" in shard or why_outside(shard)]
    if outside:
        raise CheckpointError(
            f"{index.name!r} points outside its folder: {join_problems(list(map(shown, outside)))}."
            " A shard must be a plain file name; anything else could read other people's files.",
            "do not use this checkpoint, or write its index again with `save_pretrained`",
            shards=outside,
        )
    if has_single and SINGLE_FILE not in shards:
        raise CheckpointError(
            f"{str(folder)!r} holds {SINGLE_FILE!r} and an index of other files, such as "
            f"{shards[0]!r}. Programs differ on which of them is the model.",
            f"remove {SINGLE_FILE!r}, or {INDEX_FILE!r} with its shards, whichever is out of date",
            folder=str(folder),
        )
    missing = [shard for shard in shards if not os.path.exists(inside(folder, shard))]  # noqa: PTH110 – no name makes it raise
    if missing:
        raise CheckpointError(
            f"{len(missing):,} of {len(shards):,} shards that {index.name!r} names are missing: "
            f"{join_problems(list(map(shown, missing)))}.",
            "fetch these files",
            shards=missing,
        )
    found: dict[str, TensorEntry] = {}
    for shard in shards:
        for entry in read_header(inside(folder, shard)):
            if entry.name in found:
                raise _broken(
                    inside(folder, shard),
                    f"{shown(entry.name)} stands in {found[entry.name].path.name!r} as well",
                )
            found[entry.name] = entry
    lost = [n for n, shard in weight_map.items() if n not in found or found[n].path.name != shard]
    if lost:
        raise CheckpointError(
            f"{len(lost):,} tensors are not in the shard that {index.name!r} names, "
            f"the first is {shown(lost[0])} (expected in {weight_map[lost[0]]!r}).",
            "fetch index and shards again, from one and the same revision",
            tensors=lost,
        )
    return found


def _read_weight_map(index: Path) -> Mapping[str, str]:
    _check_regular_file(index)
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f"it has more than {_MAX_INDEX_BYTES:,} bytes")
        content = parse_json(index.read_bytes())
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("it is missing or empty")
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError("it names something else than files")
        if len(set(weight_map.values())) > _MAX_SHARDS:
            raise ValueError(f"it names more than {_MAX_SHARDS:,} files")
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"{index.name!r} has no readable 'weight_map' (tensor name to file name): {exc}.",
            "fetch this file again",
            path=str(index),
        ) from exc
    return weight_map
