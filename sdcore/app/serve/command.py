"""Paint for a page in the browser and for other programs.

sdcore serve
sdcore serve --model sd15.safetensors --models-dir ~/stable-diffusion-webui --port 7860
"""

from __future__ import annotations

import argparse
import secrets
import socket
from types import FrameType
from typing import TYPE_CHECKING

from sdcore.app import command, flags
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST, PORT = "127.0.0.1", 7860
IMAGES = 64  # of one request
GRACE = 2  # seconds for what is painted, once the server is to end
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=prog,
        description="Keep a model in memory and paint for a page in the browser, and for programs "
        "that speak to Stable Diffusion web UI or to OpenAI.",
    )
    add = parser.add_argument
    add("--host", default=HOST, help="address to listen at (default: %(default)s)")
    add("--port", type=int, default=PORT, help="0 is a free one (default: %(default)s)")
    text = "that requests must bring (default: none on this computer, else a drawn one)"
    add("--token", metavar="TEXT", help=text)
    text = "requests that may wait (default: %(default)s)"
    add("--queue", type=int, default=100, metavar="N", help=text)
    text = f"allow more of letters, tokens, steps, images ({IMAGES}), pixels, adapters or memory "
    text += "(default: no)"
    add("--budget", action="append", default=[], metavar="NAME=N", help=text)
    flags.add_model_flags(parser)
    add("--debug", action="store_true", help="show the traceback of an error (default: no)")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    return command.run(serve, make_parser(prog).parse_args, arguments, stopped="stopped")


def serve(options: argparse.Namespace) -> None:
    try:
        import multipart as _multipart  # noqa: F401  # pyright: ignore
        import uvicorn
    except ModuleNotFoundError as error:
        raise UsageError(
            "The server cannot begin.",
            f"It needs {error.name}, which is not installed.",
            'Use pip install "sdcore[web]".',
        ) from error
    if not 0 <= options.port < 1 << 16:
        raise UsageError(f"--port is {options.port}.", "There is none.", "Use 1024 to 65535.")
    if options.queue < 1:
        raise UsageError(f"--queue is {options.queue}.", "Nothing could wait.", "Use 1 or more.")
    token = options.token
    if token is None and options.host not in _LOOPBACK:
        token = secrets.token_urlsafe(24)
    app = make_app(options, token)
    listening = _listen(options.host, options.port)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    command.say(f"http://{shown}:{port}/{f'#token={token}' if token else ''}")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
    server = uvicorn.Server(config)
    end = server.handle_exit

    def stop_and_end(sig: int, frame: FrameType | None) -> None:
        app.state.painter.stop()  # whoever listens is told, and goes
        end(sig, frame)

    server.handle_exit = stop_and_end
    server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. UsageError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UsageError(
            f"--host {host} with --port {port} cannot be listened at.",
            f"{error.strerror or error}.",
            "Use another --port, or 0 for a free one.",
        ) from error


def make_app(options: argparse.Namespace, token: str | None) -> FastAPI:
    """The application that the flags ask for."""
    from sdcore.app.serve.asked import Door
    from sdcore.app.serve.models import Models
    from sdcore.app.serve.painter import Painter, aside
    from sdcore.app.serve.web import make_app
    from sdcore.job.budget import Budget

    budget = Budget.parse([f"images={IMAGES}", *options.budget])
    choice, adapters = flags.model_choice(options), flags.adapters(options)
    models = aside(lambda: Models(choice, adapters))
    return make_app(Door(models, budget), Painter(models, options.queue), token)
