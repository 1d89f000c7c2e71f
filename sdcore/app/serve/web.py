"""The application: who may come in, how errors look, health and metrics."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdcore import __version__
from sdcore.app.serve import book, native, openai_api, web_ui_api
from sdcore.app.serve.asked import Door
from sdcore.app.serve.painter import Busy, Painter, Stopped
from sdcore.errors import (
    FileError,
    MemoryLimitError,
    NonFiniteError,
    SdcoreError,
    UsageError,
)
from sdcore.files.html_page import fill_template

BODY_BYTES = 128 << 20  # of a request, pictures in base64 included
_OPEN = ("/health", "/")  # what tells nothing of anybody; so does the book
_STATUS: tuple[tuple[type[SdcoreError], int], ...] = (
    (Busy, 503),
    (Stopped, 409),
    (UsageError, 400),
    (FileError, 400),
    (MemoryLimitError, 413),
    (NonFiniteError, 500),
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def make_app(door: Door, painter: Painter, token: str | None = None) -> FastAPI:
    """The application.

    Args:
        token: that every request must bring; None serves this computer alone, and refuses what a
            page of another host sends.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await asyncio.to_thread(painter.close)

    app = FastAPI(title="sdcore", version=__version__, lifespan=life)
    app.state.painter = painter
    app.add_middleware(Guard, token=token)

    @app.exception_handler(SdcoreError)
    async def _(_: Request, error: SdcoreError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> JSONResponse:
        told = cast("list[Any]", error.errors())[0]
        where = ".".join(map(str, told["loc"]))
        why = f"{where}: {told['msg']}."
        return error_response(UsageError("The request cannot be read.", why, "See /docs."))

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        what = f"{request.method} {request.url.path:.80} cannot be answered."
        answer = _with_status(UsageError(what, f"{error.detail}.", "See /docs."), error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    page = fill_template(Path(__file__).with_name("page") / "page.html", {})

    @app.get("/", include_in_schema=False)
    async def _() -> HTMLResponse:
        """The page."""
        return HTMLResponse(page)

    @app.get("/health")
    async def _() -> Response:
        """Whether it can paint."""
        said = {"status": "ok" if painter.alive else "dead", "version": __version__}
        return JSONResponse(said, 200 if painter.alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def _() -> str:
        """Figures for Prometheus."""
        return metrics(painter)

    app.include_router(book.router(), prefix="/book")
    app.include_router(native.router(door, painter), prefix="/api")
    app.include_router(openai_api.router(door, painter), prefix="/v1")
    app.include_router(web_ui_api.router(door, painter), prefix="/sdapi/v1")
    return app


def error_response(error: SdcoreError) -> JSONResponse:
    """An error in three parts, where clients of each interface look for it."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    said: dict[str, Any] = {
        "what": error.what,
        "why": error.why,
        "hint": error.hint,
        "message": f"{error.what} {error.why} {error.hint}",
        "type": type(error).__name__,
        "code": None,
        "param": None,
    }
    return JSONResponse({"error": said, "detail": error.what}, status)


def metrics(painter: Painter) -> str:
    """The text that Prometheus reads."""
    lines: list[str] = []

    def add(name: str, kind: str, about: str, values: Mapping[str, float]) -> None:
        lines.append(f"# HELP sdcore_{name} {about}\n# TYPE sdcore_{name} {kind}")
        lines.extend(f"sdcore_{name}{labels} {value:g}" for labels, value in values.items())

    ended = ("done", "failed", "stopped", "refused")
    requests = {f'{{state="{state}"}}': float(painter.counts[state]) for state in ended}
    add("requests_total", "counter", "Requests by how they ended.", requests)
    images = {"": float(painter.counts["images"])}
    add("images_total", "counter", "Pictures that were painted.", images)
    add("painting_seconds_total", "counter", "Time spent painting.", {"": painter.seconds})
    add("waiting", "gauge", "Requests that wait.", {"": float(painter.waiting)})
    busy = {"": float(painter.current is not None)}
    add("painting", "gauge", "1 while a picture is painted.", busy)
    return "\n".join(lines) + "\n"


class Guard:
    """Lets in who brings the token, or without one this computer's own programs and page.

    Without a token a name of another host, or a page from one, is refused: both are ways of a web
    page to reach into this computer. No request is larger than `BODY_BYTES`.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(Headers(scope=scope))
        refused = self._refusal(scope["path"], headers)
        if refused is not None:
            await refused(scope, receive, send)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_BYTES:
                raise _too_large()
            return message

        await self.app(scope, limited, send)

    def _refusal(self, path: str, headers: Mapping[str, str]) -> Response | None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_BYTES:
            return error_response(_too_large())
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            why = f"The page is of {origin:.80}, the server is {host:.80}."
            hint = "Ask from the server's own page, or from a program."
            return _with_status(UsageError("Another page may not ask.", why, hint), 403)
        if self.token is None:
            if urlsplit(f"//{host}").hostname not in _LOOPBACK:
                why = "Without a token this server is for this computer alone."
                hint = "Ask for 127.0.0.1, or start it with --token."
                return _with_status(UsageError("The host is another one.", why, hint), 403)
            return None
        if (
            path in _OPEN
            or path.startswith("/book/")
            or self._brings_token(headers.get("authorization", ""))
        ):
            return None
        why = "It is in the line that the server printed when it began."
        hint = "Send Authorization: Bearer TOKEN, or the token as a password."
        refused = _with_status(UsageError("The token is missing or wrong.", why, hint), 401)
        refused.headers["www-authenticate"] = "Bearer"
        return refused

    def _brings_token(self, sent: str) -> bool:
        kind, _, value = sent.partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        return secrets.compare_digest(value.encode(), (self.token or "").encode())


def _with_status(error: SdcoreError, status: int) -> JSONResponse:
    response = error_response(error)
    response.status_code = status
    return response


def _too_large() -> UsageError:
    return UsageError(
        "The request is too large.",
        f"It may have {BODY_BYTES >> 20} MiB.",
        "Send smaller pictures.",
    )
