"""A TCP relay that can lose the answers of the server behind it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class BrokenWire:
    """Passes everything on, until it is told to lose answers. Use as a context manager."""

    def __init__(self, port: int) -> None:
        """``port`` of the server on this machine."""
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._losing: set[bytes] = set()
        self._left = 0
        self.lost = 0

    def lose(self, answers: int, to: bytes) -> None:
        """Lose the answers to the next calls that hold these bytes, and the connections."""
        self._left, self._losing = answers, {to}

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        for held in self._open:
            held.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                self._open += [client, server]
                threading.Thread(target=self._relay, args=(client, server), daemon=True).start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Questions and answers in turn, as a client that does not pipeline ahead has them."""
        armed = threading.Event()
        threading.Thread(target=self._answer, args=(client, server, armed), daemon=True).start()
        with suppress(OSError):
            while question := client.recv(1 << 20):
                if self._left and any(part in question for part in self._losing):
                    armed.set()
                server.sendall(question)
        _close(client, server)

    def _answer(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        with suppress(OSError):
            while answer := server.recv(1 << 20):
                if armed.is_set():
                    self._left -= 1
                    self.lost += 1
                    break
                client.sendall(answer)
        _close(client, server)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
