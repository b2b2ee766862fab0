"""The addresses of `siglip-jax serve`, as a Starlette application.

    GET  /similar?item=17&k=10&min_score=0.5&where=colour=red   neighbours of an item
    POST /search?k=10&where=...   neighbours of a picture (its bytes, or a form) or a text (JSON, or a form)
    GET  /items/17    its title and attributes        GET /images/17    its picture
    GET  /filters     what filters and groups by      GET /openapi.json this list for machines
    GET  /health      the process runs                GET /ready        it answers, and from which generation
    GET  /metrics     Prometheus                      GET /             a page for people
    GET  /compare     active and candidate on live queries
    POST /reload      read the index again            POST /switch      the candidate answers
    POST /rollback    what answered before answers again

An error is {"error": one line} with a status: 400 what was asked for is wrong, 401 no token, 403 not from there, 404
no such item, 408 the body came too slowly, 409 the newest index is broken, 413 the body is too large, 415 it is no
picture, 503 with Retry-After: too many queries wait, 504 the answer took too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio.to_thread
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from siglip_jax.errors import UserError
from tools.serving.access import TokenRequired, check_may_change
from tools.serving.encode_queue import Busy
from tools.serving.generations import Generations, Standing
from tools.serving.live_comparison import LiveComparison
from tools.serving.openapi import DESCRIPTION
from tools.serving.read_request import body_of, json_of, query_of, selection_of
from tools.serving.served import Generation, Query
from tools.serving.server_metrics import ServerMetrics

_log = logging.getLogger(__name__)
PAGE = pathlib.Path(__file__).parent / "page"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


def make_app(
    generations: Generations,
    *,
    hosts: list[str] | None = None,
    token: str | None = None,
    timeout: float = 10.0,
    compare: float = 0.0,
    reload: float = 0.0,
) -> Starlette:
    """The application. Where `state.leaving` is set, it answers that it is not ready and keeps no connection.

    Args:
      hosts: names by which it may be asked; None for any. A server on this machine alone takes its own names only, so
        that no web page can reach it under another.
      token: that every request but those of `access.OPEN` must have.
      timeout: seconds that an answer may take.
      compare: share of the queries that the candidate answers as well.
      reload: seconds between two looks for a new generation; 0 for none.
    """
    handlers = _Handlers(generations, token=token is not None, timeout=timeout, compare=compare)
    routes = [
        Route("/", _page_file("index.html")),
        *(Route(f"/{name}", _page_file(name)) for name in ("page.js", "page.css")),
        Route("/similar", handlers.counted(handlers.similar)),
        Route("/search", handlers.counted(handlers.search), methods=["POST"]),
        Route("/items/{item:path}", handlers.counted(handlers.item)),
        Route("/images/{item:path}", handlers.counted(handlers.image)),
        *(Route(f"/{each.__name__}", handlers.counted(each)) for each in (handlers.filters, handlers.compare)),
        *(
            Route(f"/{each.__name__}", handlers.counted(each), methods=["POST"])
            for each in (handlers.reload, handlers.switch, handlers.rollback)
        ),
        Route("/health", handlers.health),
        Route("/ready", handlers.counted(handlers.ready)),
        Route("/metrics", handlers.metrics),
        Route("/openapi.json", handlers.openapi),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else []
    middleware += [Middleware(TokenRequired, token=token)] if token is not None else []

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(generations, reload)) if reload > 0 else None
        yield
        if watching is not None:
            watching.cancel()
        await handlers.comparison.stop()

    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _told}, lifespan=lifespan)
    app.state.leaving = False
    return app


async def _watch(generations: Generations, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await anyio.to_thread.run_sync(generations.poll, abandon_on_cancel=True)
        except Exception:  # such as a disk that is away for a while: the next look may succeed
            _log.exception("looking for a new generation")


class _Handlers:
    def __init__(self, generations: Generations, *, token: bool, timeout: float, compare: float):
        self._generations, self._token, self._timeout = generations, token, timeout
        self._metrics = ServerMetrics()
        self.comparison = LiveComparison(share=compare, seconds=timeout, observe=self._metrics.compared)

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
            except ClientDisconnect:  # nobody is there to be told
                response = await _told(request, HTTPException(400, "the client went away in the middle of the body"))
            except Busy:
                response = await _told(request, HTTPException(503, "too many queries wait", {"Retry-After": "1"}))
            self._metrics.requests.labels(address, response.status_code).inc()
            self._metrics.seconds.labels(address).observe(time.perf_counter() - began)
            response.headers.update(_HEADERS)
            if request.app.state.leaving:
                response.headers["Connection"] = "close"
            return response

        return respond

    async def similar(self, request: Request) -> Response:
        return await self._answer(request, Query("item", request.query_params.get("item", "")))

    async def search(self, request: Request) -> Response:
        selection_of(request)  # wrong ones are told before the body is read
        return await self._answer(request, await query_of(request))

    async def _answer(self, request: Request, query: Query) -> Response:
        """From one generation, which is taken here."""
        standing = self._generations.standing
        selection, side = selection_of(request), request.query_params.get("side", "active")
        generation = _side(standing, side)
        if query.kind == "item" and query.value not in generation.answers.index:
            raise _no_item(query.value)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                found = await generation.answer(query, selection)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {self._timeout:g} seconds") from None
        except UserError as error:
            unreadable = query.kind == "image" and generation.able["image"]
            raise HTTPException(415 if unreadable else 400, str(error)) from error
        if side == "active":
            self.comparison.take(standing, query, selection, found, time.perf_counter() - began)
        return JSONResponse(found)

    async def item(self, request: Request) -> Response:
        item, answers = request.path_params["item"], self._generations.standing.active.answers
        if item not in answers.index:
            raise _no_item(item)
        title, attributes = answers.known.get(item, ("", {}))
        return JSONResponse({"id": item, "title": title, "attributes": attributes})

    async def image(self, request: Request) -> Response:
        pictures = self._generations.standing.active.pictures
        found = None if pictures is None else await run_in_threadpool(pictures.read, request.path_params["item"])
        if found is None:
            raise HTTPException(404, "no picture of this item")
        return Response(found[0], media_type=found[1], headers={"Cache-Control": "max-age=3600"})

    async def filters(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._generations.standing.active.filters))

    async def compare(self, request: Request) -> Response:
        try:
            return JSONResponse(self.comparison.described(self._generations.standing))
        except UserError as error:
            raise HTTPException(404, str(error)) from error

    async def reload(self, request: Request) -> Response:
        check_may_change(request, token=self._token)
        body = await body_of(request)
        folder = json_of(body).get("index") if body else None
        if not (folder is None or isinstance(folder, str)):
            raise HTTPException(400, 'expected {"index": "name of a folder beside the one that is served"}, or nothing')
        for name in self._generations.sources if folder is None else ("index",):
            try:
                await run_in_threadpool(self._generations.reload, name, folder=folder)
            except UserError as error:
                raise HTTPException(409, str(error)) from error
        return self._standing()

    async def switch(self, request: Request) -> Response:
        check_may_change(request, token=self._token)
        await run_in_threadpool(self._generations.switch)
        return self._standing()

    async def rollback(self, request: Request) -> Response:
        check_may_change(request, token=self._token)
        await run_in_threadpool(self._generations.rollback)
        return self._standing()

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        return self._standing(status=503 if request.app.state.leaving else 200)

    def _standing(self, *, status: int = 200) -> Response:
        standing, broken = self._generations.standing, dict(self._generations.broken)
        told: dict[str, Any] = {"status": "ok" if status == 200 else "leaving", **standing.active.described()}
        if standing.candidate is not None:
            told["candidate"] = standing.candidate.described()
        if standing.previous is not None:
            told["previous"] = standing.previous.name
        return JSONResponse({**told, **({"broken": broken} if broken else {})}, status_code=status)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(self._generations), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(DESCRIPTION)


def _side(standing: Standing, side: str) -> Generation:
    if side not in ("active", "candidate"):
        raise HTTPException(400, f"side={side[:60]!r}; expected active or candidate")
    if side == "active":
        return standing.active
    if standing.candidate is None:
        raise HTTPException(400, "no candidate; start the server with --candidate")
    return standing.candidate


def _no_item(item: str) -> HTTPException:
    return HTTPException(404, f"item {item[:100]!r} is not in the index")


def _page_file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return FileResponse(PAGE / name, headers=_HEADERS)

    return send


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    line = " ".join(str(error.detail).split())
    return JSONResponse({"error": line}, status_code=error.status_code, headers=error.headers)
