"""The OpenAPI description of the server, made from what reads its requests."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from qwen_edge.server.api.chat_request import ChatRequest
from qwen_edge.server.api.completion_request import CompletionRequest
from qwen_edge.server.api.responses_request import ResponsesRequest

_REF = "#/components/schemas/{model}"
_BODIES: Mapping[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation"),
    "/v1/completions": (CompletionRequest, "Go on with a text"),
    "/v1/responses": (ResponsesRequest, "Answer a conversation given in items"),
}
_READS: Mapping[str, str] = {
    "/health": "Whether the server can answer; 503 while it loads",
    "/v1/models": "The models that are served",
    "/v1/models/{name}": "One of them",
    "/v1/responses/{id}": "A response that is still stored",
}
_ERRORS = {
    "400": "A field is unknown, unsupported or out of range, and the error names it; or the path "
    "or a header is none",
    "401": "The bearer key is missing or another one",
    "403": "The request comes from another site, or names another host",
    "404": "There is no such model or path",
    "408": "The request did not come in time",
    "413": "The body is too large",
    "414": "The path is too long",
    "415": "The body is not application/json",
    "431": "The headers are too long",
    "500": "The engine, or the server, met an error",
    "503": "The model is being loaded, or too many answers are wanted; see Retry-After",
}
_READ_ERRORS = ("400", "401", "403", "404", "414", "431")
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "fix"],
            "properties": {
                "message": {"type": "string", "description": "what is wrong"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field that is meant"},
                "code": {"type": ["string", "null"]},
                "fix": {"type": ["string", "null"], "description": "what to do"},
            },
        }
    },
}
_STATE_SCHEMA = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"enum": ["loading", "failed", "stopping"]},
        "error": {"type": "string", "description": "why it could not be loaded"},
    },
}


def make_openapi(*, has_metrics: bool = False) -> dict[str, Any]:
    """Return the description, OpenAPI 3.1.

    Args:
        has_metrics: Whether `/metrics` is served.
    """
    kinds = [(kind, "validation") for kind, _ in _BODIES.values()]
    _, found = models_json_schema(kinds, ref_template=_REF)  # type: ignore[arg-type]
    schemas = {**found.get("$defs", {}), "Error": _ERROR_SCHEMA}
    paths: dict[str, Any] = {path: {"get": _describe_read(path, _READS[path])} for path in _READS}
    stored = "/v1/responses/{id}"
    paths[stored]["delete"] = _describe_delete(stored, "Forget a stored response")
    if has_metrics:
        paths["/metrics"] = {"get": _describe_read("/metrics", "Figures for Prometheus")}
    for path, (kind, summary) in _BODIES.items():
        paths[path] = {"post": _describe_post(kind, summary)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "qwen-edge",
            "version": _read_version(),
            "description": "OpenAI-compatible. Unknown fields are refused, none is passed over.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe_read(path: str, summary: str) -> dict[str, Any]:
    content_type = "text/plain" if path == "/metrics" else "application/json"
    description: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done", "content": {content_type: {}}},
            **_describe_errors(*_READ_ERRORS),
        },
    }
    if path == "/health":
        content = {"application/json": {"schema": _STATE_SCHEMA}}
        description["responses"]["503"] = {"description": "It cannot", "content": content}
    if "{" in path:
        description["parameters"] = [_describe_name(path)]
    return description


def _describe_name(path: str) -> dict[str, Any]:
    """Return the description of the name in a path."""
    in_path = path.partition("{")[2].rstrip("}")
    return {"name": in_path, "in": "path", "required": True, "schema": {"type": "string"}}


def _describe_delete(path: str, summary: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": [_describe_name(path)],
        "responses": {
            "200": {"description": "Done", "content": {"application/json": {}}},
            **_describe_errors(*_READ_ERRORS),
        },
    }


def _describe_post(kind: type[BaseModel], summary: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=kind.__name__)}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {
                "description": "The answer, or with stream: true its pieces",
                "content": {"application/json": {}, "text/event-stream": {}},
            },
            **_describe_errors(*_ERRORS),
        },
    }


def _describe_errors(*codes: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {code: {"description": _ERRORS[code], "content": content} for code in codes}


def _read_version() -> str:
    try:
        return version("qwen-edge")
    except PackageNotFoundError:
        return "unknown"
