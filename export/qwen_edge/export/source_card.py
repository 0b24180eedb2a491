"""The licence and the ancestry of a checkpoint, as its model card states them.

Everything is carried word for word; what is not stated is "unknown" and never guessed.
It does not know where the card comes from; see `hub.py` and `source.py`.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

UNKNOWN_LICENSE = "unknown"
# A card is read only this far: front matter stands at the very beginning.
_MAX_CARD_BYTES = 1 << 20
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# The first words of the two licences whose text names itself beyond doubt.
_LICENSE_HEADINGS = (
    (re.compile(r"\A\s*Apache License\s+Version 2\.0, January 2004\b"), "apache-2.0"),
    (re.compile(r"\A\s*(?:The )?MIT License\b"), "mit"),
)


@dataclass(frozen=True)
class SourceCard:
    """What a model card states about rights and ancestry.

    Attributes:
        license: The card's identifier, for example "apache-2.0"; "unknown" if it has none.
        license_name: The licence's own name, which cards add to the identifier "other".
        license_link: Where the text is: an address, or a file name of the checkpoint.
        base_model: The model that this one was made from; several are joined by ", ".
    """

    license: str = UNKNOWN_LICENSE
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None


def card_from_metadata(metadata: Mapping[str, Any]) -> SourceCard:
    """Return the card for the metadata block of a model card.

    Args:
        metadata: The parsed block. Values of an unexpected kind count as not stated.
    """
    return SourceCard(
        license=_text(metadata.get("license")) or UNKNOWN_LICENSE,
        license_name=_text(metadata.get("license_name")),
        license_link=_text(metadata.get("license_link")),
        base_model=_text(metadata.get("base_model")),
    )


def read_card(folder: Path) -> SourceCard:
    """Return what README.md, or else a licence file, says about a local checkpoint.

    Args:
        folder: The checkpoint folder.

    Returns:
        The card. An unreadable block counts as not stated, and is logged.
    """
    card = card_from_metadata(_read_front_matter(folder / "README.md"))
    license_file = _find_license_file(folder)
    if card.license != UNKNOWN_LICENSE or license_file is None:
        return card
    named = _name_text(folder)
    return SourceCard(
        license=UNKNOWN_LICENSE if named is None else named[1],
        license_name=card.license_name,
        license_link=card.license_link or license_file.name,
        base_model=card.base_model,
    )


def find_contradiction(folder: Path, stated: str) -> str | None:
    """Return a sentence where a checkpoint's licence file is not the licence that its card states.

    Args:
        folder: The checkpoint folder.
        stated: The card's identifier.
    """
    found = _name_text(folder)
    if found is None or stated in (UNKNOWN_LICENSE, found[1]):
        return None
    name, named = found
    return (
        f"The checkpoint's card states the licence {stated!r}, its {name!r} is {named!r}. Both are "
        "carried along as they are; ask its makers which one holds."
    )


def _name_text(folder: Path) -> tuple[str, str] | None:
    """Return the name of a licence file, and which licence it is; None where that is not plain."""
    path = _find_license_file(folder)
    if path is None:
        return None
    text = _read_start(path)
    named = (name for heading, name in _LICENSE_HEADINGS if heading.match(text))
    return next(((path.name, name) for name in named), None)


def _read_front_matter(readme: Path) -> Mapping[str, Any]:
    import yaml  # PyYAML, which huggingface_hub needs too

    if not readme.is_file():
        return {}
    match = _FRONT_MATTER.match(_read_start(readme))
    if match is None:
        return {}
    try:
        metadata = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as exc:
        # AttributeError: PyYAML 6.0 on a text that says it is a date, and is none.
        _log.warning("The metadata block of %s is not YAML and is ignored: %s", readme.name, exc)
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _find_license_file(folder: Path) -> Path | None:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().startswith(("license", "licence")) and path.is_file()
    )
    return found[0] if found else None


def _read_start(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_CARD_BYTES).decode("utf-8-sig", errors="replace")


def _text(value: object) -> str | None:
    """Return a text, or a list of texts joined by commas; None for anything else."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, list):
        return ", ".join(item.strip() for item in value if isinstance(item, str)) or None
    return None
