"""The HTTP application: endpoints, limits, errors, metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from os import PathLike
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ncf.serve import schemas, telemetry
from ncf.serve.model_reload import ModelFolder, Served
from ncf.utils.version import __version__

log = logging.getLogger("ncf.serve")
log_of_requests = logging.getLogger("ncf.serve.requests")

_JSON = re.compile(r"application/([^;]*\+)?json\s*(;|$)", re.IGNORECASE)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_SECURITY = {
    "content-security-policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {
        "model": schemas.Problem,
        "description": HTTPStatus(code).phrase,
        "content": {"application/problem+json": {}},
    }
    for code in (400, 401, 404, 413, 422, 500, 503)
}


@dataclass(frozen=True)
class Settings:
    """Settings of the service.

    Args:
        folder: a folder that `ncf.Recommender.save` wrote.
        threads: requests computed at the same time.
        queue: requests that may wait for a thread; the next one gets 503.
        interval: seconds between two looks for a new model.
        api_key: required of every call under ``/v1``, as ``Authorization: Bearer KEY``; none by default.
        shared: a folder for the rows that the workers of one service share; by default each has its own.
    """

    folder: str | PathLike[str]
    threads: int = 2
    queue: int = 128
    interval: float = 2.0
    api_key: str | None = None
    shared: str | PathLike[str] | None = None


def create_app(settings: Settings) -> FastAPI:
    """Build the application; the model is loaded here, so that a bad folder fails at once.

    Args:
        settings: the folder and the limits.

    Returns:
        An ASGI application, for uvicorn or another server.

    Raises:
        OSError: if the folder holds no model.
        ValueError: if the model in it is damaged.
    """
    models = ModelFolder(settings.folder, settings.interval, settings.shared)
    threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="ncf-serve")
    waiting = 0

    async def compute(answer: Callable[..., BaseModel], *arguments: Any) -> Response:
        """Answer off the event loop; past the bound of the queue with 503."""
        nonlocal waiting
        if waiting >= settings.threads + settings.queue:
            telemetry.REJECTED.inc()
            raise HTTPException(503, "the queue is full: try again", {"Retry-After": "1"})
        waiting += 1
        telemetry.IN_FLIGHT.set(waiting)
        try:
            content = await asyncio.get_running_loop().run_in_executor(
                threads, partial(_json, answer, models.current, *arguments)
            )
        except ValueError as error:  # an id that the model does not have, or of another kind
            raise HTTPException(404, str(error)) from error
        except TypeError as error:  # a question that this model does not answer
            raise HTTPException(422, str(error)) from error
        finally:
            waiting -= 1
            telemetry.IN_FLIGHT.set(waiting)
        return Response(content, media_type="application/json")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        models.start()
        yield
        models.stop()
        threads.shutdown()

    async def authorized(request: HttpRequest) -> None:
        key = settings.api_key
        given = request.headers.get("authorization", "")
        if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise HTTPException(
                401, "give the API key: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )

    app = FastAPI(
        title="ncf",
        version=__version__,
        summary="Ranked lists from a saved model.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.models = models
    v1: dict[str, Any] = {
        "dependencies": [Depends(authorized)],
        "responses": _PROBLEMS,
        "response_model_exclude_none": True,
    }
    app.router.route_class = _BodyRoute

    @app.post("/v1/recommend", response_model=schemas.RecommendResponse | schemas.BatchResponse, **v1)
    async def recommend(body: schemas.RecommendRequest) -> Response:
        """The best items of a user, of several users, or for a history."""
        return await compute(_recommend, body)

    @app.post("/v1/similar", response_model=schemas.SimilarResponse, **v1)
    async def similar(body: schemas.ItemsRequest) -> Response:
        """The neighbours of items."""
        return await compute(_similar, body)

    @app.post("/v1/score", response_model=schemas.ScoreResponse, **v1)
    async def score(body: schemas.ScoreRequest) -> Response:
        """The scores of items for a user."""
        return await compute(_score, body)

    @app.post("/v1/explain", response_model=schemas.ExplainResponse, **v1)
    async def explain(body: schemas.ExplainRequest) -> Response:
        """The user's interactions that raise an item's score most."""
        return await compute(_explain, body)

    @app.post("/v1/history", response_model=schemas.HistoryResponse, **v1)
    async def history(body: schemas.UserRequest) -> Response:
        """The items that a user has interacted with."""
        return await compute(_history, body)

    app.router.route_class = APIRoute

    @app.get("/v1/items", response_model=schemas.ItemsResponse, **v1)
    async def items(
        query: str = Query("", max_length=100), limit: int = Query(20, ge=1, le=schemas.MAX_K)
    ) -> Response:
        """Items whose title, or id, contains the query; the most popular first."""
        return await compute(_items, query, limit)

    @app.get("/v1/model", **v1)
    async def model() -> schemas.ModelResponse:
        """The model that answers, and how good it was when it was saved."""
        return _model(models.current)

    @app.get("/livez", tags=["operation"])
    async def livez() -> dict[str, str]:
        """Answer as long as the process runs."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> dict[str, str]:
        """Answer as soon as a model is loaded, with the model's fingerprint."""
        state = {"status": "ready", "model": models.current.fingerprint}
        return state if models.failed is None else {**state, "failed_reload": models.failed}

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Counters in Prometheus' format."""
        return Response(telemetry.exposition(), media_type="text/plain; version=0.0.4")

    for path, (name, kind) in _PAGE.items():
        content = files("ncf.serve").joinpath("page", name).read_bytes()
        answer = partial(
            Response, content, media_type=kind, headers={**_SECURITY, "cache-control": "no-cache"}
        )
        app.add_api_route(path, _page(answer), include_in_schema=False)

    app.add_exception_handler(StarletteHTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_middleware(_Edge)
    return app


def from_environment() -> FastAPI:
    """Build the application of a worker process, whose settings stand in the environment."""
    telemetry.log_to_stderr()
    settings = {
        name: os.environ.get(f"NCF_SERVE_{name.upper()}") for name in ("threads", "queue", "interval")
    }
    given = {name: (float if name == "interval" else int)(value) for name, value in settings.items() if value}
    return create_app(
        Settings(
            os.environ["NCF_SERVE_FOLDER"],
            api_key=os.environ.get("NCF_SERVE_API_KEY"),
            shared=os.environ.get("NCF_SERVE_SHARED"),
            **given,  # type: ignore[arg-type]
        )
    )


class _BodyRoute(APIRoute):
    """A route whose one argument is the body, which pydantic reads from its bytes.

    FastAPI's own way, for any arguments, takes as long as a list of ten items.
    """

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """See `fastapi.routing.APIRoute.get_route_handler`."""
        assert self.body_field is not None
        schema: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def handle(request: HttpRequest) -> Response:
            for required in self.dependencies:
                await required.dependency(request)  # type: ignore[misc]
            try:
                content = await request.body()
                if not _JSON.match(request.headers.get("content-type", "")):
                    raise HTTPException(422, "the content-type is not application/json")
                body = schema.model_validate_json(content)
            except ClientDisconnect as error:  # nobody is there to read the answer; the log has its code
                raise HTTPException(400, "the connection was closed before the body's end") from error
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                raise RequestValidationError([{**first, "loc": ("body", *first["loc"])}]) from error
            answer: Response = await self.endpoint(body)
            return answer

        return handle


def _page(answer: Callable[[], Response]) -> Callable[[], Any]:
    async def page() -> Response:
        return answer()

    return page


def _json(answer: Callable[..., BaseModel], *arguments: Any) -> bytes:
    """Work an answer out and write it, without a second validation by FastAPI."""
    return answer(*arguments).model_dump_json(exclude_none=True).encode()


def _titles(served: Served, wanted: bool, items: list[Any]) -> list[str] | None:
    return (
        [str(title) for title in served.recommender.titles(items)] if wanted and served.has_titles else None
    )


def _recommend(
    served: Served, body: schemas.RecommendRequest
) -> schemas.RecommendResponse | schemas.BatchResponse:
    """Answer one user, several users, or a history."""
    users = body.users if body.user is None else [body.user]
    asked: dict[str, Any] = {"k": body.k, "items": body.items, "exclude": body.exclude}
    if body.history is not None:
        asked["history"] = body.history
    else:
        popular = body.unknown == "popular" and served.has_popularity
        asked |= {"users": users, "unknown": "popular" if popular else "skip"}
    found = served.recommender.recommend(exclude_seen=body.exclude_seen, **asked)
    elements: list[dict[str, Any]] = []
    for row, source in enumerate(found.sources):
        telemetry.USERS.labels(source).inc()
        if users is not None and source in ("popularity", "skipped"):
            telemetry.UNKNOWN.inc()
        if source == "skipped":
            elements.append({"status": 404, "detail": "the model has no such user"})
            continue
        items = found.items[row]
        scores = found.scores[row, : len(items)].tolist()
        titles = _titles(served, body.titles, items)
        elements.append({"status": 200, "items": items, "scores": scores, "source": source, "titles": titles})
    if body.users is not None:
        results = [schemas.BatchElement(user=u, **e) for u, e in zip(body.users, elements, strict=True)]
        return schemas.BatchResponse(results=results, model=served.fingerprint)
    (element,) = elements
    if element.pop("status") == 404:
        raise HTTPException(404, element["detail"])
    return schemas.RecommendResponse(model=served.fingerprint, **element)


def _similar(served: Served, body: schemas.ItemsRequest) -> schemas.SimilarResponse:
    found = served.recommender.similar(body.items, body.k)
    results = [
        schemas.RankedList(
            items=items, scores=scores[: len(items)], titles=_titles(served, body.titles, items)
        )
        for items, scores in zip(found.items, found.scores.tolist(), strict=True)
    ]
    return schemas.SimilarResponse(results=results, model=served.fingerprint)


def _score(served: Served, body: schemas.ScoreRequest) -> schemas.ScoreResponse:
    scores = served.recommender.score([body.user], body.items)[0].tolist()
    return schemas.ScoreResponse(scores=scores, model=served.fingerprint)


def _explain(served: Served, body: schemas.ExplainRequest) -> schemas.ExplainResponse:
    (items,), found = served.recommender.explain(body.user, body.item, body.k)
    titles = _titles(served, body.titles, items)
    weights = found[0, : len(items)].tolist()
    return schemas.ExplainResponse(items=items, weights=weights, titles=titles, model=served.fingerprint)


def _history(served: Served, body: schemas.UserRequest) -> schemas.HistoryResponse:
    items = served.recommender.history(body.user)
    titles = _titles(served, body.titles, items)
    return schemas.HistoryResponse(items=items, titles=titles, model=served.fingerprint)


def _items(served: Served, query: str, limit: int) -> schemas.ItemsResponse:
    items, titles = served.find(query, limit)
    return schemas.ItemsResponse(items=items, titles=titles, model=served.fingerprint)


def _model(served: Served) -> schemas.ModelResponse:
    recommender = served.recommender
    return schemas.ModelResponse(
        model=served.fingerprint,
        name=type(recommender.model).__name__,
        num_users=recommender.num_users,
        num_items=recommender.num_items,
        titles=served.has_titles,
        seen=served.has_seen,
        whole_numbers=served.whole_numbers,
        loaded_at=served.loaded_at,
    )


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Describe an error as RFC 9457 does."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


async def _http_problem(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return problem(error.status_code, error.detail, dict(error.headers or {}))


async def _validation_problem(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][:4])
    status = 400 if first["type"] == "json_invalid" else 422
    return problem(status, f"{place}: {first['msg']}")


class _Edge:
    """The outermost layer: request id, limit of the body, time, log, and an answer to an unexpected error."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        status, started, received = 500, False, 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > schemas.MAX_BODY:
                raise HTTPException(413, f"a body has at most {schemas.MAX_BODY} bytes")
            return message

        async def answered(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            length = headers.get("content-length", "0")
            if length.isdigit() and int(length) > schemas.MAX_BODY:
                await problem(413, f"a body has at most {schemas.MAX_BODY} bytes")(scope, receive, answered)
            else:
                await self.app(scope, limited, answered)
        except Exception:
            log.exception("a request failed: %s", request_id, extra={"fields": {"request_id": request_id}})
            if not started:
                await problem(500, "the service failed; the log has the request id")(scope, receive, answered)
        finally:
            seconds = time.perf_counter() - began
            route = scope.get("route")
            path = getattr(route, "path", "other")
            telemetry.SECONDS.labels(path, str(status)).observe(seconds)
            fields = {"request_id": request_id, "method": scope["method"], "path": path, "status": status}
            log_of_requests.info("request", extra={"fields": {**fields, "ms": round(1000 * seconds, 3)}})
