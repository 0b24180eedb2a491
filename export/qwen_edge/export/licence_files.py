"""Licences, notices and terms of a checkpoint: carried into the package byte for byte.

Which licence holds is nobody's guess here; what its makers state is in `source_card.py`.
"""

from pathlib import Path

from qwen_edge.export.source_card import find_contradiction
from qwen_edge.runtime.files.plain_name import check_plain_name
from qwen_edge.runtime.files.writing import copy_file
from qwen_edge.runtime.licence_names import is_licence_text


def copy_licence_texts(source: Path, package: Path, *, stated: str) -> tuple[str, ...]:
    """Copy every text by which a checkpoint's makers say what may be done with it.

    Args:
        source: The checkpoint folder.
        package: Where they go. One whose name no package may hold gets ".txt" behind it.
        stated: The licence that the checkpoint's card states.

    Returns:
        What a person should be told: sentences.
    """
    notes = []
    for path in sorted(source.iterdir()):
        if not is_licence_text(path.name) or not path.is_file():
            continue
        name = path.name
        if check_plain_name(name) is not None:
            name = f"{name}.txt"
        if check_plain_name(name) is not None or not _is_text(path):
            notes.append(
                f"The checkpoint's {path.name!r} is not in the package, which holds texts with "
                "plain names only; give it along yourself."
            )
            continue
        copy_file(path, package / name)
    contradiction = find_contradiction(source, stated)
    return (*notes, *([contradiction] if contradiction else []))


def _is_text(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return path.suffix.lower() in ("", ".txt", ".md")  # of another code page: as it is
    return True
