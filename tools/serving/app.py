"""The addresses of `siglip-jax serve`, as a Starlette application.

    GET  /similar?item=17&k=10&min_score=0.5&where=colour=red   neighbours of an item
    POST /search?k=10&where=...   neighbours of a picture (its bytes, image/*) or a text (JSON {"text": ...})
    GET  /items/17    its title and attributes        GET /images/17    its picture
    GET  /filters     attributes with few values      GET /openapi.json this list for machines
    GET  /health      the process runs                GET /ready        it answers, and from which generation
    GET  /metrics     Prometheus                      GET /             a page for people

An error is {"error": one line} with a status: 400 what was asked for is wrong, 404 no such item, 408 the body came too
slowly, 413 it is too large, 415 it is no picture, 503 with Retry-After: too many queries wait.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from siglip_jax.errors import UserError
from tools.common_flags import filters
from tools.serving.openapi import DESCRIPTION
from tools.serving.served import Busy, Served

PAGE = pathlib.Path(__file__).parent / "page"
MOST_ITEMS = 1000  # of one answer
MAX_BODY_BYTES = 16 * 2**20
BODY_SECONDS = 30.0
MAX_TEXT = 2000  # characters
OTHER_THREADS = 16  # for what needs no encoder
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


def make_app(served: Served, *, hosts: list[str] | None = None) -> Starlette:
    """The application.

    Args:
      hosts: names by which it may be asked; None for any. A server on this machine alone takes its own names only, so
        that no web page can reach it under another.
    """
    handlers = _Handlers(served)
    routes = [
        Route("/", _page_file("index.html")),
        *(Route(f"/{name}", _page_file(name)) for name in ("page.js", "page.css")),
        Route("/similar", handlers.counted(handlers.similar)),
        Route("/search", handlers.counted(handlers.search), methods=["POST"]),
        Route("/items/{item:path}", handlers.counted(handlers.item)),
        Route("/images/{item:path}", handlers.counted(handlers.image)),
        Route("/filters", handlers.counted(handlers.choices)),
        Route("/health", handlers.health),
        Route("/ready", handlers.ready),
        Route("/metrics", handlers.metrics),
        Route("/openapi.json", handlers.openapi),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else []

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # A query that waits for the encoder holds a thread: the others must not be without any.
        anyio.to_thread.current_default_thread_limiter().total_tokens = served.waiting + OTHER_THREADS
        yield

    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _told}, lifespan=lifespan)


class _Handlers:
    def __init__(self, served: Served):
        self._served = served
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "siglip_jax_requests", "Requests by address and status.", ["address", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "siglip_jax_request_seconds", "From a request to its answer.", ["address"], registry=self._registry
        )
        items = Gauge("siglip_jax_index_items", "Items of the index.", ["generation"], registry=self._registry)
        index = served.answers.index
        items.labels(index.generation).set(len(index))

    def counted(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """With errors as answers, headers and counts."""
        address = handle.__name__

        async def respond(request: Request) -> Response:
            began = time.perf_counter()
            try:
                response = await handle(request)
            except HTTPException as error:
                response = await _told(request, error)
            except UserError as error:
                response = await _told(request, HTTPException(400, str(error)))
            except Busy:
                response = await _told(request, HTTPException(503, "too many queries wait", {"Retry-After": "1"}))
            self._requests.labels(address, response.status_code).inc()
            self._seconds.labels(address).observe(time.perf_counter() - began)
            response.headers.update(_HEADERS)
            return response

        return respond

    async def similar(self, request: Request) -> Response:
        item = request.query_params.get("item", "")
        if item not in self._served.answers.index:
            raise HTTPException(404, f"item {item[:100]!r} is not in the index")
        options = _options(request)
        return _json(await run_in_threadpool(self._served.answers.of_item, item, **options))

    async def search(self, request: Request) -> Response:
        options = _options(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("image/") or kind == "application/octet-stream":
            picture = await _body(request)
            return _json(await run_in_threadpool(self._of_picture, picture, options))
        if kind == "application/json":
            text = _text(await _body(request))
            return _json(await run_in_threadpool(self._of_text, text, options))
        raise HTTPException(415, f"content type {kind[:60]!r}; expected image/*, or application/json with a text")

    def _of_picture(self, picture: bytes, options: dict[str, Any]) -> dict[str, Any]:
        with self._served.encoding() as encoder:
            try:
                query = encoder.image(picture)
            except UserError as error:
                raise HTTPException(415 if encoder.images else 400, str(error)) from error
        return {"query": {"image": f"{len(picture)} bytes"}, **self._served.answers.of_vector(query, **options)}

    def _of_text(self, text: str, options: dict[str, Any]) -> dict[str, Any]:
        with self._served.encoding() as encoder:
            query = encoder.text(text)
        return {"query": {"text": text}, **self._served.answers.of_vector(query, **options)}

    async def item(self, request: Request) -> Response:
        item = request.path_params["item"]
        if item not in self._served.answers.index:
            raise HTTPException(404, f"item {item[:100]!r} is not in the index")
        title, attributes = self._served.answers.known.get(item, ("", {}))
        return _json({"id": item, "title": title, "attributes": attributes})

    async def image(self, request: Request) -> Response:
        pictures = self._served.pictures
        found = None if pictures is None else await run_in_threadpool(pictures.read, request.path_params["item"])
        if found is None:
            raise HTTPException(404, "no picture of this item")
        return Response(found[0], media_type=found[1], headers={"Cache-Control": "max-age=3600"})

    async def choices(self, request: Request) -> Response:
        return _json(await run_in_threadpool(self._served.choices))

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        index, encoder = self._served.answers.index, self._served.encoder
        able = {"image": bool(encoder and encoder.images), "text": bool(encoder and encoder.texts)}
        return _json({"status": "ok", "generation": index.generation, "items": len(index), **able})

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        return _json(DESCRIPTION)


def _page_file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return FileResponse(PAGE / name, headers=_HEADERS)

    return send


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    line = " ".join(str(error.detail).split())
    return JSONResponse({"error": line}, status_code=error.status_code, headers=error.headers)


def _json(value: dict[str, Any]) -> Response:
    return JSONResponse(value)


def _options(request: Request) -> dict[str, Any]:
    """k, min_score and where of the address, checked."""
    values = request.query_params
    try:
        k, least = int(values.get("k", "10")), float(values.get("min_score", "-inf"))
    except ValueError:
        raise HTTPException(400, "k is a whole number, min_score a number") from None
    if not 1 <= k <= MOST_ITEMS or math.isnan(least):
        raise HTTPException(400, f"k={k}, min_score={least}; expected k from 1 to {MOST_ITEMS} and a number")
    return {"k": k, "least": least, "where": filters(values.getlist("where"), what="where")}


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise HTTPException(413, f"more than {MAX_BODY_BYTES} bytes")
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
    return b"".join(parts)


def _text(body: bytes) -> str:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, 'the body is not JSON; expected {"text": "red shoes"}') from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise HTTPException(400, f'expected {{"text": "red shoes"}} of at most {MAX_TEXT} characters')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HTTPException(400, "the text holds half a surrogate pair, which is no character") from None
    return text
