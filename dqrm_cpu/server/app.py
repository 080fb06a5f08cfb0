"""The routes of the server, as an ASGI application: limits first, then the model, errors as JSON."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from dqrm_cpu import __version__
from dqrm_cpu.base.precision import FP32
from dqrm_cpu.errors import DqrmError
from dqrm_cpu.server.answers import Answer, AnswerError, Receive, Route
from dqrm_cpu.server.browser_files import BrowserFiles
from dqrm_cpu.server.inference_protocol import InferRequest, RequestError, metadata
from dqrm_cpu.server.monitoring import Monitoring
from dqrm_cpu.server.scoring_queue import PreparedRows, QueueFullError, ScoringQueue, ServerDefectError
from dqrm_cpu.server.served_model import ServedModel
from dqrm_cpu.serving import Model, UnusableRowError
from dqrm_cpu.serving.model import probabilities

Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_LOG = logging.getLogger("dqrm_cpu.server")
_PREDICT = "/predict"
_INFERENCE_HEADER = b"inference-header-content-length"


@dataclass(frozen=True)
class ServerSettings:
    """The model that a server opens, and its limits for requests."""

    model: Path
    name: str = "model"
    most_body_bytes: int = 8 << 20
    most_rows: int = 4096
    most_waiting_rows: int = 1 << 16
    timeout_s: float = 5.0
    products: str = FP32
    reload_every_s: float = 1.0
    onnx: Path | None = None  # the model as ONNX, for browsers that score by themselves
    web_runtime: Path | None = None  # the folder of the files with which they do


class _Rows(msgspec.Struct):
    rows: list[dict[str, Any]]


class Application:
    """The server's ASGI application. It opens the model when it starts."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._monitoring = Monitoring()
        self._served: ServedModel | None = None
        self._queue: ScoringQueue | None = None
        self._routes = dict(_ROUTES)
        if settings.onnx is not None and settings.web_runtime is not None:
            self._routes |= BrowserFiles(settings.model, settings.onnx, settings.web_runtime).routes()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request, or lives through the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self._open():
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        except DqrmError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        settings = self._settings
        self._served = await asyncio.to_thread(
            ServedModel, settings.model, self._monitoring.replaced, settings.products
        )
        self._queue = ScoringQueue(self._served.current, self._settings.most_waiting_rows, self._monitoring.scored)
        following = asyncio.create_task(self._served.follow(self._settings.reload_every_s))
        try:
            yield
        finally:
            following.cancel()
            await asyncio.to_thread(self._queue.close)

    async def _answer(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        began, route = time.perf_counter(), self._route(scope["path"])
        try:
            answer = await self._answered(scope, route, receive)
        except AnswerError as error:
            answer = error.answer
        except Exception as error:
            _LOG.exception("a defect of the server")
            answer = AnswerError(HTTPStatus.INTERNAL_SERVER_ERROR, f"a defect of the server: {type(error)}").answer
        self._monitoring.answered(route or "none", int(answer.status), time.perf_counter() - began)
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", str(len(answer.body)).encode()),
            (b"x-content-type-options", b"nosniff"),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": int(answer.status), "headers": headers})
        await send({"type": "http.response.body", "body": answer.body if scope["method"] != "HEAD" else b""})

    def _route(self, path: str) -> str:
        """Returns the route of a path, without the name of the model; empty where there is none."""
        path = path.rstrip("/") or "/"
        of_model = f"/v2/models/{self._settings.name}"
        if path == of_model or path.startswith(f"{of_model}/"):
            path = "/v2/models/*" + path.removeprefix(of_model).removeprefix("/versions/1")
        return path if path in self._routes else ""

    async def _answered(self, scope: Mapping[str, Any], route: str, receive: Receive) -> Answer:
        if not route:
            raise AnswerError(
                HTTPStatus.NOT_FOUND, f"there is no {scope['path'][:80]}; the model is called {self._settings.name}"
            )
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        allowed, answer = self._routes[route]
        if method != allowed:
            raise AnswerError(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{route} takes {allowed}", ((b"allow", allowed.encode()),)
            )
        if self._served is None or self._queue is None:
            raise AnswerError(HTTPStatus.SERVICE_UNAVAILABLE, "the model is not open yet")
        return await answer(self, dict(scope["headers"]), receive)

    async def _page(self, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        page = files("dqrm_cpu.server").joinpath("page.html").read_text()
        has_files = self._settings.onnx is not None
        scripts = b"'unsafe-inline' 'self' 'wasm-unsafe-eval'" if has_files else b"'unsafe-inline'"
        policy = b"default-src 'none'; style-src 'unsafe-inline'; script-src %s; connect-src 'self'" % scripts
        name = json.dumps(self._settings.name).replace("<", "\\u003c")
        content = page.replace('"MODEL_NAME"', name).replace('"SCORES_HERE"', json.dumps(has_files)).encode()
        return Answer(HTTPStatus.OK, content, b"text/html; charset=utf-8", ((b"content-security-policy", policy),))

    async def _metrics(self, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        content, kind = self._monitoring.text()
        return Answer(HTTPStatus.OK, content, kind)

    async def _healthy(self, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        return _document({"live": True, "ready": True})

    async def _server(self, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        extensions = ["binary_tensor_data"]
        return _document({"name": "dqrm-cpu", "version": __version__, "extensions": extensions})

    async def _about_model(self, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        return _document(metadata(self._settings.name, self._model.description))

    async def _predict(self, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        body = await self._body(headers, receive)
        try:
            rows = msgspec.json.decode(body, type=_Rows).rows
        except (msgspec.DecodeError, RecursionError) as error:
            why = f'the body must be {{"rows": [{{"column": value, ...}}, ...]}}: {str(error)[:200]}'
            raise AnswerError(HTTPStatus.BAD_REQUEST, why) from None
        logits = await self._logits(len(rows), lambda model: PreparedRows(*model.prepare(rows)))
        return _document({"probabilities": probabilities(logits).tolist()})

    async def _infer(self, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        body, length = await self._body(headers, receive), headers.get(_INFERENCE_HEADER)
        if length is not None and not (length.isdigit() and len(length) < 12):
            raise AnswerError(HTTPStatus.BAD_REQUEST, "Inference-Header-Content-Length is no length")
        try:
            request = InferRequest(body, None if length is None else int(length))
        except RequestError as error:
            raise AnswerError(HTTPStatus.BAD_REQUEST, str(error)) from None
        logits = await self._logits(request.num_rows, request.prepare)
        content, head = request.answer(self._settings.name, probabilities(logits))
        if head is None:
            return Answer(HTTPStatus.OK, content)
        place = ((_INFERENCE_HEADER, str(head).encode()),)
        return Answer(HTTPStatus.OK, content, b"application/octet-stream", place)

    @property
    def _model(self) -> Model:
        assert self._served is not None
        return self._served.model

    async def _logits(self, num_rows: int, prepare: Callable[[Model], PreparedRows]) -> Any:
        assert self._queue is not None
        most = self._settings.most_rows
        if num_rows > most:
            raise AnswerError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{num_rows:,} rows; a request has {most:,} at most")
        retry = ((b"retry-after", b"1"),)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._queue.logits(num_rows, prepare)
        except UnusableRowError as error:
            raise AnswerError(HTTPStatus.BAD_REQUEST, str(error)) from None
        except QueueFullError as error:
            raise AnswerError(HTTPStatus.SERVICE_UNAVAILABLE, str(error), retry) from None
        except TimeoutError:
            raise AnswerError(HTTPStatus.SERVICE_UNAVAILABLE, "scoring took too long; try again", retry) from None
        except ServerDefectError as error:
            _LOG.error("a defect of the server: %s", error)
            raise AnswerError(HTTPStatus.INTERNAL_SERVER_ERROR, f"a defect of the server: {error}") from None
        except DqrmError as error:
            _LOG.error("%s", error)
            raise AnswerError(HTTPStatus.INTERNAL_SERVER_ERROR, "the model cannot score") from None

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Reads the body of a request, within its limits of size and time."""
        most = self._settings.most_body_bytes
        too_large = AnswerError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has {most:,} bytes at most")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > most):
            raise too_large
        if b"content-encoding" in headers:
            raise AnswerError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the body as it is, not compressed")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise AnswerError(HTTPStatus.BAD_REQUEST, "the connection ended within the body")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise AnswerError(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time") from None


def _document(document: Mapping[str, Any]) -> Answer:
    return Answer(HTTPStatus.OK, msgspec.json.encode(document))


_ROUTES: Mapping[str, Route] = {
    "/": ("GET", Application._page),
    "/metrics": ("GET", Application._metrics),
    "/v2": ("GET", Application._server),
    "/v2/health/live": ("GET", Application._healthy),
    "/v2/health/ready": ("GET", Application._healthy),
    "/v2/models/*": ("GET", Application._about_model),
    "/v2/models/*/ready": ("GET", Application._healthy),
    "/v2/models/*/infer": ("POST", Application._infer),
    _PREDICT: ("POST", Application._predict),
}
