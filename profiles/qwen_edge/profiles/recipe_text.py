"""A recipe as the text of a TOML file that gives the same recipe again.

For recipes that no file had: one that was put together by a search, or taken from a package. The
other direction is `recipe.load_recipe`.
"""

import json
from collections.abc import Iterator

from qwen_edge.profiles.recipe import Recipe

_PLAIN_KEYS = ("name", "matrices")  # have no reason beside their value


def format_recipe(recipe: Recipe, *, heading: str = "") -> str:
    """Return the text of a recipe file, complete and without `extends`.

    Args:
        recipe: Its reasons become part of the file; one that has none is "your profile file".
        heading: A comment for the top, of any number of lines.
    """
    return "\n".join(_lines(recipe, heading)) + "\n"


def _lines(recipe: Recipe, heading: str) -> Iterator[str]:
    yield from (f"# {line}".rstrip() for line in heading.splitlines())
    if heading:
        yield ""
    yield f"name = {_toml(recipe.name)}"
    yield f"summary = {_toml(recipe.summary)}"
    yield ""
    for key, value in recipe.to_manifest().items():
        if key not in _PLAIN_KEYS:
            reason = recipe.reasons.get(key)
            shown = _toml(value)
            full = f"{{ value = {shown}, reason = {_toml(reason)} }}"
            yield f"{key} = {full if reason else shown}"
    if not recipe.matrices:
        return
    yield ""
    yield "[matrices]"
    reason = recipe.reasons.get("matrices")
    if reason:
        yield f"reason = {_toml(reason)}"
    for key, found in sorted(recipe.matrices.items(), key=lambda item: _order(item[0])):
        values = (
            f"weights = {_toml(found.weights)}, symmetric = {_toml(found.symmetric)}, "
            f"group_size = {found.group_size}"
        )
        yield f"{_toml(key)} = {{ {values} }}"


def _order(key: str) -> tuple[int, str]:
    """Return where a key stands: every layer first, then layers by number."""
    number = key.split(".")[1]
    return (-1 if number == "*" else int(number), key)


def _toml(value: object) -> str:
    """Return a text, number, true or false as TOML; the first as JSON has it, which is the same."""
    return json.dumps(value, ensure_ascii=False)
