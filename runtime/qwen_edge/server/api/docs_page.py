"""The OpenAPI description as one plain page: no script, nothing from elsewhere."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any


def write_docs_page(description: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        description: What `make_openapi` returned.
    """
    schemas = description["components"]["schemas"]
    sections = [
        part
        for path, methods in description["paths"].items()
        for method, what in methods.items()
        for part in _write_path(path, method, what, schemas)
    ]
    title = escape(f"{description['info']['title']} {description['info']['version']}")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{title}</title><link rel="stylesheet" href="/docs.css"></head><body>',
            f"<h1>{title}</h1><p>{escape(description['info']['description'])} "
            'The same for programs: <a href="/openapi.json">openapi.json</a>. '
            '<a href="/">Chat page</a>.</p>',
            *sections,
            "</body></html>",
        ]
    )


def _write_path(
    path: str, method: str, what: Mapping[str, Any], schemas: Mapping[str, Any]
) -> Iterator[str]:
    yield f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(what['summary'])}.</p>"
    if "requestBody" in what:
        schema = what["requestBody"]["content"]["application/json"]["schema"]
        yield from _write_fields(schema["$ref"].rpartition("/")[2], schemas)
    yield "<table><tr><th>status</th><th>means</th></tr>"
    for code, answer in what["responses"].items():
        yield f"<tr><td>{code}</td><td>{escape(answer['description'])}</td></tr>"
    yield "</table></section>"


def _write_fields(name: str, schemas: Mapping[str, Any]) -> Iterator[str]:
    schema = schemas[name]
    yield "<table><tr><th>field</th><th>type</th><th></th></tr>"
    for field, what in schema["properties"].items():
        is_required = field in schema.get("required", ())
        note = what.get("description", "") + (" (required)" if is_required else "")
        shown = escape(_show_type(what, schemas))
        yield f"<tr><td><code>{escape(field)}</code></td><td>{shown}</td>"
        yield f"<td>{escape(note.strip())}</td></tr>"
    yield "</table>"


def _show_type(what: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """Return a type in few words."""
    if "$ref" in what:
        inner = schemas[what["$ref"].rpartition("/")[2]]
        return "{" + ", ".join(inner["properties"]) + "}"
    if "anyOf" in what:
        shown = [_show_type(one, schemas) for one in what["anyOf"]]
        return " or ".join(one for one in shown if one != "null")
    if "enum" in what:
        return ", ".join(map(repr, what["enum"]))
    if "const" in what:
        return repr(what["const"]).lower()
    if what.get("type") == "array":
        return f"list of {_show_type(what.get('items', {}), schemas)}"
    return str(what.get("type", "any"))
