"""The server's application: which path is answered by what.

Read `answer_endpoint.py` for how answers are made, `http_guard.py` for what is refused before a
request comes here, and `api/` for what requests and answers look like.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from qwen_edge.errors import EdgeError
from qwen_edge.server.admission import Admission
from qwen_edge.server.answer_endpoint import AnswerEndpoint
from qwen_edge.server.api.docs_page import write_docs_page
from qwen_edge.server.api.jobs import read_chat_job, read_completion_job, read_responses_job
from qwen_edge.server.api.openapi import make_openapi
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.metrics import CONTENT_TYPE, Metrics
from qwen_edge.server.model_registry import ModelRegistry, ServedModel
from qwen_edge.server.refusals import HttpRefusal, error_body, to_refusal
from qwen_edge.server.response_store import ResponseStore
from qwen_edge.server.settings import ServerSettings
from qwen_edge.server.starting import Starting

_LOGGER = logging.getLogger(__name__)
PAGE_FOLDER = Path(__file__).parent / "page"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


class Server:
    """Everything that requests of one server share.

    Args:
        registry: The packages.
        settings: How answers are made.
        limits: Of requests.
        loads_first: Whether the first package is loaded at the start; else each when it is
            first asked for.

    State:
        `starting` says whether it can answer. Made anew for every run.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        settings: ServerSettings,
        limits: ServerLimits,
        *,
        loads_first: bool = True,
    ) -> None:
        self.registry = registry
        self.settings = settings
        self.limits = limits
        self.starting = Starting()
        self.starting.is_loading = loads_first
        self.loaded = asyncio.Event()
        """Set when the first package is loaded, or could not be."""
        self._loads_first = loads_first
        self.admission = Admission(settings.parallel, settings.queue)
        self.metrics = Metrics(self._read_gauges)
        self._store = ResponseStore()
        self._created = int(time.time())

    def make_app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=self._routes(),
            lifespan=self._run,
            exception_handlers={
                EdgeError: _show_error,
                HttpRefusal: _show_error,
                HTTPException: _show_error,
            },
        )

    async def stop(self) -> None:
        """Take no more requests, and end what is being answered."""
        self.starting.is_stopping = True
        await self.registry.close()

    @asynccontextmanager
    async def _run(self, app: Starlette) -> AsyncIterator[None]:
        """Load, and unload at the end; nothing waits for it but answers."""
        del app
        tasks = [asyncio.create_task(self.registry.sweep())]
        if self._loads_first:
            tasks.append(asyncio.create_task(self._load_first()))
        else:
            self.loaded.set()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await self.registry.close()

    async def _load_first(self) -> None:
        entry = next(iter(self.registry.models.values()))
        try:
            await self.registry.load(entry)
        except Exception as error:
            self.starting.failure = error
        finally:
            self.starting.is_loading = False
            self.loaded.set()

    def _routes(self) -> list[BaseRoute]:
        routes: list[BaseRoute] = [
            Route("/health", self._health, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/v1/responses/{id}", self._response, methods=["GET"]),
            Route("/v1/responses/{id}", self._forget_response, methods=["DELETE"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            Route("/docs", self._docs, methods=["GET"]),
        ]
        for path, read_job in (
            ("/v1/chat/completions", read_chat_job),
            ("/v1/completions", read_completion_job),
            ("/v1/responses", partial(read_responses_job, store=self._store)),
        ):
            endpoint = AnswerEndpoint(
                read_job,
                registry=self.registry,
                admission=self.admission,
                settings=self.settings,
                limits=self.limits,
                starting=self.starting,
                metrics=self.metrics,
            )
            routes.append(Route(path, endpoint, methods=["POST"]))
        if self.settings.has_metrics:
            routes.append(Route("/metrics", self._write_metrics, methods=["GET"]))
        return routes + list(_page_routes())

    async def _health(self, request: Request) -> Response:
        del request
        status, body = self.starting.describe()
        headers = {"Retry-After": "2"} if body["status"] == "loading" else None
        return JSONResponse(body, status, headers=headers)

    async def _models(self, request: Request) -> Response:
        del request
        data = [self._describe(entry) for entry in self.registry.models.values()]
        return JSONResponse({"object": "list", "data": data})

    async def _model(self, request: Request) -> Response:
        entry = self.registry.find(request.path_params["name"])
        return JSONResponse(self._describe(entry))

    async def _response(self, request: Request) -> Response:
        return JSONResponse(self._store.find(request.path_params["id"]).response)

    async def _forget_response(self, request: Request) -> Response:
        response_id = request.path_params["id"]
        self._store.remove(response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    def _describe(self, entry: ServedModel) -> dict[str, object]:
        model = entry.model
        choice = None if model is None else model.device_choice
        limits = [device.max_context_tokens for device in entry.manifest.devices]
        context = max(limits, default=entry.manifest.model.max_context_tokens)
        return {
            "id": entry.name,
            "object": "model",
            "created": self._created,
            "owned_by": "qwen-edge",
            "qwen_edge": {
                "state": entry.state,
                "context_tokens": context if model is None else model.max_context_tokens,
                "thinking": entry.manifest.chat.thinking,
                "device": None if choice is None else choice.value.device,
            },
        }

    async def _openapi(self, request: Request) -> Response:
        del request
        return JSONResponse(make_openapi(has_metrics=self.settings.has_metrics))

    async def _docs(self, request: Request) -> Response:
        del request
        page = write_docs_page(make_openapi(has_metrics=self.settings.has_metrics))
        return Response(page, media_type="text/html", headers=_page_headers())

    async def _write_metrics(self, request: Request) -> Response:
        del request
        return Response(self.metrics.write(), media_type=CONTENT_TYPE)

    def _read_gauges(self) -> Iterable[tuple[str, str, float]]:
        yield "answers_wanted", "Answers in the making or waiting", self.admission.num_taken
        yield "answer_places", "Answers that may be wanted at a time", self.admission.num_places
        yield "models_loaded", "Models in memory", len(self.registry.loaded)
        running = waiting = used = 0
        for entry in self.registry.loaded:
            if entry.model is not None:
                statistics = entry.model.statistics()
                running += statistics.num_running
                waiting += statistics.num_waiting
                used += statistics.num_blocks_used
        yield "answers_running", "Answers in the making", running
        yield "answers_waiting", "Answers that wait for their turn", waiting
        yield "cache_blocks_used", "Blocks of the cache that answers hold", used


async def _show_error(request: Request, error: Exception) -> Response:
    """Answer with an error of ours, or of a path or method that is none."""
    if isinstance(error, HTTPException):
        error = _refuse_path(request, error)
    refusal = to_refusal(error)
    headers = {name.decode(): value.decode() for name, value in refusal.headers}
    return JSONResponse(error_body(refusal), refusal.status, headers=headers)


def _refuse_path(request: Request, error: HTTPException) -> HttpRefusal:
    """Return the refusal of a path that is none, or of a method it does not have."""
    path = f"{request.url.path!r:.100}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return HttpRefusal(
            405,
            f"{path} does not take {request.method!r:.20}.",
            f"use {allowed}",
            code="method_not_allowed",
            headers=((b"allow", allowed.encode("ascii")),),
        )
    return HttpRefusal(404, f"There is nothing at {path}.", "see /docs", code="not_found")


def _page_headers() -> dict[str, str]:
    return {"Content-Security-Policy": _PAGE_POLICY}


def _page_routes() -> Iterable[Route]:
    """Yield a route for each file of the chat page."""
    for path in sorted(PAGE_FOLDER.glob("*.*")):
        media_type = _PAGE_TYPES.get(path.suffix)
        if media_type is None:
            continue

        async def send_file(
            request: Request, path: Path = path, media_type: str = media_type
        ) -> Response:
            del request
            return FileResponse(path, media_type=media_type, headers=_page_headers())

        name = "/" if path.name == "index.html" else f"/{path.name}"
        yield Route(name, send_file, methods=["GET"])
