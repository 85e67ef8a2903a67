"""The witness on HTTP. Whoever exposes it to the world puts a TLS proxy before it."""

from __future__ import annotations

import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.witnessing import PATH, REQUEST_BYTES
from gridveil_services.rpc.process import wait_for
from gridveil_services.witness.witness import Answer, Witness

REQUEST_S = 10.0
"""Longest time between two bytes of a request."""

_log = structlog.get_logger()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_S
    witness: Witness

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != PATH:
            self._send(Answer(HTTPStatus.NOT_FOUND), close=True)
        elif not length.isascii() or not length.isdigit():
            self._send(Answer(HTTPStatus.LENGTH_REQUIRED), close=True)
        elif len(length) > 9 or int(length) > REQUEST_BYTES:
            self._send(Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE), close=True)
        else:
            self._send(self._answer(self.rfile.read(int(length))))

    def _answer(self, body: bytes) -> Answer:
        try:
            return self.witness.add_checkpoint(body)
        except OSError as error:
            _log.error("a checkpoint cannot be kept", errno=error.errno)
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE)

    def _send(self, answer: Answer, *, close: bool = False) -> None:
        _log.info("asked", status=answer.status.value)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what callers send does not get into logs."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _request: object, _address: object) -> None:
        """A caller that went away in the midst of an answer, as a line of the log."""
        _log.info("a call broke off", cause=type(sys.exception()).__name__)


class WitnessServer:
    """Serves one witness from threads."""

    def __init__(self, witness: Witness, listen: str) -> None:
        """Bind; CONFIG_INVALID if that is not possible."""
        self._witness = witness
        host, _, port = listen.rpartition(":")
        handler = type("Handler", (_Handler,), {"witness": witness})
        if not port.isascii() or not port.isdigit():
            raise MalformedInput(Reason.CONFIG_INVALID, "listen is host:port", field="listen")
        try:
            self._server = _Server((host, int(port)), handler)
        except (OSError, OverflowError):
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"cannot listen on {listen}", field="listen"
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def address(self) -> str:
        """``host:port``."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._witness.close()

    def run_until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        self.start()
        wait_for(ended)
        self.stop()
