"""What a package says of the adapters in it, and how it is named after them."""

from collections.abc import Callable, Sequence

from qwen_edge.export.adapters.opening import Adapter, split_adapter
from qwen_edge.export.hub import REPO_ID
from qwen_edge.runtime.manifest import AdapterFacts, FileFacts
from qwen_edge.runtime.package import hash_file


def adapter_names(given: Sequence[str]) -> list[str]:
    """Return the names of adapters as given on the command line.

    Args:
        given: Each a folder, or "FOLDER=WEIGHT".

    Raises:
        UsageError: See `open_adapters`.
    """
    return [split_adapter(text)[0].resolve().name for text in given]


def adapter_facts(
    adapters: Sequence[Adapter], report: Callable[[str, int, int], None]
) -> tuple[AdapterFacts, ...]:
    """Return the manifest's entries, with the hashes of the adapters' files.

    Args:
        adapters: As merged.
        report: Told of each one.
    """
    found = []
    for done, adapter in enumerate(adapters):
        report("hash adapters", done, len(adapters))
        files: dict[str, FileFacts] = {path.name: hash_file(path) for path in adapter.files}
        base = adapter.settings.base_model_name_or_path
        found.append(
            AdapterFacts(
                name=writable(adapter.name),
                weight=adapter.weight,
                base_model=_without_path(writable(base)) if base else None,
                files=files,
            )
        )
    if adapters:
        report("hash adapters", len(adapters), len(adapters))
    return tuple(found)


def _without_path(name: str) -> str:
    """Return a hub id as it is, and the last part of a path, which belongs to one machine."""
    is_hub_id = REPO_ID.fullmatch(name) and not name.startswith(".")
    return name if is_hub_id else name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def writable(text: str) -> str:
    """Return a text with what UTF-8 cannot hold replaced: a folder's name may be any bytes."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
