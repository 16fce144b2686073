"""A real HTTP server on this machine that answers as a test has written down."""

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        content: object that is sent as JSON, or the bytes that are sent.
        status: HTTP status.
        headers: more headers.
        delay: seconds before anything is sent.
        cut: number of bytes of the body after which the connection is dropped; None sends all.
        drip: seconds between two bytes of the body.
    """

    content: Mapping[str, Any] | bytes = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    drip: float = 0.0

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


@dataclass(frozen=True)
class Call:
    """One call that has come: method, path, object, headers with lower-case names, and when."""

    method: str
    path: str
    body: Any
    headers: Mapping[str, str]
    at: float


class JsonServer:
    """A server that gives each call the next of `answers`, and then what `otherwise` makes of it."""

    def __init__(self, answers: list[Answer] | None = None, otherwise: Callable[[Call], Answer] | None = None) -> None:
        self.answers = answers or []
        self.otherwise = otherwise or (lambda call: Answer())
        self.calls: list[Call] = []
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer._connections.append(self.connection)

            def do_GET(self) -> None:
                outer._serve(self, None)

            def do_POST(self) -> None:
                outer._serve(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # clients that go away are part of the tests
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        call = Call(handler.command, handler.path, body, headers, time.monotonic())
        with self._lock:
            self.calls.append(call)
            answer = self.answers.pop(0) if self.answers else None
        answer = answer or self.otherwise(call)
        time.sleep(answer.delay)
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        if answer.drip:
            for byte in answer.body:
                handler.wfile.write(bytes([byte]))
                time.sleep(answer.drip)
        elif answer.cut is None:
            handler.wfile.write(answer.body)
        else:
            handler.wfile.write(answer.body[: answer.cut])
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
